"""The interactive map of cells: a fragment of HTML without references to other files.

It holds plotly.js (from the plotly wheel), the cells as typed arrays, and ``report/cellmap.js``,
which draws them with WebGL after the page has been painted. All of it is gzipped and in base64; the
browser unpacks an array when it is first shown. Coordinates and values are quantised: to 1 / 65,534
of their range, the expression of genes to 1 / 254.
"""

import gzip
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from scrna.plots.colours import KEPT, MISSING, colours_of
from scrna.plots.style import SEQUENTIAL

_SOURCES = Path(__file__).parent
_STOPS = 16  # colours of the sequential scale in the page


@dataclass(frozen=True)
class CellMap:
    """An interactive map of cells.

    Parameters
    ----------
    html
        ``<section id="cell-map">``, complete, to be inserted into a page.
    cells
        Which cells it shows: sorted indices among those given, int64.
    n_cells
        How many cells were given.
    note
        How many cells are shown and how they were chosen, in words.
    """

    html: str
    cells: np.ndarray
    n_cells: int
    note: str


def cell_map(
    embeddings: Mapping[str, np.ndarray],
    groups: Mapping[str, pd.Categorical],
    values: Mapping[str, np.ndarray],
    genes: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None,
    *,
    max_cells: int,
    seed: int,
) -> CellMap:
    """Make the map of the cells.

    Parameters
    ----------
    embeddings
        Name → coordinates (n × 2); the first is shown at first. A cell without finite coordinates
        is not drawn.
    groups
        Name → group of each cell (n); the first is shown at first. A missing one is grey.
    values
        Name → value of each cell (n); one that is not finite is grey.
    genes
        Function of the shown cells (sorted indices): gene → log-normalised expression.
    max_cells
        Most cells to show; of more cells a random sample is shown.
    seed
        Seed of the sample.

    Returns
    -------
    The map.

    Raises
    ------
    ValueError
        If there is no embedding or no cell, or the numbers of cells differ.
    """
    n = _n_cells(embeddings, groups, values)
    cells = sample(n, max_cells, seed)
    expression = {} if genes is None else genes(cells)
    for name, found in expression.items():
        _check_length(f"gene {name}", len(found), len(cells))
    note = f"all {n:,} cells shown"
    if len(cells) < n:
        note = f"{len(cells):,} of {n:,} cells shown, a random sample (seed {seed})"
    data = {
        "n": len(cells),
        "note": note,
        "embeddings": [
            {"name": str(name), "x": quantise(xy[cells, 0]), "y": quantise(xy[cells, 1])}
            for name, xy in embeddings.items()
        ],
        "groups": [_group(str(name), found[cells]) for name, found in groups.items()],
        "values": [
            _value(str(name), np.asarray(found, dtype=np.float64)[cells])
            for name, found in values.items()
        ],
        "genes": [_gene(str(name), np.asarray(found)) for name, found in expression.items()],
        "scale": _scale(),
        "missing": MISSING,
        "plain": KEPT,
    }
    return CellMap(_fragment(data), cells, n, note)


def sample(n: int, max_cells: int, seed: int) -> np.ndarray:
    """Sample `max_cells` of n cells at random: sorted indices, int64."""
    if n <= max_cells:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max_cells, replace=False))


def quantise(values: np.ndarray, dtype: type[np.unsignedinteger] = np.uint16) -> dict:
    """Pack numbers as integer multiples of a step above their minimum.

    Parameters
    ----------
    values
        Numbers (n); those that are not finite are missing.
    dtype
        uint16 or uint8; its largest number stands for a missing one.

    Returns
    -------
    ``type``, ``low``, ``high`` (the range; both None where all are missing), ``step`` and ``data``
    (gzip in base64, little endian): a value is ``low + step * code``, at most half a step off.
    """
    values = np.asarray(values, dtype=np.float64)
    missing = np.iinfo(dtype).max
    known = np.isfinite(values)
    codes = np.full(len(values), missing, dtype)
    low = high = None
    step = 0.0
    if known.any():
        low, high = float(values[known].min()), float(values[known].max())
        step = (high - low) / (missing - 1)
        if step:
            codes[known] = np.rint((values[known] - low) / step)
        else:
            codes[known] = 0
    return {**_packed(codes), "low": low, "high": high, "step": step}


def _group(name: str, found: pd.Categorical) -> dict:
    """Pack groups: their names, colours, numbers of cells and a code per cell."""
    names = [str(category) for category in found.categories]
    dtype = np.uint8 if len(names) < 255 else np.uint16
    missing = np.iinfo(dtype).max
    if len(names) > missing:
        msg = f"{name} has {len(names):,} groups; the map shows {missing:,} at most"
        raise ValueError(msg)
    codes = np.where(found.codes < 0, missing, found.codes).astype(dtype)
    counts = np.bincount(found.codes[found.codes >= 0], minlength=len(names))
    colours = list(colours_of(list(range(len(names)))).values())
    return {
        "name": name,
        "names": names,
        "colours": colours,
        "counts": counts.tolist(),
        **_packed(codes),
    }


def _value(name: str, found: np.ndarray) -> dict:
    """Pack values; the colours span the 1st to the 99th percentile, as in the figures."""
    known = found[np.isfinite(found)]
    low, high = np.percentile(known, [1, 99]) if len(known) else (0, 1)
    return {"name": name, **quantise(found), "span": _span(low, high)}


def _gene(name: str, found: np.ndarray) -> dict:
    """Pack expression; the colours span 0 to the 99th percentile of the cells that express it."""
    expressed = found[np.isfinite(found) & (found > 0)]
    high = np.percentile(expressed, 99) if len(expressed) else 1
    return {"name": name, **quantise(found, np.uint8), "span": _span(0, high)}


def _span(low: float, high: float) -> list[float]:
    return [float(low), float(high if high > low else low + 1)]


def _packed(codes: np.ndarray) -> dict:
    """Compress unsigned integers, the same bytes each time."""
    raw = codes.astype(codes.dtype.newbyteorder("<")).tobytes()
    return {"type": codes.dtype.name, "data": _compressed(raw)}


def _compressed(raw: bytes) -> str:
    return b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode()


def _scale() -> list[str]:
    """Return colours of the sequential scale, evenly spaced."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps[SEQUENTIAL](np.linspace(0, 1, _STOPS))]


def _n_cells(embeddings: Mapping, groups: Mapping, values: Mapping) -> int:
    if not embeddings:
        msg = "the map of cells needs an embedding; none was given"
        raise ValueError(msg)
    n = len(next(iter(embeddings.values())))
    if not n:
        msg = "the map of cells needs a cell; the embeddings have none"
        raise ValueError(msg)
    for named in (embeddings, groups, values):
        for name, found in named.items():
            _check_length(name, len(found), n)
    return n


def _check_length(name: str, found: int, expected: int) -> None:
    if found != expected:
        msg = f"{name} has {found:,} cells, {expected:,} were expected"
        raise ValueError(msg)


def _fragment(data: dict) -> str:
    """Assemble the HTML."""
    # within <script>, "<" is the one character that can end it or hide what follows
    packed = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    plotly = _compressed(files("plotly").joinpath("package_data/plotly.min.js").read_bytes())
    return (
        f"""\
<section id="cell-map" data-state="waiting">
<style>
{(_SOURCES / "cellmap.css").read_text()}</style>
<form class="cm-controls" autocomplete="off">
<label>Embedding <select class="cm-embedding"></select></label>
<label>Colour <select class="cm-colour"></select></label>
<label class="cm-search">Gene <input class="cm-gene" type="search" list="cell-map-genes"
 placeholder="search"></label>
<datalist id="cell-map-genes"></datalist>
</form>
<p class="cm-note" role="status">{escape(data["note"])}</p>
<p class="cm-message" role="alert" hidden></p>
<div class="cm-plot" role="img" aria-label="Map of the cells"><p class="cm-wait">Loading the map \
of {data["n"]:,} cells …</p></div>
<div class="cm-tip" hidden></div>
<div class="cm-legend"></div>
<p class="cm-help">Drag to move. To zoom, pinch, or click the map and scroll. Double-click to see \
all cells. In the legend, click a group to hide or show it, double-click to show only this one.</p>
<p class="cm-print">The map of cells is interactive. Open this page in a browser to use it.</p>
<noscript><p>The map of cells needs JavaScript.</p></noscript>
<script type="application/json" id="cell-map-data">{packed}</script>
<script type="text/plain" id="cell-map-plotly">{plotly}</script>
"""
        f"<script>\n{(_SOURCES / 'cellmap.js').read_text()}</script>\n</section>\n"
    )
