import json
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from snakemake.iocontainers import Namedlist

import scrna
from scrna.data import step_files
from scrna.engine import run as engine_run
from scrna.errors import UserError
from scrna.log import log
from scrna.provenance import note, provenance
from scrna.resources import gpus
from scrna.step import start_gpu, step
from scrna.workflow.rule import run


@step
def measure(counts, out, *, width, names=("a", "b"), backend="cpu", **more):
    step_files.write(out, {"obs/width": np.array([width])})


def test_what_is_written_carries_how_it_came_to_be(tmp_path):
    step_files.write(tmp_path / "in.h5", {"obs/a": np.arange(3)})
    before = datetime.now(UTC) - timedelta(seconds=1)
    measure(tmp_path / "in.h5", tmp_path / "out.h5", width=2.5, height=None, deep={"x": [1, (2,)]})
    record = step_files.provenance_of(tmp_path / "out.h5")
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
        "inputs": {"counts": step_files.digest_of(tmp_path / "in.h5")},
        "worker": "own process",
    }


def test_a_list_of_inputs_has_a_list_of_digests(tmp_path):
    @step
    def gather(steps, missing, out):
        return provenance()["inputs"]

    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for n, path in enumerate(paths):
        step_files.write(path, {"obs/a": np.arange(n)})
    found = gather(paths, [tmp_path / "source.mtx"], tmp_path / "out.h5")
    assert found == {"steps": [step_files.digest_of(path) for path in paths]}


def test_versions_of_what_is_not_imported_are_left_out(tmp_path):
    program = f"""
        import json, sys
        sys.path.append({str(Path(scrna.__file__).parents[1])!r})
        from scrna.provenance import provenance
        from scrna.step import step
        print(json.dumps(step(lambda: provenance())()["versions"]))
        print([name for name in ("anndata", "pandas", "scanpy", "zarr") if name in sys.modules])
    """
    said = python(program).stdout.splitlines()
    assert set(json.loads(said[0])) == {"python", "numpy"}
    assert said[1] == "[]"  # a step on tables starts without them


def test_what_a_step_finds_is_noted():
    @step
    def find():
        note("recall", {"of": (0.97, Path("x"))})
        return provenance()

    note("recall", 1)  # outside a step: nowhere to go
    assert find()["recall"] == {"of": [0.97, "x"]}
    assert provenance() == {}


def test_what_a_step_warns_of_is_kept_with_its_result(tmp_path):
    @step
    def warn(out):
        log.info("all is well")
        for n in (1, 2, 2):
            log.warning("%d cells are odd", n)
        warnings.warn("a library's own business", FutureWarning, stacklevel=1)
        step_files.write(out, {})

    before = list(log.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = scrna.log._log_warning
        warn(tmp_path / "a.h5")
    found = step_files.provenance_of(tmp_path / "a.h5")["warnings"]
    assert found == ["1 cells are odd", "2 cells are odd"]
    assert log.filters == before

    @step
    def be_quiet():
        return provenance()

    assert "warnings" not in be_quiet()


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


CONFIG = {
    "gpu": {"memory": "pool", "pool_gb": 1, "limit_gb": None},
    "gpus": "all",
    "memory": {"headroom_gb": 3, "wait_s": 4},
    "dask": {"scheduler": None, "protocol": "tcp", "threads": 5},
    "worker": "none",
}


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
        self.config = CONFIG


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


class Peak:
    """A stand-in for `scrna.resources.gpu_memory.MemoryPeak`."""

    def __init__(self, gpu):
        self.start_bytes, self.peak_bytes = 10, None

    def __enter__(self):
        self.peak_bytes = 30
        return self

    def __exit__(self, *_):
        self.peak_bytes = 40


@pytest.fixture
def fake_gpus(monkeypatch):
    """Two GPUs that are not there; what is done with them."""
    from scrna import backend
    from scrna.data import row_blocks
    from scrna.resources import admission, gpu_memory, gpu_pool, gpus, locks

    done = []
    found = [SimpleNamespace(index=n, uuid=f"GPU-{n}", name="H200", unified=False) for n in (3, 1)]
    start_gpu.cache_clear()
    monkeypatch.setattr(gpus, "resolve_backend", lambda asked: done.append(asked))
    monkeypatch.setattr(backend, "load", lambda name: done.append(("load", name)))
    monkeypatch.setattr(gpus, "visible_gpus", lambda: found)
    monkeypatch.setattr(gpu_memory, "MemoryPeak", Peak)
    monkeypatch.setattr(locks, "gpu_lock", lambda *about: done.append(("lock", *about)))
    monkeypatch.setattr(gpu_pool, "start_gpu", lambda **how: done.append(("start", how)))
    monkeypatch.setattr("scrna.provenance.gpu_facts", lambda: {"device": "NVIDIA GB10"})
    for module in (admission, row_blocks):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "configure", lambda name=name, **how: done.append((name, how)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    yield done
    start_gpu.cache_clear()


def test_a_gpu_step_imports_then_locks_then_sets_up_the_memory(tmp_path, fake_gpus):
    @step
    def umap(*, backend):
        known = provenance()
        fake_gpus.append((known["device"], known["memory_peak_bytes"]))

    run(umap, Rule(tmp_path, params={"settings": {"backend": "gpu"}}))
    gpu = CONFIG["gpu"]
    assert fake_gpus == [
        "gpu",
        ("load", "gpu"),
        ("lock", "umap pbmc3k/pca", 1),  # in one order, or two runs would wait for each other
        ("lock", "umap pbmc3k/pca", 3),
        ("start", gpu),
        ("admission", {"headroom_gb": 3, "wait_s": 4, "limit_gb": None}),
        ("row_blocks", {"gpus": 2, "threads": 5, "protocol": "tcp", "gpu": gpu}),
        ("NVIDIA GB10", 30),
    ]
    beside = json.loads((tmp_path / "benchmarks/umap.memory.json").read_text())
    assert beside == {"start_bytes": 10, "peak_bytes": 40, "source": "NVML"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"


def test_a_gpu_step_sees_the_gpus_that_are_asked_for(tmp_path, fake_gpus):
    rule = Rule(tmp_path, params={"settings": {"backend": "gpu"}})
    rule.config = CONFIG | {"gpus": "1"}
    run(step(lambda *, backend: None), rule)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"


@pytest.mark.parametrize(
    ("asked", "chosen"), [("all", [3, 1]), (1, [3]), (2, [3, 1]), ("1", [1]), ("1,3", [3, 1])]
)
def test_gpus_are_chosen_by_count_or_number(fake_gpus, asked, chosen):
    assert [gpu.index for gpu in gpus.chosen_gpus(asked)] == chosen


@pytest.mark.parametrize("asked", [3, "0", "1,2"])
def test_gpus_that_are_not_there_are_refused(fake_gpus, asked):
    with pytest.raises(UserError, match=f"gpus is {asked!r}, but the GPUs here are: 3 .H200., 1"):
        gpus.chosen_gpus(asked)


def test_a_cluster_of_several_gpus_is_not_to_be_had_without_credentials(fake_gpus):
    config = CONFIG | {"dask": CONFIG["dask"] | {"protocol": "ucx"}}
    with pytest.raises(UserError, match="any user of this machine could run code"):
        engine_run.begin(config, "gpu", [])


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
from scrna.step import step
from scrna.workflow.rule import run

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


def test_a_file_that_cannot_be_written_ends_a_step_and_does_not_crash_it(tmp_path):
    """A limit of a file's size, which HDF5 takes as it takes a full disk."""
    body = f"""
import resource
from pathlib import Path
import numpy as np
from scrna.data import step_files
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
many = {{str(i): np.arange(50) for i in range(500)}}
step_files.write(Path({str(tmp_path / "a.h5")!r}), {{"uns/many": many}})"""
    ended, logged = run_elsewhere(tmp_path, body)
    assert ended.returncode == 1  # -11 would be a crash
    assert ended.stderr == "[filter pbmc3k] OSError: [Errno 27] File too large\n"
    assert "OSError: [Errno 27] File too large" in logged
    assert [path.name for path in tmp_path.iterdir()] == ["filter.log"]


def test_a_full_disk_leaves_no_file_of_hdf5_open(tmp_path):
    """A warm worker goes on in the same process."""
    program = f"""
import gc, resource, sys
sys.path.append({str(Path(scrna.__file__).parents[1])!r})
from pathlib import Path
import numpy as np
from scrna.data import step_files
from scrna.step import step

@step
def many(out, *, n):
    step_files.write(out, {{f"uns/{{i}}": {{"a": np.arange(50)}} for i in range(n)}})

limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limit[1]))
out = Path({str(tmp_path / "a.h5")!r})
try:
    many(out, n=300)
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
many(out, n=300)
gc.collect()
print(len(step_files.read_all(out)))
"""
    ended = python(program)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "[Errno 27] File too large\n300\n"


def test_warnings_of_libraries_go_to_the_log(tmp_path):
    body = "warnings.warn('graph is not connected', RuntimeWarning)\nlog.info('%d cells', 5)"
    ended, logged = run_elsewhere(tmp_path, body)
    assert ended.returncode == 0
    assert ended.stdout == ""  # a rule's process ends with its step
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
