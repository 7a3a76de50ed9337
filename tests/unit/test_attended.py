"""Where a person sits at a terminal, and who else uses a machine."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from scrna import attended
from scrna.resources.host_memory import has_other_users


@pytest.fixture
def answer(monkeypatch, tmp_path):
    """Return what is said at a terminal, outside of all that this test itself may run in."""
    for name in attended.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(attended, "_CONTAINER_FILES", [tmp_path / "dockerenv"])

    def ask(**streams) -> bool:
        known = SimpleNamespace(isatty=lambda: True)
        both = {"stdin": known, "stderr": known} | streams
        monkeypatch.setattr(attended, "sys", SimpleNamespace(**both))
        return attended.is_attended()

    return ask


def test_a_terminal_alone_has_a_person_at_it(answer):
    assert answer()
    for stream in ("stdin", "stderr"):
        assert not answer(**{stream: SimpleNamespace(isatty=lambda: False)})
        assert not answer(**{stream: None})


@pytest.mark.parametrize("name", ["CI", "MAKELEVEL", "SLURM_JOB_ID", "container"])
def test_nobody_waits_in_a_batch_job(answer, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not answer()


def test_nobody_waits_in_a_container(answer, tmp_path):
    (tmp_path / "dockerenv").touch()
    assert not answer()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")
@pytest.mark.parametrize(
    ("uid", "others"), [(0, False), (999, False), (1000, True), (65534, False)]
)
def test_other_users_are_persons_with_a_process(tmp_path, uid, others):
    for pid, owner in (("1", 0), ("17", uid), ("self", 1234)):
        (tmp_path / pid).mkdir()
        os.chown(tmp_path / pid, owner, owner)
    assert has_other_users(proc=Path(tmp_path)) is others
