"""Data on disk and how it is read: counts, step files, the matrix, the neighbor graph.

It may import the ground, `resources` and `config`; nothing of the engine or of Snakemake.
"""
