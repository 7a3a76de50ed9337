"""The worker on the GPU: its steps, how quickly it answers, and what it leaves behind."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scrna.data import step_files
from scrna.engine import protocol, run
from scrna.processes import process_start
from scrna.resources import gpu_memory
from scrna.resources.gpus import visible_gpus
from scrna.resources.locks import gpu_lock
from tests.unit.engine.toys import eventually, runtime

pytestmark = pytest.mark.gpu

SCRIPTS = protocol.SCRIPTS
CONFIG = {
    "worker": "warm",
    "worker_keep_minutes": 0,
    "gpus": 1,
    "gpu": {"memory": "async", "pool_gb": 1, "limit_gb": None},
    "memory": {"headroom_gb": 1, "wait_s": 30},
    "dask": {"scheduler": None, "protocol": "tcp", "threads": 2},
}
#: What Snakemake does: a script run as a program, with `snakemake` in it.
DRIVER = """
import json, runpy, sys
from types import SimpleNamespace
sys.path.append(sys.argv[1])
rule = SimpleNamespace(**json.loads(sys.argv[3]))
runpy.run_path(sys.argv[2], {"snakemake": rule}, "__main__")
"""
TOY = """
import os, time
import numpy as np
from scrna.data import step_files
from scrna.step import step
from scrna.workflow.rule import run

@step
def toy(out, *, gb, fails, backend):
    import cupy
    taken = cupy.zeros(int(gb * 2**30), dtype=cupy.uint8)
    sums = np.array([int(taken.sum())])
    step_files.write(out, {"obs/pid": np.array([os.getpid()]), "obs/sum": sums})
    time.sleep(0.3)  # the memory is sampled
    if fails:
        cupy.zeros(2**50, dtype=cupy.uint8)

if __name__ == "__main__":
    run(toy, snakemake)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Start an engine on the GPU; give the function that runs a rule there."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch, runtime():
        patch.chdir(folder)
        patch.setenv(protocol.VARIABLE, "")
        start = time.perf_counter()
        engine = run.begin(CONFIG, "gpu", ["neighbors"])

        def status() -> dict:
            connection, known = run._ask(engine._path, "status")
            connection.close()
            return known

        eventually(lambda: status()["is_ready"])
        print(f"the worker was ready after {time.perf_counter() - start:.1f} s")

        def in_worker(script: Path, files: dict, **settings) -> tuple[int, str, float]:
            rule = {
                "rule": script.stem,
                "wildcards": ["toy"],
                "input": {},
                "output": {name: str(path) for name, path in files.items()},
                "params": {"settings": {"backend": "gpu"} | settings},
                "log": [f"logs/{script.stem}.log"],
                "threads": 2,
                "config": CONFIG,
            }
            command = [sys.executable, "-c", DRIVER, str(SCRIPTS), str(script), json.dumps(rule)]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            print(f"{script.stem}: {seconds:.2f} s\n{done.stderr}")
            return done.returncode, done.stderr, seconds

        in_worker.folder, in_worker.status = folder, status
        yield in_worker
        server = status()["pid"]
        engine.close()
        eventually(lambda: process_start(server) is None, 10)


def used() -> int:
    """Bytes in use on the first GPU."""
    memory = gpu_memory.available_memory(visible_gpus()[0])
    return memory.total - memory.available


def toy(warm, name: str, *, gb: float = 0.0, fails: bool = False) -> tuple[int, str, float]:
    out = warm.folder / f"{name}.h5"
    return warm(warm.folder / "toy.py", {"out": out}, gb=gb, fails=fails)


def test_a_step_that_does_nothing_takes_no_time(warm):
    assert toy(warm, "first")[0] == 0
    code, _, seconds = toy(warm, "second")
    assert code == 0
    assert seconds < 1.5
    first, second = (
        step_files.read(warm.folder / f"{n}.h5", "obs/pid") for n in ("first", "second")
    )
    assert first == second  # one process
    facts = json.loads((warm.folder / "benchmarks/toy.memory.json").read_text())
    assert 0 < facts["start_bytes"] <= facts["peak_bytes"]


def test_real_steps_run_in_the_worker(warm, settings):
    from scripts.convert import convert
    from scrna.ingest.simulate import Simulation

    folder = warm.folder
    Simulation(n_obs=3000, n_vars=800, n_types=4, seed=0).write_h5ad(folder / "toy.h5ad")
    convert(folder / "toy.h5ad", folder / "counts.zarr", folder / "counts.json", dataset="toy")
    qc = SCRIPTS / "qc.py"
    files = {"counts": folder / "counts.zarr", "out": folder / "qc.h5"}
    assert warm(qc, files, **settings("qc"))[0] == 0
    from scripts.qc import qc as here

    here(folder / "counts.zarr", folder / "here.h5", **settings("qc", backend="cpu"))
    there = step_files.read_all(folder / "qc.h5")
    for name, values in step_files.read_all(folder / "here.h5").items():
        if "log1p" not in name:
            assert (there[name] == values).all() or values.dtype.kind == "f"
    assert step_files.provenance_of(folder / "qc.h5")["worker"] == "warm"
    assert step_files.provenance_of(folder / "qc.h5")["memory_peak_bytes"] > 0
    components = np.random.default_rng(0).normal(size=(3000, 20))
    step_files.write(folder / "pca.h5", {"obsm/X_pca": components.astype(np.float32)})
    files = {"representation_of": folder / "pca.h5", "out": folder / "neighbors.h5"}
    asked = settings("neighbors", n_pcs=20, seed=0)
    assert warm(SCRIPTS / "neighbors.py", files, **asked)[0] == 0
    code, _, seconds = warm(SCRIPTS / "neighbors.py", files, **asked)
    assert code == 0
    assert seconds < 2.5  # 6 s and more in a process of its own
    graph = step_files.read(folder / "neighbors.h5", "obsp/connectivities")
    assert graph.shape == (3000, 3000)


def test_a_steps_memory_comes_back(warm):
    assert toy(warm, "small")[0] == 0
    before = used()
    assert toy(warm, "large", gb=4)[0] == 0
    time.sleep(0.5)
    assert used() - before < 0.5 * 2**30
    facts = json.loads((warm.folder / "benchmarks/toy.memory.json").read_text())
    assert facts["peak_bytes"] - before > 3 * 2**30


def test_after_running_out_of_memory_the_next_step_gets_a_clean_process(warm):
    assert toy(warm, "before")[0] == 0
    before = used()
    code, said, _ = toy(warm, "broken", gb=2, fails=True)
    assert code == 1
    assert "emory" in said
    assert toy(warm, "after")[0] == 0
    pids = [
        step_files.read(warm.folder / f"{name}.h5", "obs/pid")[0] for name in ("before", "after")
    ]
    assert pids[0] != pids[1]
    assert used() - before < 0.5 * 2**30


def test_an_idle_worker_gives_its_memory_to_whoever_uses_the_gpu(warm):
    """A pool does not shrink: under `memory: pool` another process takes the worker's place."""
    eventually(lambda: warm.status()["is_ready"])
    assert toy(warm, "idle")[0] == 0
    before = used()
    assert toy(warm, "held", gb=1)[0] == 0
    with gpu_lock("another run's step", visible_gpus()[0].index):
        eventually(lambda: warm.status()["is_ready"] and warm.status()["kept"] == 0, 30)
        eventually(lambda: used() - before < 0.5 * 2**30, 30)
    assert toy(warm, "again")[0] == 0


def test_it_holds_no_lock_while_it_is_idle(warm):
    from scrna.resources.locks import is_gpu_in_use

    assert toy(warm, "last")[0] == 0
    eventually(lambda: not is_gpu_in_use(visible_gpus()[0].index), 5)
