import os
import subprocess
import sys
from pathlib import Path

import pytest

from scrna.errors import UserError
from scrna.workflow import stale
from scrna.workflow.job import Job


def made(name: str, *inputs: str) -> Job:
    return Job(name, ("toy",), frozenset([name, f"{name}.csv"]), frozenset(inputs))


A, B, C = made("a"), made("b", "a"), made("c", "b.csv", "a")
APART, BELOW = made("apart", "elsewhere"), made("below", "c")


def test_what_follows_comes_before_what_it_is_made_from():
    found = stale.following([A, C], [C, BELOW, APART, B, A])
    assert {*found} == {A, B, C, BELOW}
    assert [found.index(m) for m in (BELOW, C, B, A)] == [0, 1, 2, 3]


def test_what_the_run_needs_as_it_is_stays():
    assert stale.following([A], [B, C, BELOW], kept=[B]) == [BELOW, C, A]


def test_a_job_that_reads_what_it_writes_is_no_circle():
    assert stale.following([made("a", "a")], []) == [made("a", "a")]


def test_files_folders_and_links_are_removed_and_what_a_link_points_to_stays(tmp_path):
    folder, target = tmp_path / "store.zarr", tmp_path / "kept"
    (folder / "X").mkdir(parents=True)
    target.mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    for path in (folder, link):
        assert stale.remove(path)
        assert not stale.remove(path)
    assert [*tmp_path.iterdir()] == [target]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    (tmp_path / "results/toy/pca").mkdir(parents=True)
    (tmp_path / "resources").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(work):
    gone, alive = ended(), os.getpid()
    left = [
        "results/toy/.matrix.zarr.tmp-{}/X",
        "results/toy/pca/.umap.h5.tmp-{}",
        "resources/.toy.h5ad.tmp-{}",
    ]
    for name in left:
        for pid in (gone, alive):
            path = Path(name.format(pid))
            path.parent.mkdir(exist_ok=True)
            path.touch()
    other = Path(f"results/toy/pca/.umap.h5.tmp-{alive}9")  # no process has such a number
    other.touch()
    result = Path("results/toy/pca/umap.h5")
    result.touch()
    assert stale.remove_leftovers(["toy"]) == 4
    assert not Path(left[0].format(gone)).parent.exists()
    assert all(Path(name.format(alive)).exists() for name in left)
    assert result.exists()


def test_a_later_process_with_the_same_number_does_not_keep_a_leftover(work):
    path = Path(f"results/toy/.final.zarr.tmp-{os.getpid()}")
    path.mkdir()
    os.utime(path, (1e9, 1e9))
    assert stale.remove_leftovers(["toy"]) == 1


def test_no_hooks_is_refused_in_the_run_and_not_in_its_jobs(monkeypatch):
    class Workflow:
        is_main_process = True

    monkeypatch.setattr(sys, "argv", ["snakemake", "--no-hooks"])
    with pytest.raises(UserError, match="Leave the option away"):
        stale.check_hooks(Workflow)
    Workflow.is_main_process = False
    stale.check_hooks(Workflow)
