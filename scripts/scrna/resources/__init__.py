"""GPUs, memory, what a step needs, the plan, kept matrices, locks.

It may import only the ground.
"""
