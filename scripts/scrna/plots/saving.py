"""Save figures to a folder, with a list of the files that belong to it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from scrna.atomic import replacing
from scrna.file_list import write_list
from scrna.log import log
from scrna.plots.pixels import CLOUD
from scrna.plots.style import MOST_SVG_BYTES, NOT_DRAWN, STYLE, Drawing
from scrna.progress import Progress


def save_folder(out: Path, pictures: Iterable[tuple[str, Drawing]], **how) -> None:
    """Write figures as they are drawn into a folder that is complete or does not exist.

    Parameters
    ----------
    out
        The folder; an existing one is replaced. It has a list of its files, by which a missing
        one is noticed (`scrna.file_list`). `NOT_DRAWN` lists figures that could not be drawn, with
        the reason.
    pictures, **how
        As `save_all` takes them.
    """
    with replacing(out) as folder:
        folder.mkdir()
        if failed := save_all(folder, pictures, **how):
            (folder / NOT_DRAWN).write_text(json.dumps(failed, ensure_ascii=False) + "\n")
        write_list(folder)
        names = sorted(file.stem for file in folder.glob("*.png"))
    log.info("%d figures in %s: %s", len(names), out, ", ".join(names))


def save_all(
    out: Path,
    pictures: Iterable[tuple[str, Drawing]],
    *,
    dpi: int,
    formats: Sequence[str],
    made: Mapping[str, Any],
) -> dict[str, str]:
    """Write figures into an existing folder as they are drawn.

    Parameters
    ----------
    out
        The folder.
    pictures
        Name of each, and its figure or a function that draws it; all are drawn in one
        style. A figure that cannot be drawn is left out, with a warning.
    dpi
        Dots per inch of PNG files.
    formats
        ``png``, and ``svg`` for figures that are small as SVG: without a scatter plot, and
        up to `MOST_SVG_BYTES`.
    made
        The provenance, which the files carry.

    Returns
    -------
    Name of each figure that could not be drawn → the reason.
    """
    text, failed = json.dumps(made), {}
    progress = Progress("drawing", total=None, unit="figures")
    with rc_context(STYLE), progress:
        for name, picture in pictures:
            try:
                figure = picture() if callable(picture) else picture
                _save(figure, out / name, dpi, formats, text)
            except (OSError, MemoryError):  # of the machine, not of this figure
                raise
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                for kind in formats:
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
                log.warning("the figure %s could not be drawn and is left out: %s", name, error)
                log.info("the traceback, for developers", exc_info=error)
            progress.update(1)
    return failed


def _save(figure: Figure, path: Path, dpi: int, formats: Sequence[str], text: str) -> None:
    """Write the files of a figure; `path` has no suffix."""
    # a figure that lays itself out is as large as it says, another as what it shows
    box = None if figure.get_layout_engine() else "tight"
    if "png" in formats:
        file = path.with_name(f"{path.name}.png")
        figure.savefig(file, dpi=dpi, bbox_inches=box, metadata={"Provenance": text})
    if "svg" in formats and not has_cloud(figure):
        about = {"Description": text, "Date": None}
        file = path.with_name(f"{path.name}.svg")
        figure.savefig(file, bbox_inches=box, metadata=about)
        if file.stat().st_size > MOST_SVG_BYTES:
            file.unlink()


def has_cloud(figure: Figure) -> bool:
    """Check whether a figure has a scatter plot, however it is drawn."""
    return any(
        any(image.get_gid() == CLOUD for image in ax.images)
        or any(isinstance(of, PathCollection) and of.get_rasterized() for of in ax.collections)
        for ax in figure.axes
    )
