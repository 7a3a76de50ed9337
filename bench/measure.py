"""Print what the rules of a finished run took: python bench/measure.py DATASET [DATASET ...].

Prints a Markdown table for each dataset, from the benchmark files (wall seconds of the process, the
most device memory in use), the logs (seconds to import) and the provenance in the step files
(seconds of the step itself, in memory or in blocks, in a warm worker or not, the most that was
allocated on the GPU, the device), and whether any two GPU steps overlapped in time.
"""

import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from scrna.data.benchmarks import usage_of


def rows(dataset: str) -> list[dict]:
    """Collect the figures of each rule of a dataset that ran."""
    found = []
    for benchmark in sorted(Path("benchmarks", dataset).rglob("*.tsv")):
        rule = benchmark.relative_to(Path("benchmarks", dataset)).with_suffix("")
        usage = usage_of(benchmark, str(rule))
        log = Path("logs", dataset, rule).with_suffix(".log").read_text()
        imported = re.findall(r"imported in ([\d.]+) s", log)
        row = {"rule": usage.label, "wall": usage.seconds, "imported": imported}
        found.append(row | usage.provenance | {"in_use_bytes": usage.gpu_bytes})
    return found


def how(row: dict) -> str:
    """Return how a step ran: in memory or in blocks, and whether in a worker."""
    execution = row.get("execution")
    mode = execution.get("mode") if isinstance(execution, dict) else execution
    said = [mode] if mode else []
    said += ["warm"] if row.get("worker") == "warm" else []
    return ", ".join(said) or "-"


def gigabytes(n_bytes: int | None) -> str:
    """Write bytes as GB."""
    return f"{n_bytes / 1e9:.2f}" if n_bytes else "-"


def overlaps(found: list[dict]) -> list[tuple[str, str]]:
    """List the pairs of GPU steps that ran at the same time."""
    spans = []
    for row in found:
        if row.get("backend") == "gpu":
            start = datetime.fromisoformat(row["started"])
            spans.append((start, start + timedelta(seconds=row["seconds"]), row["rule"]))
    spans.sort()
    return [
        (one[2], other[2])
        for place, one in enumerate(spans)
        for other in spans[place + 1 :]
        if other[0] < one[1]
    ]


def main() -> None:
    """Print the tables."""
    everything = []
    for dataset in sys.argv[1:]:
        found = sorted(rows(dataset), key=lambda row: row.get("started", ""))
        everything += found
        print(f"\n**{dataset}**\n")
        print(
            "| rule | device | how | wall s | of it import s | step s | peak GPU GB | in use GB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for row in found:
            cells = (
                row["rule"],
                row.get("device", "CPU"),
                how(row),
                f"{row['wall']:.1f}",
                row["imported"][0] if row["imported"] else "-",
                f"{row['seconds']:.1f}" if "seconds" in row else "-",
                gigabytes(row.get("gpu_peak_bytes")),
                gigabytes(row.get("in_use_bytes")),
            )
            print("|", " | ".join(cells), "|")
        print(f"\nSum of the rules: {sum(row['wall'] for row in found):.1f} s")
    on_gpu = sum(row.get("backend") == "gpu" for row in everything)
    print(f"\n{on_gpu} steps on the GPU; overlapping in time: {overlaps(everything) or 'none'}")


if __name__ == "__main__":
    main()
