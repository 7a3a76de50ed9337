"""A working directory that a run cannot write to."""

import os

import pytest

from scrna.errors import UserError
from scrna.workflow.folders import check_writable


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_of_ones_own(work):
    (work / "results").mkdir()
    check_writable()


@pytest.mark.parametrize("name", [".", "results", ".snakemake"])
def test_a_folder_without_the_right_to_write_is_refused(work, monkeypatch, name):
    folder = work / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # as root may
        monkeypatch.setattr(os, "access", lambda path, _: path.stat().st_mode & 0o200 > 0)
    try:
        expected = rf"^{folder.resolve()}, which the run writes to, cannot be written to by "
        with pytest.raises(UserError, match=rf"{expected}.*--directory FOLDER"):
            check_writable()
    finally:
        folder.chmod(0o755)


def test_a_file_in_the_place_of_a_folder_is_refused(work):
    (work / "results").touch()
    with pytest.raises(UserError, match="results, which the run writes to, is no folder: remove"):
        check_writable()


def test_a_user_without_a_name(work, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    with pytest.raises(UserError, match="cannot be written to by user 4000000000"):
        check_writable()
