"""bench/timeline.py: what it reads of a run, and which jobs the end of it waited for."""

import importlib.util
import json
import sys
from base64 import b64encode
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(
        "bench_timeline", REPOSITORY / "bench/timeline.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


#: Rule → its begin, its end, and the files that it reads and makes.
RUN = {
    "convert": (100, 110, [], ["counts.json", "counts.zarr"]),
    "pca": (111, 115, ["counts.zarr"], ["pca.h5"]),
    "umap": (115, 120, ["pca.h5"], ["umap.h5"]),
    "leiden": (120, 121, ["pca.h5"], ["leiden.h5"]),
    "matrix": (110, 124, ["counts.zarr"], ["matrix.zarr"]),
    "figures": (122, 129, ["umap.h5", "leiden.h5"], ["figures"]),
    "final": (125, 127, ["matrix.zarr", "umap.h5", "leiden.h5"], ["final.zarr"]),
    "report": (129.5, 131, ["figures", "leiden.h5"], ["report.html"]),
}


@pytest.fixture
def folder(tmp_path):
    metadata = tmp_path / ".snakemake/metadata"
    metadata.mkdir(parents=True)
    for rule, (start, end, inputs, outputs) in RUN.items():
        record = {"rule": rule, "starttime": start, "endtime": end, "incomplete": False}
        record |= {"input": inputs, "log": [f"logs/toy/{rule}.log"]}
        for name in outputs:
            (metadata / b64encode(name.encode()).decode()).write_text(json.dumps(record))
    unfinished = {"rule": "tsne", "starttime": 120, "endtime": None, "incomplete": True}
    (metadata / b64encode(b"tsne.h5").decode()).write_text(json.dumps(unfinished))
    return tmp_path


def test_jobs_are_read_once_each_in_their_order(bench, folder):
    jobs = bench.jobs_of(folder)
    assert [job.label.split()[0] for job in jobs] == sorted(RUN, key=lambda rule: RUN[rule][:2])
    assert jobs[0].outputs == {"counts.json", "counts.zarr"}
    assert (jobs[0].label, jobs[0].start, jobs[0].end) == ("convert toy", 100, 110)
    assert len(bench.jobs_of(folder, since=122)) == 3


def test_the_critical_path_is_what_the_end_waited_for(bench, folder):
    jobs = bench.jobs_of(folder)
    path = [job.label.split()[0] for job in bench.critical_path(jobs)]
    assert path == ["convert", "pca", "leiden", "figures", "report"]  # leiden ended after umap
    leiden = next(job for job in jobs if job.label.startswith("leiden"))
    assert bench.waited(leiden, jobs, 100) == 5
    assert bench.waited(jobs[0], jobs, 98) == 2


def test_a_job_whose_inputs_were_there_before_the_run_begins_the_path(bench, folder):
    jobs = bench.jobs_of(folder, since=120)
    path = [job.label.split()[0] for job in bench.critical_path(jobs)]
    assert path == ["leiden", "figures", "report"]


def test_the_last_run_is_told_by_its_log(bench, tmp_path):
    assert bench.last_run(tmp_path) == 0
    logs = tmp_path / ".snakemake/log"
    logs.mkdir(parents=True)
    for name in ("2026-01-02T030405.678901", "2026-01-02T030406.000001"):
        (logs / f"{name}.snakemake.log").touch()
    one = bench.datetime(2026, 1, 2, 3, 4, 6).timestamp()
    assert bench.last_run(tmp_path) == one


def test_the_picture_has_a_bar_a_job_and_the_path_in_red(bench, folder):
    jobs = bench.jobs_of(folder)
    (ax,) = bench.draw(jobs, 100).axes
    bars = [bar for bar in ax.patches if bar.get_height() == pytest.approx(0.8)]
    assert [bar.get_width() for bar in bars] == [job.end - job.start for job in jobs]
    assert [bar.get_x() for bar in bars] == [job.start - 100 for job in jobs]
    red = [job.label.split()[0] for job, bar in zip(jobs, bars, strict=True) if _is_red(bench, bar)]
    assert red == ["convert", "pca", "leiden", "figures", "report"]


def _is_red(bench, bar) -> bool:
    from matplotlib.colors import to_rgba

    return bar.get_facecolor() == to_rgba(bench.CRITICAL)
