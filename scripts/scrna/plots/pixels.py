"""Draw scatter plots of many points as images: points are counted and averaged in small squares.

A figure with a million markers takes long to draw and shows only those on top. The squares are as
large as a marker, so that a single cell is visible; colours of several points are averaged. This
takes a few passes of NumPy; libraries for it compile for seconds in each process.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage

#: Squares per inch.
PER_INCH = 100
#: Opacity of a square with one point; it grows with the logarithm of their number.
_FAINTEST = 0.65
#: Id of the images, by which `scrna.plots.style` distinguishes a scatter plot from a heat map.
CLOUD = "cloud of points"


class Squares:
    """The squares of a panel and the points in them.

    Parameters
    ----------
    ax
        The panel.
    xy
        Coordinates of the points (n × 2).
    limits
        The least and the greatest coordinates of the panel (2 × 2); by default those of the points.
    """

    def __init__(self, ax: Axes, xy: np.ndarray, limits: np.ndarray | None = None):
        self._ax = ax
        low, high = np.array([xy.min(axis=0), xy.max(axis=0)] if limits is None else limits, float)
        high = np.where(high > low, high, low + 1)
        self._extent = np.column_stack([low, high]).ravel()
        box = ax.get_position()
        inches = np.array([box.width, box.height]) * ax.figure.get_size_inches()
        columns, rows = np.maximum(1, (inches * PER_INCH).astype(int))
        self._shape = rows, columns
        place = ((xy - low) / (high - low) * (columns, rows)).astype(np.int64)
        place = np.clip(place, 0, (columns - 1, rows - 1))
        self._at = place[:, 1] * columns + place[:, 0]
        self.counts = np.bincount(self._at, minlength=rows * columns).reshape(self._shape)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Average the values of the points in each square; NaN where there is none."""
        sums = np.bincount(self._at, values, minlength=self.counts.size).reshape(self._shape)
        with np.errstate(invalid="ignore"):
            return sums / self.counts

    def draw_groups(self, codes: np.ndarray, colours: list[str]) -> AxesImage:
        """Draw each square in the mean colour of its points, fainter where they are few.

        Parameters
        ----------
        codes
            The number of each point's group.
        colours
            The colour of each group.
        """
        parts = np.array([to_rgb(colour) for colour in colours])
        rgba = np.zeros((*self._shape, 4))
        for channel in range(3):
            rgba[..., channel] = np.nan_to_num(self.means(parts[codes, channel]))
        depth = np.log1p(self.counts) / np.log1p(max(1, self.counts.max()))
        rgba[..., 3] = np.where(self.counts > 0, _FAINTEST + (1 - _FAINTEST) * depth, 0)
        return self._show(np.round(255 * rgba).astype(np.uint8))

    def draw_values(self, values: np.ndarray, scale: ScalarMappable) -> AxesImage:
        """Draw the mean of each square's points by a colour scale."""
        means = np.ma.masked_invalid(self.means(values))
        return self._show(scale.to_rgba(means, bytes=True))

    def _show(self, rgba: np.ndarray) -> AxesImage:
        """Show bytes, which matplotlib resamples several times as fast as numbers."""
        place = {"extent": self._extent, "origin": "lower", "aspect": "auto"}
        drawn = self._ax.imshow(rgba, interpolation="nearest", **place)
        drawn.set_gid(CLOUD)
        return drawn
