"""Pictures: one look for all, colours, and a function for each picture.

It may import the ground, `resources`, `config`, `data` and `methods`.
"""
