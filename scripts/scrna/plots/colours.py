"""Colours of groups of cells: distinct for up to 60 groups, also for colour-blind readers.

The first six are those of Okabe and Ito (2008) that show on white. Each further one has the largest
least distance to those before it, for readers with normal sight and with the three colour vision
deficiencies. ``tests/unit/plots/test_colours.py`` has the method and chooses them again. The first
groups have the most distinct colours; of clusters these are the largest, and each also carries its
number.
"""

PALETTE = """
    #0072b2 #e69f00 #009e73 #d55e00 #cc79a7 #56b4e9 #8700f0 #5a1e00 #3c3c4b #9678ff
    #e1c378 #5a0069 #f0004b #3c00a5 #963c00 #a5d2a5 #5a4bc3 #5af04b #69693c #b40f78
    #a51e96 #ff4b78 #5a1e96 #5a2d2d #7896f0 #874bf0 #96d2f0 #b4a54b #a5b4a5 #a587c3
    #874b5a #4b960f #c34bc3 #b40f2d #5a5a78 #c3b4c3 #d2a578 #5a4b1e #a55a96 #1e3c5a
    #692dd2 #3cd21e #0000ff #b4695a #d2a5d2 #e1d296 #781e78 #b44be1 #2d00d2 #005a96
    #ff96ff #c3c35a #690f3c #c3d2e1 #c35a87 #69a5b4 #ffa596 #78a55a #871e00 #f08796
""".split()
#: Number of distinct colours; with more groups they repeat.
N_COLOURS = len(PALETTE)
MISSING = "#d9d9d9"
INK = "#222222"
#: Colours of kept or selected cells and genes, and of the others.
KEPT, REMOVED = "#0072b2", "#d55e00"


def colours_of(names: list[str]) -> dict[str, str]:
    """Return the colour of each group, in their order."""
    return {name: PALETTE[i % N_COLOURS] for i, name in enumerate(names)}
