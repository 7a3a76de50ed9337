"""Files that are broken, of other programs, or made to do harm: each through the whole workflow."""

import os
import re
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.campaign.test_settings import table
from tests.unit.ingest import test_formats, test_formats_10x, test_hostile_files
from tests.unit.ingest.test_formats_10x import change, write_mtx
from tests.unit.source_reading import counts
from tests.workflow.conftest import _calls

pytestmark = [pytest.mark.campaign, pytest.mark.slow]
SECRET = test_hostile_files.SECRET
WRITE_ALL = (
    test_hostile_files.one_value,
    test_hostile_files.one_value_in_high_chunks,
    test_hostile_files.hidden_in_a_larger_chunk,
)


class Inputs:
    """Makes sources, each in a folder of its own, and keeps what is to be said of them.

    Parameters
    ----------
    folder
        Where they are made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.expected: dict[Path, tuple[str, str]] = {}  # source → area, what is said
        self.good = folder / "good.h5ad"
        obs = pd.DataFrame({"n": 1}, index=[f"cell{i}" for i in range(60)])
        ad.AnnData(counts(), obs=obs).write_h5ad(self.good)
        values = np.full(2400, SECRET, np.int32)
        values.tofile(folder / "private.bin")
        with h5py.File(folder / "private.h5", "w") as file:
            file["X"] = values.reshape(60, 40)

    def add(self, area: str, said: str, name: str = "a.h5ad") -> Path:
        """Return the path of the next source, in a folder of its own."""
        folder = self.folder / str(len(self.expected))
        folder.mkdir()
        self.expected[folder / name] = area, said
        return folder / name

    def h5ad(self, area: str, said: str) -> h5py.File:
        """Return a copy of a good file, open for changes."""
        return h5py.File(shutil.copy(self.good, self.add(area, said)), "a")

    def make(self) -> None:
        """Make all of them."""
        hostile = "files that do harm"
        for damage, said in test_hostile_files.REACHING:
            with self.h5ad(hostile, said) as file:
                damage(file, self.folder / "private")
        loops = test_hostile_files.test_loops_are_refused
        tables = test_hostile_files.test_tables_that_would_fill_the_memory
        for damage, said in [*table(loops), *table(tables)]:
            with self.h5ad(hostile, said) as file:
                damage(file)
        for write, said, _ in test_hostile_files.BOMBS.values():
            if said == "converted":
                continue
            is_folder = write.__name__ == "write"
            path = self.add(hostile, said, "mtx" if is_folder else "a.h5ad")
            if not is_folder and write not in WRITE_ALL:
                shutil.copy(self.good, path)
            write(path)
        for name, link in (("matrix.mtx", "blob"), ("barcodes.tsv", "blob")):
            said = f"{name} is a link that leads out of its folder"
            folder = write_mtx(self.add(hostile, said, "mtx"), counts(), version=2)
            (folder / name).rename(folder.parent / link)
            (folder / name).symlink_to(f"../{link}")
        os.mkfifo(self.add(hostile, "a named pipe|no regular file"))
        self.make_broken("files that are broken or of others")

    def make_broken(self, area: str) -> None:
        """Make those that are no counts, or no longer."""
        for test in (
            test_hostile_files.test_files_of_other_programs,
            test_formats.test_unknown_files_are_refused,
        ):
            for name, content, said in table(test):
                self.add(area, said, name).write_bytes(content)
        for groups, said in table(test_hostile_files.test_hdf5_of_other_programs):
            with h5py.File(self.add(area, said, "a.h5"), "w") as file:
                for group in groups:
                    file.create_group(group)
        for damage, said in table(test_formats.test_what_is_no_matrix):
            with self.h5ad(area, said) as file:
                damage(file["X"])
        for header, said in table(test_formats_10x.test_wrong_sizes_are_refused):
            write_mtx(self.add(area, said, "mtx"), counts(), header=header)
        for old, new, said in table(test_formats_10x.test_damaged_mtx_is_refused):
            folder = write_mtx(self.add(area, said, "mtx"), counts(), version=2)
            change(folder, "matrix.mtx", lambda data, old=old, new=new: data.replace(old, new, 1))


def test_each_is_refused_at_the_start_or_by_the_conversion(fresh, tmp_path, subtests):
    """Those that the start takes go into one run, a dataset each, with a good one among them."""
    inputs = Inputs(tmp_path)
    inputs.make()
    config = {"run": "d", "backend": "cpu", "worker": "none"}
    one_by_one = [
        fresh.over(yaml.safe_dump(config | {"datasets": {"d": {"source": str(path)}}}))
        for path in inputs.expected
    ]
    answers = dict(zip(inputs.expected, _calls(one_by_one, (), "--dry-run"), strict=True))
    taken = [path for path, (status, _) in answers.items() if status == 0]
    names = {path: f"d{number}" for number, path in enumerate(taken)}
    datasets = {name: {"source": str(path)} for path, name in names.items()}
    datasets["good"] = {"source": str(inputs.good)}
    workflow = fresh.over(yaml.safe_dump(config | {"run": [*datasets], "datasets": datasets}))
    targets = [f"results/{name}/counts.json" for name in datasets]
    output = workflow.run(*targets, fails=True, timeout=900)
    assert "Traceback" not in output
    for path, (area, expected) in inputs.expected.items():
        with subtests.test(area, file=path.name, expected=expected):
            said = answers[path][1]
            if path in names:
                name = names[path]
                said = "\n".join(re.findall(rf"^\[convert {name}\] (.*)", output, re.MULTILINE))
            assert re.search(expected, said), said
            assert "Traceback" not in said
            if path in names:
                assert [*workflow.folder.glob(f"results/{name}/*")] == []
    with subtests.test("files that do harm", file="a good one among them"):
        found = ad.read_zarr(workflow.folder / "results/good/counts.zarr").X
        assert (found != counts()).nnz == 0
    made = [path for path in workflow.folder.rglob("*") if path.is_file()]
    secret = np.full(4, SECRET, np.int32).tobytes()
    assert [path for path in made if secret in path.read_bytes()] == []
