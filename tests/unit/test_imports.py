"""Libraries that are imported in the background."""

import gc
import sys
import textwrap
from threading import Event

import pytest

from scrna import imports


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Make a library that takes a while to import; gives its name."""

    def make(name, body=""):
        slow = f"import time\ntime.sleep(0.3)\n{body}\nis_whole = True\n"
        (tmp_path / f"{name}.py").write_text(slow)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_thread", None)
    monkeypatch.setattr(imports, "_ready", {})
    yield make
    if imports._thread is not None:
        imports._thread.join()
    gc.unfreeze()


def begun(first, *later):
    ended = Event()
    imports.begin(first, None if later else ended.set)
    for library in later:
        imports.begin(library, ended.set, is_first=False)
    return ended


def until_there(file) -> str:
    """Write a library's body that ends once a file is there, and fails after a minute."""
    wait = f"""
    import pathlib
    end = time.monotonic() + 60
    while not pathlib.Path({str(file)!r}).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    """
    return textwrap.dedent(wait)


def test_what_is_needed_is_waited_for_and_whole(library, tmp_path):
    name = library("slow_one", until_there(tmp_path / "go"))
    ended = begun(name)
    (tmp_path / "go").touch()  # the process works on meanwhile
    assert imports.need(name).is_whole
    assert ended.wait(10)


def test_the_first_is_there_before_the_second(library, tmp_path):
    names = library("slow_first"), library("slow_second", until_there(tmp_path / "go"))
    ended = begun(*names)
    assert imports.need(names[0]).is_whole
    assert not ended.is_set()
    (tmp_path / "go").touch()
    assert imports.need(names[1]).is_whole


def test_another_library_waits_for_all(library):
    names = library("slow_one"), library("slow_other")
    begun(names[0])
    imports.need(names[1])
    assert sys.modules[names[0]].is_whole


def test_without_a_thread_it_is_imported_here_and_logged_once(library, caplog):
    caplog.set_level("INFO", "scrna")
    name = library("slow_one")
    assert imports.need(name) is imports.need(name)
    assert caplog.text.count("slow_one imported in 0.") == 1


def test_who_needs_what_fails_is_told_why(library, caplog):
    names = library("slow_broken", "raise RuntimeError('no driver')"), library("slow_one")
    ended = begun(*names)
    with pytest.raises(RuntimeError, match="no driver"):
        imports.need(names[0])
    assert imports.need(names[1]).is_whole  # the others come all the same
    assert ended.wait(10)
    assert "slow_broken could not be imported" in caplog.text


def test_the_interpreter_is_as_before(library):
    interval, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    assert begun(library("slow_one")).wait(10)
    assert sys.getswitchinterval() == interval
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_garbage_of_a_step_that_runs_beside_it_is_still_found(library):
    assert begun(library("slow_one")).wait(10)
    frozen = gc.get_freeze_count()
    ended = Event()
    imports.begin(library("slow_other"), ended.set, is_first=False)
    assert ended.wait(10)
    assert gc.get_freeze_count() <= frozen  # some of it is gone
    assert gc.isenabled()


def test_what_is_being_imported_is_not_begun_twice(library):
    name, ended = library("slow_one"), Event()
    imports.begin(name)
    imports.begin(name, ended.set)
    assert imports.need(name).is_whole
    assert not ended.wait(0.1)
