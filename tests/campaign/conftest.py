"""What the campaign's tests share, and the table of what they found.

``make campaign`` runs all of it. Of `make test` only the cases marked ``campaign(short=True)`` are.
"""

import datetime
import os
import re
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

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
        if re.search(r"\.tmp-|\.damaged/", str(picture)):
            continue  # no result, as its name says
        if "figures" in picture.parts and not np.array_equal(
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


class Case(NamedTuple):
    """A subtest, or a test that has none."""

    area: str
    outcome: str
    reason: str


class Table:
    """Collects the cases of the campaign as they are reported."""

    def __init__(self):
        self.cases: dict[str, list[Case]] = defaultdict(list)
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report):
        if "campaign" not in report.keywords:
            return
        area = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_").replace("_", " ")
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        case = Case(area, report.outcome, reason.removeprefix("Skipped: "))
        cases = self.cases[report.nodeid]
        if isinstance(report, pytest.SubtestReport):
            cases.append(case._replace(area=report.context.msg or area))
            return
        self.seconds[report.nodeid] += report.duration
        is_told = any(case.outcome == report.outcome for case in cases)
        # else it went wrong outside of its subtests, or has none
        if not is_told and (report.when == "call" or not report.passed):
            cases.append(case)

    def text(self) -> str:
        """Return the table in Markdown; the seconds of a test are shared among its cases."""
        areas, seconds, reasons = defaultdict(Counter), Counter(), defaultdict(set)
        for test, cases in self.cases.items():
            for case in cases:
                areas[case.area][case.outcome] += 1
                seconds[case.area] += self.seconds[test] / len(cases)
                if case.outcome == "skipped":
                    reasons[case.area].add(case.reason)
        lines = ["| area | cases | passed | failed | seconds |", "|---|---|---|---|---|"]
        rows = sorted(areas.items())
        rows.append(("all", sum(areas.values(), Counter())))
        seconds["all"] = seconds.total()
        for area, outcomes in rows:
            passed, failed = outcomes["passed"], outcomes["failed"]
            if n := passed + failed:
                lines.append(f"| {area} | {n} | {passed} | {failed} | {seconds[area]:.0f} |")
        lines.append("")
        for area, why in sorted(reasons.items()):
            lines.append(f"{area}: {areas[area]['skipped']} not run: {'; '.join(sorted(why))}")
        return "\n".join(lines).rstrip() + "\n"


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist, whose main process hears of all
    if "SCRNA_TEST_CAMPAIGN" in os.environ and not is_worker:
        config.pluginmanager.register(Table(), "campaign-table")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    table = config.pluginmanager.get_plugin("campaign-table")
    if table is None or not table.cases:
        return
    file = Path(config.cache.mkdir("campaign")) / "table.md"
    file.write_text(f"Campaign of {datetime.date.today()}\n\n{table.text()}")
    terminalreporter.section(f"campaign; also in {file}")
    terminalreporter.write_line(table.text())
