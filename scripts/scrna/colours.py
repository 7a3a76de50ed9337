"""Colours of groups of cells: distinct for up to 60 of them, for colour-blind readers too.

The first are those of Okabe and Ito (2008) that show on white. Each further one is the colour of a
grid, neither pale nor near black, whose least distance to those before it is largest, where the
distance of two colours is the smallest of what readers with normal sight and with the three colour
vision deficiencies see: ΔE 1976 in CIELAB, the deficiencies simulated by the matrices of Machado
et al. (2009) at full severity. The first groups have the most distinct colours; of clusters these
are the largest, and each also carries its number.
"""

from functools import cache

import numpy as np

#: How many colours are distinct; more groups than that take them again.
N_COLOURS = 60
MISSING = "#d9d9d9"
INK = "#222222"
#: Two kinds of cells or genes: those that stay or matter, and those that go.
KEPT, REMOVED = "#0072b2", "#d55e00"
OKABE_ITO = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"]
#: Machado, Oliveira & Fernandes (2009), severity 1.0, for linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]]
_XYZ += [[0.0193339, 0.1191920, 0.9503041]]


def as_seen(colours: np.ndarray) -> np.ndarray:
    """Tell how colours look, to each kind of reader.

    Parameters
    ----------
    colours
        sRGB from 0 to 1 (n × 3).

    Returns
    -------
    CIELAB under D65 (4 × n × 3): normal sight, protanopia, deuteranopia, tritanopia.
    """
    colours = np.asarray(colours)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear, *(linear @ np.transpose(m) for m in DEFICIENCIES.values())])
    xyz = np.clip(views, 0, 1) @ np.transpose(_XYZ) / np.sum(_XYZ, axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distances(seen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Measure how far a colour is from others (n) for the reader who tells them apart the least."""
    return np.linalg.norm(seen - other[:, None], axis=-1).min(axis=0)


@cache
def palette() -> list[str]:
    """Choose the `N_COLOURS` colours, as hexadecimal sRGB."""
    from matplotlib.colors import to_hex, to_rgb

    steps = np.linspace(0, 1, 18)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lightness = as_seen(grid)[0, :, 0]
    grid = grid[(lightness > 20) & (lightness < 85)]
    colours = [np.array(to_rgb(colour)) for colour in OKABE_ITO]
    seen = as_seen(grid)
    # what lies on white or among missing cells has to be told from these as well
    given = as_seen(np.array([*colours, to_rgb("white"), to_rgb(MISSING)]))
    nearest = np.min([distances(seen, given[:, i]) for i in range(given.shape[1])], axis=0)
    while len(colours) < N_COLOURS:
        best = int(nearest.argmax())
        colours.append(grid[best])
        nearest = np.minimum(nearest, distances(seen, seen[:, best]))
    return [to_hex(colour) for colour in colours]


def colours_of(names: list[str]) -> dict[str, str]:
    """Give each group its colour, in their order."""
    return {name: palette()[i % N_COLOURS] for i, name in enumerate(names)}
