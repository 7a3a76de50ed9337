"""What a machine has and a step needs: GPUs, memory, the plan, kept matrices, locks.

It may import the ground alone.
"""
