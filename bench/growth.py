"""How time and memory grow with the cells: python bench/growth.py DATASET DATASET ... [--out FILE].

Reads what finished runs of the same parameters left (benchmarks, provenance in the step files,
counts.json) and prints, for each step, seconds and peak memory on the GPU against the number of
cells, with the exponent b of seconds ∝ cells^b: the slope of a straight line through the
logarithms, by least squares. An exponent of 1 is proportional growth; below 1 a fixed cost weighs.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from measure import rows


def gathered(datasets: list[str]) -> tuple[list[tuple[str, dict]], dict[str, dict[str, dict]]]:
    """Sort the datasets by their cells; collect their rules' figures, by rule and dataset."""
    sizes = {
        name: json.loads(Path("results", name, "counts.json").read_text()) for name in datasets
    }
    ordered = sorted(sizes.items(), key=lambda item: item[1]["n_obs"])
    found: dict[str, dict[str, dict]] = {}
    for name, _ in ordered:
        for row in rows(name):
            found.setdefault(row["rule"], {})[name] = row
    order = {
        rule: max(row.get("started", "") for row in by_dataset.values())
        for rule, by_dataset in found.items()
    }
    return ordered, dict(sorted(found.items(), key=lambda item: order[item[0]]))


def exponent(cells: list[int], values: list[float]) -> float | None:
    """Slope of log(values) against log(cells); None with fewer than two positive values."""
    known = [(n, value) for n, value in zip(cells, values, strict=True) if value and value > 0]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known, dtype=float)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3) + 0.0  # no minus before a zero


def table(title: str, key, ordered: list, found: dict, *, digits: int) -> dict[str, dict]:
    """Print one figure of all steps against the cells; return it."""
    cells = [facts["n_obs"] for _, facts in ordered]
    print(f"\n**{title}**\n")
    print("| step |", " | ".join(f"{n:,}" for n in cells), "| exponent |")
    print("|---" * (len(cells) + 2) + "|")
    result = {}
    for rule, by_dataset in found.items():
        values = [key(by_dataset.get(name, {})) for name, _ in ordered]
        if not any(values):
            continue
        slope = exponent(cells, values)
        shown = [f"{value:.{digits}f}" if value else "-" for value in values]
        print(f"| {rule} |", " | ".join(shown), f"| {'-' if slope is None else f'{slope:.2f}'} |")
        result[rule] = {"values": values, "exponent": slope}
    return result


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ordered, found = gathered(options.datasets)
    for name, facts in ordered:
        print(f"{name}: {facts['n_obs']:,} × {facts['n_vars']:,}, {facts['nnz']:,} non-zeros")
    tables = {
        "step_seconds": table(
            "Seconds of the step", lambda row: row.get("seconds"), ordered, found, digits=2
        ),
        "wall_seconds": table(
            "Seconds of the rule's process", lambda row: row.get("wall"), ordered, found, digits=1
        ),
    }
    for name, key, title in (
        ("peak_gb", "gpu_peak_bytes", "Most allocated on the GPU, GB"),
        ("in_use_gb", "in_use_bytes", "Most device memory in use, GB"),
    ):
        of = partial(lambda key, row: (row.get(key) or 0) / 1e9 or None, key)
        tables[name] = table(title, of, ordered, found, digits=2)
    if options.out:
        tables["cells"] = {name: facts["n_obs"] for name, facts in ordered}
        options.out.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
