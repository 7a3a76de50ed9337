"""What the campaign's tests share, and the table of what they found.

``make campaign`` runs all of it. Of `make test` only the cases marked ``campaign(short=True)`` are.
"""

import datetime
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import same_results
from tests.workflow.conftest import code, done, fresh, once

__all__ = ["code", "done", "fresh", "once"]
SHORT = pytest.mark.campaign(short=True)


def differences(found: Path, wanted: Path) -> list[str]:
    """Compare what stands in a folder of results with those of an undisturbed run.

    Step files, tables and stores by their values, pictures by their pixels. What is not there, or
    is in the other folder alone, makes no difference.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at .snakemake_timestamp is not recognized")
        said, _ = same_results.compare(wanted, found)
    said = [line for line in said if not line.endswith(("only before", "only after"))]
    for picture in found.rglob("*.png"):
        other = wanted / picture.relative_to(found)
        if picture.parent.name == "figures" and not np.array_equal(
            *(np.asarray(Image.open(path)) for path in (picture, other))
        ):
            said.append(f"{picture} differs")
    return said


def temporary(folder: Path) -> list[Path]:
    """List what is left half written below the folders of a run."""
    return [
        path
        for name in ("results", "resources", "benchmarks")
        for pattern in ("*.tmp-*", "*.damaged")
        for path in (folder / name).rglob(pattern)
    ]


# ------------------------------------------------------------------------------------- the table


@dataclass
class Row:
    """The cases of an area."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: set[str] = field(default_factory=set)


class Table:
    """Counts the cases as they are reported: subtests where a test has them, else the test."""

    def __init__(self):
        self.rows: dict[str, Row] = defaultdict(Row)
        self.with_subtests: set[str] = set()

    def pytest_runtest_logreport(self, report):
        if "campaign" not in report.keywords:
            return
        area = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_").replace("_", " ")
        is_subtest = isinstance(report, pytest.SubtestReport)
        if is_subtest:
            self.with_subtests.add(report.nodeid)
            area = report.context.msg or area
        elif report.when == "call" or report.failed or report.skipped:
            self.rows[area].seconds += report.duration
            if report.nodeid in self.with_subtests and not report.skipped:
                return  # its cases are counted
        else:
            self.rows[area].seconds += report.duration
            return
        row = self.rows[area]
        row.passed += report.passed
        row.failed += report.failed
        row.skipped += report.skipped
        if report.skipped and isinstance(report.longrepr, tuple):
            row.reasons.add(report.longrepr[2].removeprefix("Skipped: "))

    def text(self) -> str:
        """Return the table in Markdown."""
        lines = ["| area | cases | passed | failed | seconds |", "|---|---|---|---|---|"]
        total = Row()
        for area, row in sorted(self.rows.items()):
            n = row.passed + row.failed
            if n:
                lines.append(f"| {area} | {n} | {row.passed} | {row.failed} | {row.seconds:.0f} |")
            total.passed += row.passed
            total.failed += row.failed
            total.seconds += row.seconds
        n = total.passed + total.failed
        lines.append(f"| all | {n} | {total.passed} | {total.failed} | {total.seconds:.0f} |")
        skipped = {
            f"{area}: {row.skipped} not run: {'; '.join(sorted(row.reasons))}"
            for area, row in self.rows.items()
            if row.skipped
        }
        return "\n".join([*lines, "", *sorted(skipped)]).rstrip() + "\n"


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist, whose main process hears of all
    if "SCRNA_TEST_CAMPAIGN" in os.environ and not is_worker:
        config.pluginmanager.register(Table(), "campaign-table")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    table = config.pluginmanager.get_plugin("campaign-table")
    if table is None or not any(row.passed + row.failed for row in table.rows.values()):
        return
    file = Path(config.cache.mkdir("campaign")) / "table.md"
    file.write_text(f"Campaign of {datetime.date.today()}\n\n{table.text()}")
    terminalreporter.section(f"campaign; also in {file}")
    terminalreporter.write_line(table.text())
