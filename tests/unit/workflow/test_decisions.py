"""A run's decisions, and jobs that go by them."""

import pytest

from scrna.workflow.decisions import decided


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("SCRNA_COLOUR", raising=False)
    monkeypatch.setattr("os.environ", dict(__import__("os").environ))


def never():
    raise AssertionError("a job decides nothing")


def test_jobs_go_by_what_the_run_decided():
    assert decided("colour", lambda: ("red", "a line"), is_main=True) == ("red", "a line")
    assert decided("colour", never, is_main=False) == ("red", None)
    assert decided("colour", lambda: ("blue", None), is_main=True) == ("blue", None)
    assert decided("colour", never, is_main=False) == ("blue", None)


def test_a_job_that_was_told_nothing_decides():
    assert decided("colour", lambda: ("red", "a line"), is_main=False) == ("red", "a line")
