"""Damaged results in a real run: named, set aside, and made again by the same command."""

import json

import h5py

from scrna.data import step_files

TARGET = "results/plain/normalize.h5"


def digests(folder):
    """What the steps up to the normalisation have found."""
    results = folder / "results/plain"
    steps = {
        name: step_files.digest_of(results / f"{name}.h5") for name in ("qc", "filter", "normalize")
    }
    return steps | {"counts": json.loads((results / "counts.json").read_text())["digest"]}


def test_what_is_damaged_is_named_and_made_again(fresh):
    work = fresh.over("base.yaml")
    results = work.folder / "results/plain"
    work.run(TARGET)
    first = digests(work.folder)
    shard = results / "counts.zarr/X/data/c/0"
    shard.unlink()
    (results / "normalize.h5").unlink()
    told = work.run(TARGET, fails=True)
    assert "results/plain/counts.zarr/X/data/c/0 is missing" in told
    assert "Run the same command again: it makes counts.zarr anew" in told
    assert not (results / "normalize.h5").exists()
    assert not (results / "counts.zarr").exists()
    work.run(TARGET)
    assert shard.exists()
    assert digests(work.folder) == first
    assert not [*results.glob("*.damaged")]

    with h5py.File(results / "filter.h5") as file:
        place = file["obs/keep"].id.get_offset()
    content = bytearray((results / "filter.h5").read_bytes())
    content[place] ^= 1  # a cell more, or less
    (results / "filter.h5").write_bytes(content)
    (results / "normalize.h5").unlink()
    told = work.run(TARGET, fails=True)
    assert "results/plain/filter.h5 is damaged (obs/keep is not as it was written)" in told
    assert (results / "filter.h5.damaged").exists()
    work.run(TARGET)
    assert digests(work.folder) == first
    assert not [*results.glob("*.damaged")]
