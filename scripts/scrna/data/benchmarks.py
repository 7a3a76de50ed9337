"""Read time, memory and device of a finished step from its files.

Snakemake writes ``benchmarks/{dataset}/{rule}.tsv`` for every step. ``.memory.json`` beside it has
the GPU memory in use and the time that the step waited for a GPU; the step file in ``results/`` has
the provenance.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrna.damage import read_summary
from scrna.progress import duration, short_duration

#: Lines that a table has at most, its head and its foot included.
MOST_LINES = 40


@dataclass(frozen=True)
class Usage:
    """Time and memory of one step.

    Parameters
    ----------
    label
        The step and what it was done for: ``umap pbmc3k/pca``.
    started
        When its process started, in seconds since 1970.
    seconds
        From there to its end, without what it waited for a worker that did another step.
    rss_bytes
        The most memory of the host that its process was seen to hold (Snakemake looks every few
        seconds); None for a step shorter than that, or one that a warm worker did.
    gpu_bytes
        The most memory in use on its GPU, other programs' included; None on the CPU.
    provenance
        That of its result, as `scrna.provenance.provenance` made it; empty where it keeps none.
    """

    label: str
    started: float
    seconds: float
    rss_bytes: int | None
    gpu_bytes: int | None
    provenance: dict[str, Any]

    @property
    def device(self) -> str:
        """The GPU's name, or CPU."""
        return self.provenance.get("device", "CPU")

    @property
    def memory(self) -> str:
        """The peak memory, as text."""
        n_bytes = self.gpu_bytes or self.rss_bytes
        if not n_bytes:
            return "-"
        return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def usage_of(benchmark: Path, label: str) -> Usage:
    """Read what a finished step took.

    Parameters
    ----------
    benchmark
        Its file below ``benchmarks/``; the result is looked for under the same name in
        ``results/``, which lies beside it.
    label
        What to call it.

    Raises
    ------
    OSError, ValueError
        If the benchmark cannot be read, as while it is written.
    """
    with benchmark.open() as file:
        row = next(csv.DictReader(file, delimiter="\t"), None)
    if row is None:
        msg = f"{benchmark} is empty"
        raise ValueError(msg)
    seconds, record = float(row["s"]), _provenance(benchmark)
    gpu_bytes = None
    if (
        record.get("backend") == "gpu"
        and (beside := benchmark.with_suffix(".memory.json")).exists()
    ):
        facts = json.loads(beside.read_text())
        gpu_bytes = facts.get("peak_bytes")
        seconds -= facts.get("waited_s", 0)
    is_guest = record.get("worker") == "warm"  # the memory is the worker's, not this process's
    return Usage(
        label=label,
        started=benchmark.stat().st_mtime - seconds,
        seconds=seconds,
        rss_bytes=None if is_guest else _rss(row.get("max_rss")),
        gpu_bytes=gpu_bytes,
        provenance=record,
    )


def table(usages: list[Usage], most_lines: int = MOST_LINES) -> list[str]:
    """Format time and memory of the steps of a run as a table, in the order of their start.

    Parameters
    ----------
    usages
        The steps.
    most_lines
        Of more steps than fit, the longest have a line each and the rest one together.

    Returns
    -------
    The lines, without a step none.
    """
    if not usages:
        return []
    n_shown = len(usages) if len(usages) + 2 <= most_lines else most_lines - 3
    longest = sorted(usages, key=lambda usage: -usage.seconds)[:n_shown]
    rows = [("step", "time", "memory", "device")]
    rows += [
        (usage.label, short_duration(usage.seconds), usage.memory, usage.device)
        for usage in sorted(longest, key=lambda usage: usage.started)
    ]
    total = sum(usage.seconds for usage in usages)
    if n_left := len(usages) - n_shown:
        rest = total - sum(usage.seconds for usage in longest)
        rows.append((f"{n_left:,} shorter steps", short_duration(rest), "", ""))
    first = min(usage.started for usage in usages)
    last = max(usage.started + usage.seconds for usage in usages)
    rows.append((f"sum, done in {duration(last - first)}", short_duration(total), "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
    ]


def _rss(said: str | None) -> int | None:
    """Read Snakemake's MB; it writes NA, or nothing, where it was too late to look."""
    try:
        return int(float(said) * 1024**2) or None
    except (TypeError, ValueError):
        return None


def _provenance(benchmark: Path) -> dict[str, Any]:
    """Read the provenance of the result that belongs to a benchmark."""
    from scrna.data import step_files  # numpy and h5py, which the start of a run does without

    parts = list(benchmark.parts)
    parts[parts.index("benchmarks")] = "results"
    place = Path(*parts).with_suffix("")
    # pca.h5 and harmony.h5 lie in a folder of their own, which their benchmarks do not
    for result in (place.with_suffix(".h5"), place / f"{place.name}.h5"):
        if result.exists():
            return step_files.provenance_of(result)
    summary = place.with_name("merged.json" if place.name == "merge" else "counts.json")
    makes_counts = place.name in ("convert", "convert_sample", "merge", "metadata")
    if makes_counts and summary.exists():
        return read_summary(summary)["provenance"]
    return {}
