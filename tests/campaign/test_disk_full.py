"""A disk that is full: said clearly, nothing half written, and room made, all goes on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.campaign.conftest import SHORT, differences, temporary
from tests.campaign.test_kills import OUTPUTS, remove
from tests.campaign.victims import holding

pytestmark = [pytest.mark.campaign, pytest.mark.slow]

#: What HDF5's library prints of a file that it cannot close.
HDF5_ITSELF = re.compile(r'Traceback \(most recent call last\):\n(  File "h5py/.*\n)+')
#: Bytes that are left: a file can be begun, and no result ends.
ROOM = 8192


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of its own, of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a disk cannot be mounted here: {tried.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk but for a little; return the file that does."""
    about = os.statvfs(disk)
    ballast = disk / ".ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_frsize - ROOM)
    return ballast


#: Where the log of a rule lies, where not by its own name.
PLACES = {"trajectory": "pca/trajectory", "figures": "clusters/figures"}
CASES = [
    ("convert", "results"),
    ("matrix", "results"),
    pytest.param("final", "results", marks=SHORT),
    ("report", "results"),
    ("figures", "results"),
    ("trajectory", "results"),
    ("final", "all"),
]


@pytest.mark.parametrize(("rule", "what"), CASES)
def test_a_full_disk(done, tmp_path, monkeypatch, small_disk, rule, what):
    """Results alone lie on it, or all that a run writes."""
    workflow = done.at(tmp_path / "work").over("worker: none")
    moved = workflow.folder / "results" if what == "results" else workflow.folder
    shutil.copytree(moved, small_disk / "work", symlinks=True)
    shutil.rmtree(moved)
    moved.symlink_to(small_disk / "work")
    outputs = [workflow.folder / name for name in OUTPUTS[rule]]
    for output in outputs:
        remove(output)
    target = OUTPUTS[rule][-1]
    log = f"logs/toy/{PLACES.get(rule, rule)}.log"
    # the run has begun, and what it will make again is gone
    with holding(workflow, tmp_path / "hold", monkeypatch, log, target) as held:
        ballast = fill(small_disk)
        (tmp_path / "hold/held").unlink()
        assert held.run.wait(timeout=120) == 1
    printed = held.output.read_text()
    assert "The disk is full. Make room where results/" in printed
    assert "Traceback" not in HDF5_ITSELF.sub("", printed)
    assert not any(output.exists() for output in outputs)
    assert temporary(workflow.folder) == []
    ballast.unlink()
    workflow.run(target)
    assert all(output.exists() for output in outputs)
    assert differences(workflow.folder / "results", done.folder / "results") == []
    assert workflow.due(target) == set()
