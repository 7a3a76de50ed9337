"""The GPU's memory and the choice of the backend, on a machine that has one."""

import subprocess
import sys

import pytest

from scrna.resources import gpu_pool, gpus
from scrna.resources.gpus import visible_gpus

pytestmark = pytest.mark.gpu

ALLOCATE = """
import sys
sys.path.append(sys.argv[2])
from scrna.resources import gpu_memory, gpu_pool
gpu_pool.start_gpu(memory=sys.argv[1], pool_gb=1)
import cupy
kept = cupy.zeros(2**24, dtype=cupy.float32)
print(int(kept.sum()), gpu_pool.gpu_record()["gpu_peak_bytes"], gpu_memory.pool_held())
"""


def test_auto_takes_the_gpu():
    found, reason = gpus.resolve_backend("auto")
    assert found == "gpu"
    assert visible_gpus()[0].name in reason


@pytest.mark.parametrize("memory", ["pool", "managed", "cuda"])
def test_allocations_go_through_rmm(memory):
    scripts = next(path for path in sys.path if path.endswith("scripts"))
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, memory, scripts],
        capture_output=True,
        text=True,
        check=True,
    )
    total, peak, held = map(int, done.stdout.split())
    assert total == 0
    assert peak >= 2**26
    # of the pool's first GiB, what the array and its sum do not take is held and free
    assert 2**29 < held < 2**30 if memory == "pool" else held == 0


def test_the_record_names_the_device():
    record = gpu_pool.gpu_record()
    assert record["device"] == visible_gpus()[0].name
    assert record["gpu_peak_bytes"] >= 0
