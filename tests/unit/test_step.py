import json
import logging
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from snakemake.iocontainers import Namedlist

import scrna
from scrna import slots
from scrna.errors import UserError
from scrna.log import log
from scrna.step import provenance, run, step


@step
def measure(counts, out, *, width, names=("a", "b"), backend="cpu", **more):
    slots.write(out, {"obs/width": np.array([width])})


def test_what_is_written_carries_how_it_came_to_be(tmp_path):
    slots.write(tmp_path / "in.h5", {"obs/a": np.arange(3)})
    before = datetime.now(UTC) - timedelta(seconds=1)
    measure(tmp_path / "in.h5", tmp_path / "out.h5", width=2.5, height=None, deep={"x": [1, (2,)]})
    record = slots.provenance_of(tmp_path / "out.h5")
    started = datetime.fromisoformat(record.pop("started"))
    assert before < started < datetime.now(UTC)
    assert 0 <= record.pop("seconds") < 5
    versions = record.pop("versions")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["numpy"] == np.__version__
    assert record == {
        "step": "measure",
        "backend": "cpu",
        "parameters": {"width": 2.5, "names": ["a", "b"], "height": None, "deep": {"x": [1, [2]]}},
        "inputs": {"counts": slots.digest_of(tmp_path / "in.h5")},
    }


def test_a_list_of_inputs_has_a_list_of_digests(tmp_path):
    @step
    def gather(steps, missing, out):
        return provenance()["inputs"]

    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for n, path in enumerate(paths):
        slots.write(path, {"obs/a": np.arange(n)})
    found = gather(paths, [tmp_path / "source.mtx"], tmp_path / "out.h5")
    assert found == {"steps": [slots.digest_of(path) for path in paths]}


def test_versions_of_what_is_not_imported_are_left_out(tmp_path):
    program = f"""
        import json, sys
        sys.path.append({str(Path(scrna.__file__).parents[1])!r})
        from scrna.step import provenance, step
        print(json.dumps(step(lambda: provenance())()["versions"]))
        print([name for name in ("anndata", "pandas", "scanpy", "zarr") if name in sys.modules])
    """
    said = python(program).stdout.splitlines()
    assert set(json.loads(said[0])) == {"python", "numpy"}
    assert said[1] == "[]"  # a step on tables starts without them


def test_there_is_no_provenance_outside_a_step_and_after_an_error():
    @step
    def fail():
        raise ValueError(provenance()["step"])

    assert provenance() == {}
    with pytest.raises(ValueError, match=r"^fail$"):
        fail()
    assert provenance() == {}


def test_a_step_within_a_step_has_its_own_provenance():
    @step
    def inner(*, size):
        return provenance()

    @step
    def outer(*, size):
        return inner(size=1), provenance()

    first, second = outer(size=2)
    assert (first["step"], first["parameters"]) == ("inner", {"size": 1})
    assert (second["step"], second["parameters"]) == ("outer", {"size": 2})


def test_a_step_keeps_name_text_and_result_and_says_how_long_it_took(caplog):
    @step
    def answer(*, backend):
        """Answer."""
        return 42

    caplog.set_level(logging.INFO, "scrna")
    assert answer(backend="cpu") == 42
    assert (answer.__name__, answer.__doc__) == ("answer", "Answer.")
    assert caplog.messages == ["answer done in 0.0 s on the CPU"]


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"missing a required keyword-only argument: .width."):
        measure("a", "b")


# -------------------------------------------------------------------------------------------- run


class Rule:
    """What Snakemake puts into a script."""

    def __init__(self, folder, *, inputs=None, outputs=None, params=None, log=True, threads=1):
        self.rule = "umap"
        self.wildcards = Namedlist(fromdict={"dataset": "pbmc3k", "rep": "pca"})
        self.input = Namedlist(fromdict=inputs or {})
        self.output = Namedlist(fromdict=outputs or {})
        self.params = Namedlist(fromdict=params or {})
        self.log = Namedlist([str(folder / "logs/umap.log")] if log else [])
        self.threads = threads
        self.config = {"gpu": {"memory": "pool", "pool_gb": 1}}


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    """Put back what `run` sets up for the whole process."""
    for name in ("SCRNA_SNAKEMAKE_PID", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = log.handlers, log.level, log.propagate
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers, log.level, log.propagate = before


def test_a_rules_files_and_settings_become_arguments(tmp_path):
    given = {}

    @step
    def umap(counts, steps, out, *, min_dist, threads, required_obs):
        given.update(locals())
        log.info("moved %d cells", 3)

    rule = Rule(
        tmp_path,
        inputs={"counts": "a/counts.zarr", "steps": ["b.h5", "c.h5"]},
        outputs={"out": "d.h5"},
        params={
            "settings": {"min_dist": 0.5},
            "untracked": {"required_obs": ["x"]},
            "code": "1234",
        },
        threads=3,
    )
    run(umap, rule)
    del given["given"]
    assert given == {
        "counts": Path("a/counts.zarr"),
        "steps": [Path("b.h5"), Path("c.h5")],
        "out": Path("d.h5"),
        "min_dist": 0.5,
        "threads": 3,
        "required_obs": ["x"],
    }
    assert os.environ["NUMBA_NUM_THREADS"] == "3"
    lines = (tmp_path / "logs/umap.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines[:2]] == [
        "INFO moved 3 cells",
        "INFO umap done in 0.0 s on the CPU",
    ]
    assert lines[2].endswith("s since the process started")


def test_threads_are_given_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "7")  # the user's own stays
    given = []

    @step
    def umap(*, seed):
        given.append(seed)

    run(umap, Rule(tmp_path, params={"settings": {"seed": 1}}, threads=3))
    assert given == [1]
    assert os.environ["NUMBA_NUM_THREADS"] == "7"


def test_a_rule_may_have_no_settings_and_no_log(tmp_path, capsys):
    run(step(lambda: log.info("done")), Rule(tmp_path, log=False))
    assert capsys.readouterr().err.startswith("[umap pbmc3k/pca] done\n")
    assert not list(tmp_path.iterdir())


def test_a_gpu_step_imports_then_locks_then_sets_up_the_memory(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from scrna import backend, lock, machine

    done = []
    gpu = SimpleNamespace(index=2, name="NVIDIA GB10")
    monkeypatch.setattr(backend, "load", lambda name: done.append(("load", name)))
    monkeypatch.setattr(machine, "gpus", lambda: [gpu])
    monkeypatch.setattr(lock, "gpu_lock", lambda *about: done.append(("lock", *about)))
    monkeypatch.setattr(backend, "start_gpu", lambda **how: done.append(("start", how)))
    monkeypatch.setattr(backend, "gpu_record", lambda: {"device": "NVIDIA GB10"})

    @step
    def umap(*, backend):
        done.append(provenance()["device"])

    run(umap, Rule(tmp_path, params={"settings": {"backend": "gpu"}}))
    assert done == [
        ("load", "gpu"),
        ("lock", "umap pbmc3k/pca", 2),
        ("start", {"memory": "pool", "pool_gb": 1}),
        "NVIDIA GB10",
    ]


def python(program):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "SCRNA_SNAKEMAKE_PID"},
    )


def run_elsewhere(folder, body):
    """Run a step in a process of its own, as Snakemake does."""
    program = f"""
import sys, warnings
from types import SimpleNamespace
sys.path.append({str(Path(scrna.__file__).parents[1])!r})
from scrna.errors import UserError
from scrna.log import log
from scrna.step import run, step

@step
def filter_cells():
{textwrap.indent(body, "    ")}

run(filter_cells, SimpleNamespace(
    rule="filter", wildcards=["pbmc3k"], input={{}}, output={{}}, params={{}}, threads=1,
    log=[{str(folder / "filter.log")!r}], config={{}},
))
print("went on")
"""
    ended = python(program)
    return ended, (folder / "filter.log").read_text()


def test_a_users_error_is_its_message_on_the_terminal_and_its_traceback_in_the_log(tmp_path):
    body = "raise UserError('no gene is left:\\n lower min_cells')"
    ended, logged = run_elsewhere(tmp_path, body)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == "[filter pbmc3k] no gene is left:\n lower min_cells\n"
    assert "ERROR no gene is left:\n lower min_cells\n" in logged
    assert "Traceback (most recent call last):" in logged
    assert "in filter_cells" in logged
    assert "scrna.errors.UserError: no gene is left" in logged


def test_another_error_is_named_on_the_terminal(tmp_path):
    ended, logged = run_elsewhere(tmp_path, "{}['total_counts']")
    assert ended.returncode == 1
    assert ended.stderr == "[filter pbmc3k] KeyError: 'total_counts'\n"
    assert "Traceback (most recent call last):" in logged


def test_warnings_of_libraries_go_to_the_log(tmp_path):
    body = "warnings.warn('graph is not connected', RuntimeWarning)\nlog.info('%d cells', 5)"
    ended, logged = run_elsewhere(tmp_path, body)
    assert ended.returncode == 0
    assert ended.stdout == "went on\n"
    said = "graph is not connected (RuntimeWarning in <string>:"
    assert f"WARNING {said}" in logged
    assert f"[filter pbmc3k] {said}" in ended.stderr
    assert "[filter pbmc3k] 5 cells\n" in ended.stderr
    assert "INFO 5 cells\n" in logged


def test_a_log_is_overwritten(tmp_path):
    for message in ("first", "second"):
        run_elsewhere(tmp_path, f"log.info({message!r})")
    assert "first" not in (tmp_path / "filter.log").read_text()


def test_an_error_is_one_that_may_be_caught_as_a_value_error():
    with pytest.raises(ValueError, match="x"):
        raise UserError("x")
