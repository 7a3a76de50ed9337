"""How data gets in: downloads, file formats, tables of cells and genes, simulated counts.

It may import the ground, `resources`, `config` and `data`.
"""
