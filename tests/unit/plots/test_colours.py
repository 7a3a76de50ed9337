"""The colours of groups: how they were chosen, and that every reader tells them apart.

Distances are ΔE 1976 in CIELAB; colour vision deficiencies are simulated by the matrices of Machado
et al. (2009) at full severity. The distance of two colours is that of the reader who tells them
apart the least.
"""

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from scrna.plots.colours import MISSING, N_COLOURS, PALETTE, colours_of

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


def as_seen(colours):
    """CIELAB under D65 (4 × n × 3) of sRGB (n × 3): normal sight and the three deficiencies."""
    colours = np.asarray(colours)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear, *(linear @ np.transpose(m) for m in DEFICIENCIES.values())])
    xyz = np.clip(views, 0, 1) @ np.transpose(_XYZ) / np.sum(_XYZ, axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distances(seen, other):
    """How far a colour is from others (n) for the reader who tells them apart the least."""
    return np.linalg.norm(seen - other[:, None], axis=-1).min(axis=0)


def test_each_colour_is_the_farthest_from_those_before_it():
    # of a grid, none of them pale or nearly black
    steps = np.linspace(0, 1, 18)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lightness = as_seen(grid)[0, :, 0]
    grid = grid[(lightness > 20) & (lightness < 85)]
    places = {to_hex(colour): i for i, colour in enumerate(grid)}
    seen = as_seen(grid)
    assert PALETTE[:6] == OKABE_ITO
    # points lie on white and among missing cells
    given = as_seen(np.array([to_rgb(colour) for colour in [*OKABE_ITO, "white", MISSING]]))
    nearest = np.min([distances(seen, given[:, i]) for i in range(given.shape[1])], axis=0)
    for colour in PALETTE[6:]:
        place = places[colour]
        assert nearest[place] > nearest.max() - 1e-6, colour  # of equally far ones either will do
        nearest = np.minimum(nearest, distances(seen, seen[:, place]))


def test_the_colours_are_told_apart_by_every_reader():
    rgb = [to_rgb(colour) for colour in [*PALETTE, "white", MISSING]]
    for seen in as_seen(np.array(rgb)):
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        assert apart[:12, :12].min() > 15
        assert apart[:60, :60].min() > 8  # 2.3 is just noticeable
    assert len({*PALETTE}) == N_COLOURS == 60


def test_grey_is_seen_alike_by_all():
    lab = as_seen(np.array([[0.5, 0.5, 0.5], [1, 1, 1]]))
    assert np.abs(lab[..., 1:]).max() < 0.1
    np.testing.assert_allclose(lab[:, :, 0], [[53.39, 100]] * 4, atol=0.01)  # CIE L*


def test_groups_beyond_the_colours_take_them_again():
    names = [str(i) for i in range(61)]
    assert colours_of(names)["60"] == colours_of(names)["0"]
