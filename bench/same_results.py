"""Compare the results of two runs, element by element.

    python bench/same_results.py BEFORE/results AFTER/results

To see whether a change of the code changed a result. Compares every step file (``*.h5``), table
(``*.csv``) and object (``*.zarr``, ``*.h5ad``) that both folders have: names, dtypes, shapes and
values.
Provenance and digests, which hold times and versions, are left out. Prints a line for every
element that differs, with the largest difference, and for every file that only one side has. Exits
with 1 if an element differs.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

LEFT_OUT = ("provenance",)


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """Read the arrays of a step file, a store or a table, by name."""
    if path.suffix == ".csv":
        yield "text", np.asarray(path.read_text().splitlines(), dtype=object)
        return
    if path.suffix in (".h5", ".h5ad"):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visititems(
                lambda name, item: names.append(name) if hasattr(item, "dtype") else None
            )
            for name in names:
                yield name, file[name][()]
        return
    root = zarr.open_group(path, mode="r", use_consolidated=False)
    for name, item in root.members(max_depth=None):
        if isinstance(item, zarr.Array):
            yield name, item[...]


def difference(before: Any, after: Any) -> str | None:
    """Describe how two values differ; None if they are equal, NaN counting as equal to NaN."""
    before, after = np.asarray(before), np.asarray(after)
    if before.dtype != after.dtype and not {before.dtype.kind, after.dtype.kind} <= {"O", "T", "U"}:
        return f"dtype {before.dtype} became {after.dtype}"
    if before.shape != after.shape:
        return f"shape {before.shape} became {after.shape}"
    if before.dtype.names:
        found = [
            f"{name}: {said}"
            for name in before.dtype.names
            if (said := difference(before[name], after[name]))
        ]
        return "; ".join(found) or None
    if before.dtype.kind in "fc":
        if np.array_equal(before, after, equal_nan=True):
            return None
        gap = np.nanmax(np.abs(before.astype(float) - after.astype(float)), initial=0.0)
        return f"values differ by up to {gap:.3g}"
    return None if np.array_equal(before, after) else f"{np.sum(before != after):,} values differ"


def compare(before: Path, after: Path) -> tuple[list[str], int]:
    """Compare two results folders; return what differs, and how many elements were compared."""
    kinds = ("*.h5", "*.h5ad", "*.csv", "*.zarr")
    files = [
        {
            p.relative_to(folder)
            for kind in kinds
            for p in folder.rglob(kind)
            if not any(above.suffix == ".zarr" for above in p.relative_to(folder).parents)
        }
        for folder in (before, after)
    ]
    said = [f"{file}: only before" for file in sorted(files[0] - files[1])]
    said += [f"{file}: only after" for file in sorted(files[1] - files[0])]
    n_compared, differing = 0, []
    for file in sorted(files[0] & files[1]):
        old, new = (
            {
                name: value
                for name, value in elements(folder / file)
                if not any(part in name for part in LEFT_OUT)
            }
            for folder in (before, after)
        )
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                differing.append(f"{file} {name}: only {'before' if name in old else 'after'}")
                continue
            n_compared += 1
            if what := difference(old[name], new[name]):
                differing.append(f"{file} {name}: {what}")
    return said + differing, n_compared


def main() -> None:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    said, n_compared = compare(options.before, options.after)
    print("\n".join([*said, f"{n_compared:,} elements compared"]))
    sys.exit(any(not line.endswith(("only before", "only after")) for line in said))


if __name__ == "__main__":
    main()
