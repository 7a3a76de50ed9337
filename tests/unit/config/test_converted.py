"""Counts that were converted from another source than the present one."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scrna.config.converted import READING, another_source, as_read, current_summary
from scrna.damage import write_json

#: When the conversion of these tests began, and before and after it; seconds.
BEFORE, BEGUN, AFTER = 1_000_000, 2_000_000, 3_000_000
SIZE = 2_000_000


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "a.h5ad"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    os.utime(path, (BEFORE, BEFORE))
    return path


def read(*files: Path) -> dict:
    """Return what counts.json says of files that are converted now."""
    begun = datetime.fromtimestamp(BEGUN, UTC).isoformat(timespec="milliseconds")
    return {"source": [as_read(file) for file in files], "provenance": {"started": begun}}


def change(path: Path, place: int, time: float) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, (time, time))


def test_the_same_file_is_known_again(source, tmp_path):
    facts = read(source)
    assert another_source(facts, [str(source)]) is None
    (tmp_path / "elsewhere").mkdir()
    assert another_source(facts, [shutil.copy2(source, tmp_path / "elsewhere")]) is None


@pytest.mark.parametrize("time", [BEFORE - 1, BEFORE + 1, BEFORE + 0.001])
@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_another_file_of_the_same_size_has_another_time(source, place, time):
    facts = read(source)
    change(source, place, time)
    assert another_source(facts, [source]) == (
        "a.h5ad is another file of the same size: its time of change is another"
    )


@pytest.mark.parametrize("time", [BEFORE, AFTER])
@pytest.mark.parametrize("place", [0, SIZE - 1])
def test_or_other_ends(source, place, time):
    """Files out of an archive may all have one time."""
    facts = read(source)
    change(source, place, time)
    assert another_source(facts, [source]) == "a.h5ad is another file of the same size"


def test_a_touched_file_is_the_same(source):
    """As --touch does with a download; Snakemake itself compares later times."""
    facts = read(source)
    os.utime(source, (AFTER, AFTER))
    assert another_source(facts, [source]) is None


def test_a_small_file_is_compared_as_a_whole(tmp_path):
    path = tmp_path / "matrix.mtx.gz"
    path.write_bytes(bytes(1000))
    facts = read(path)
    change(path, 500, path.stat().st_mtime)
    assert another_source(facts, [path])


def test_other_files_and_sizes_are_named(source, tmp_path):
    facts = read(source)
    other = tmp_path / "b.h5ad"
    other.write_bytes(b"1")
    assert another_source(facts, [other]) == "made from a.h5ad, not from b.h5ad"
    assert another_source(facts, [source, other]) == "made from a.h5ad, not from a.h5ad, b.h5ad"
    source.write_bytes(b"12")
    assert another_source(facts, [source]) == "a.h5ad had 2,000,000 bytes and has 2"


def test_a_file_that_is_not_there_tells_nothing(source):
    """A download that was removed is fetched again first."""
    facts = read(source)
    source.unlink()
    assert another_source(facts, [source]) is None


def test_the_summary_of_an_older_version_is_compared_by_what_it_has(source):
    facts = {"source": [{"path": str(source), "bytes": SIZE}]}
    assert another_source(facts, [source]) is None
    source.write_bytes(b"12")
    assert another_source(facts, [source]) == "a.h5ad had 2,000,000 bytes and has 2"


def test_a_summary_is_current_or_tells_nothing(source, tmp_path):
    dataset = dict.fromkeys(READING) | {"kind": "h5ad"}
    facts = read(source)
    facts["provenance"] |= {
        "parameters": dict(dataset),
        "named": {"simulate": {"n_obs": 100, "seed": 0}},
    }
    summary = tmp_path / "counts.json"

    def found(dataset=dataset, files=(source,), **simulate):
        return current_summary(summary, files, dataset, simulate or None)

    assert found() is None
    write_json(summary, facts)
    assert found() is None  # the store is missing
    (tmp_path / "counts.zarr").mkdir()
    assert found() == facts
    assert found(n_obs=100, seed=0) == facts
    assert found(n_obs=100, seed=1) is None
    assert found(dataset | {"matrix": "raw.X"}) is None
    assert found(files=[tmp_path / "other.h5ad"]) is None
    os.utime(summary, (BEFORE - 1, BEFORE - 1))  # the source is newer: it is converted again
    assert found() is None
    summary.write_text(summary.read_text().replace("h5ad", "h5"))
    assert found() is None  # damaged
