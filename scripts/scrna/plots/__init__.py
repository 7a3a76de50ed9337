"""Figures: a common style, colours, and a function for each figure.

It may import the ground, `resources`, `config`, `data` and `methods`.
"""
