"""What is more than one call of scanpy's or rapids-singlecell's: Harmony, t-SNE, clusters, scores.

It may import the ground, `resources`, `config` and `data`.
"""
