"""The HTML report of a dataset, one file that needs no network.

It may import the layers up to `plots`.
"""
