"""Methods that take more than one call of a library: Harmony, t-SNE, clusters, scores.

It may import the ground, `resources`, `config` and `data`.
"""
