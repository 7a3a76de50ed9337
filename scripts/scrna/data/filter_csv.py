"""``filter.csv``: what each bound of the filter took, of all cells and of each sample.

| criterion | the row says |
|---|---|
| ``all`` | cells and genes before the filter |
| a bound | its value, the cells that break it, those that break it alone |
| ``min_cells`` | genes found in fewer cells |
| ``kept`` | cells and genes that stay |

These rows have no ``sample``. Where cells are told apart by sample, ``all``, each bound and
``kept`` follow for each of them; a bound that differs between samples has its values there alone.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scrna.atomic import replacing
from scrna.damage import reading
from scrna.data import step_files
from scrna.data.samples import Samples
from scrna.data.spreadsheet import escaped, unescaped

_COLUMNS = ["criterion", "bound", "cells", "cells_by_this_alone", "genes", "sample"]
#: Rows that are no bound on cells.
NO_BOUNDS = ("all", "kept", "min_cells")

#: Criterion → bound, cells, cells_by_this_alone, genes.
type Rows = dict[str, dict[str, float | None]]


class Table(NamedTuple):
    """What a ``filter.csv`` says of all cells, and of each sample by its name."""

    everything: Rows
    samples: dict[str, Rows]

    def bounds(self) -> Rows:
        """Return the rows of bounds on cells."""
        return {name: row for name, row in self.everything.items() if name not in NO_BOUNDS}


def read(path: Path) -> Table:
    """Read a ``filter.csv``, one without samples too.

    Parameters
    ----------
    path
        The table; its step file lies beside it.

    Raises
    ------
    DamagedError
        If it is missing or is not as the filter wrote it.
    """
    step_files.check_table(path)
    found = Table({}, {})
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sample, criterion = unescaped(row.pop("sample", "")), row.pop("criterion")
            rows = found.samples.setdefault(sample, {}) if sample else found.everything
            rows[criterion] = {key: float(text) if text else None for key, text in row.items()}
    return found


def tally(
    broken: Mapping[str, np.ndarray], limits: Mapping[str, float | np.ndarray]
) -> list[dict[str, Any]]:
    """Count the cells that break each bound, and that break it alone.

    Parameters
    ----------
    broken
        Bound → flags of the cells that break it.
    limits
        Bound → its value, or that of each sample; a criterion without a value is left out.

    Returns
    -------
    criterion, bound, cells, cells_by_this_alone, a row each. Several samples have several bounds,
    so that the row of all cells has none.
    """
    alone = sum((flags.astype(int) for flags in broken.values()), start=0) == 1
    return [
        {
            "criterion": name,
            "bound": _of_sample(limits.get(name), 0) if np.size(limits.get(name)) == 1 else None,
            "cells": int(flags.sum()),
            "cells_by_this_alone": int((flags & alone).sum()),
        }
        for name, flags in broken.items()
    ]


def tally_samples(
    broken: Mapping[str, np.ndarray],
    limits: Mapping[str, float | np.ndarray],
    keep: np.ndarray,
    samples: Samples,
) -> list[dict[str, Any]]:
    """Count the same in each sample.

    Parameters
    ----------
    broken, limits
        As in `tally`.
    keep
        The cells that stay.
    samples
        The sample of each cell.

    Returns
    -------
    Rows of `tally` with ``sample``; each sample has one of all its cells and one of those kept.
    """
    alone = sum((flags.astype(int) for flags in broken.values()), start=0) == 1
    columns = {
        name: (samples.sizes(flags), samples.sizes(flags & alone)) for name, flags in broken.items()
    }
    n_all, n_kept = samples.sizes(), samples.sizes(keep)
    rows = []
    for place, sample in enumerate(samples.names):
        rows.append({"sample": sample, "criterion": "all", "cells": int(n_all[place])})
        rows += [
            {
                "sample": sample,
                "criterion": name,
                "bound": _of_sample(limits.get(name), place),
                "cells": int(cells[place]),
                "cells_by_this_alone": int(by_this_alone[place]),
            }
            for name, (cells, by_this_alone) in columns.items()
        ]
        rows.append({"sample": sample, "criterion": "kept", "cells": int(n_kept[place])})
    return rows


def _of_sample(limit: float | np.ndarray | None, place: int) -> float | None:
    """Return a bound's value in a sample; None where it has none."""
    value = limit[place] if isinstance(limit, np.ndarray) else limit
    return None if value is None or np.isnan(value) else value


def as_text(rows: list[dict]) -> str:
    """Lay the table out for a log or a message."""
    return "\n".join(
        f"  {row['criterion']:>14} {_written(row['bound']):<8} takes {row['cells']:>10,} cells, "
        f"{row['cells_by_this_alone']:,} by itself"
        for row in rows
    )


def in_words(row: dict) -> str:
    """Return what a bound took, as a biologist says it: ``57 over 5 % mt``."""
    if row["criterion"] == "doublet":
        return f"{row['cells']:,} doublets"
    kind, what = row["criterion"].split("_", 1)
    where = "under" if kind == "min" else "over"
    unit = what.removesuffix("_mad").replace("pct_", "% ")
    bound = "each sample's" if row["bound"] is None else _written(row["bound"])
    by_mad = " (MAD)" if what.endswith("_mad") else ""
    return f"{row['cells']:,} {where} {bound} {unit}{by_mad}"


def _written(bound: float | None) -> str:
    return "" if bound is None else f"{bound:g}"


def write(
    path: Path,
    rows: list[dict],
    keep: np.ndarray,
    keep_genes: np.ndarray,
    min_cells: int | None,
    of_samples: list[dict],
) -> None:
    """Write the table.

    Parameters
    ----------
    path
        Where.
    rows, of_samples
        What `tally` and `tally_samples` return.
    keep, keep_genes
        Masks of the cells and genes that stay.
    min_cells
        The filter's setting.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerow({"criterion": "all", "cells": len(keep), "genes": len(keep_genes)})
        writer.writerows(rows)
        gone = int((~keep_genes).sum())
        writer.writerow({"criterion": "min_cells", "bound": min_cells, "genes": gone})
        kept = {"criterion": "kept", "cells": int(keep.sum()), "genes": int(keep_genes.sum())}
        writer.writerow(kept)
        writer.writerows(row | {"sample": escaped(row["sample"])} for row in of_samples)
