"""The config: schema, settings, datasets and their sources, the parameters of each step.

It may import the ground and `resources` (which knows what a setting needs).
"""
