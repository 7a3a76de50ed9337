"""Damaged results in a real run: named, set aside, and made again by the same command."""

import json

import h5py
import pytest

from scrna.data import step_files

TARGET = "results/plain/normalize.h5"
#: What makes it, the simulation apart.
STEPS = ("convert", "qc", "filter", "normalize")
REPORT = "results/toy/report.html"


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


@pytest.mark.long  # test_damage.py of the unit tests has the parts
def test_counts_whose_summary_is_damaged_are_set_aside_and_converted_again(fresh):
    work = fresh.over("base.yaml", "worker: none")
    results = work.folder / "results/plain"
    work.run(TARGET)
    first, whole = digests(work.folder), (results / "counts.json").read_text()
    for content in ("", whole.replace('"n_obs": ', '"n_obs": 1')):
        (results / "counts.json").write_text(content)
        for _ in range(2):  # a dry run changes nothing
            assert work.due(TARGET) == {f"{rule} plain" for rule in STEPS}
        said = work.run(TARGET)
        assert "results/plain/counts.json is " in said
        assert "counts are set aside as counts.zarr.damaged and counts.json.damaged" in said
        assert digests(work.folder) == first
        assert not [*results.glob("*.damaged")]
        assert work.due(TARGET) == set()

    # what is set aside stays where it cannot be made again
    (results / "counts.json").write_text("")
    broken = work.clone(work.folder.with_name("code"))
    script = broken.code / "scripts/convert.py"
    script.write_text("raise SystemExit('no')\n" + script.read_text())
    broken.run(TARGET, fails=True)
    assert {path.name for path in results.iterdir()} == {
        "counts.zarr.damaged",
        "counts.json.damaged",
    }


@pytest.mark.long
def test_a_picture_that_is_missing_is_drawn_again(done, tmp_path):
    work = done.at(tmp_path / "work").over("worker: none")
    folder, report = (work.folder / f"results/toy/{name}" for name in ("qc/figures", "report.html"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    lost = sorted(before)[0]
    (folder / lost).unlink()
    report.unlink()
    said = work.run(REPORT)
    assert f"toy: qc_figures: results/toy/qc/figures/{lost} is missing; made again" in said
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")}.keys() == before.keys()
    assert report.exists()
    assert work.due(REPORT) == set()
    (folder / lost).unlink()  # also where the report stands
    assert work.due(REPORT) == {"qc_figures toy/qc", "report toy"}
    work.run(REPORT)

    # one that was changed is found by the report, which reads it
    (folder / lost).write_bytes((folder / lost).read_bytes()[:-1] + b"!")
    report.unlink()
    said = work.run(REPORT, fails=True)
    assert f"results/toy/qc/figures/{lost} is damaged (it does not have its checksum)" in said
    assert folder.with_name("figures.damaged").exists()
    work.run(REPORT)
    assert not folder.with_name("figures.damaged").exists()
