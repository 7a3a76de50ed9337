"""What the machine is said to have, with the driver and the kernel's files replaced."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from scrna.errors import UserError
from scrna.resources import gpu_memory, gpus, host_memory

GIB = 2**30


def device(index, *, name="NVIDIA H200", capability=(9, 0), total=140 * GIB, free=100 * GIB):
    return SimpleNamespace(
        index=index, uuid=f"GPU-{index}a0b-c0de", name=name, capability=capability,
        memory=SimpleNamespace(total=total, free=free) if total else None, allowed=True,
    )  # fmt: skip


GB10 = device(7, name="NVIDIA GB10", capability=(12, 1), total=None)


@pytest.fixture
def driver(monkeypatch):
    """Replace NVML's functions by ones that know the devices this returns; count open sessions."""
    state = SimpleNamespace(devices=[], mig={}, cuda=13000, sessions=0)

    def by_index(index):
        if not state.devices[index].allowed:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return state.devices[index]

    def by_uuid(uuid):
        known = {one.uuid: one for one in state.devices} | state.mig
        if uuid not in known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return known[uuid]

    def memory(handle):
        if handle.memory is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.memory

    def session(change):
        state.sessions += change

    fakes = {
        "nvmlInit": lambda: session(1),
        "nvmlShutdown": lambda: session(-1),
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlSystemGetCudaDriverVersion": lambda: state.cuda,
        "nvmlDeviceGetCount": lambda: len(state.devices),
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: handle.parent,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetIndex": lambda handle: handle.index,
        "nvmlDeviceGetUUID": lambda handle: handle.uuid,
        "nvmlDeviceGetName": lambda handle: handle.name,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: handle.capability,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield state
    assert state.sessions == 0


@pytest.fixture
def rapids(monkeypatch):
    """Pretend that rapids-singlecell is installed, or not."""
    state = SimpleNamespace(installed=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: state.installed or None)
    return state


def proc(folder, *, total=128 * GIB, available=100 * GIB, cgroup=None):
    """Write /proc as far as it is read: `total` and `available` in bytes, the cgroup's lines."""
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(
        f"MemTotal:       {total // 1024} kB\nMemFree:        1024 kB\n"
        f"MemAvailable:   {available // 1024} kB\nHugePages_Total:       0\n"
    )
    if cgroup is not None:
        (folder / "self/cgroup").write_text(cgroup)
    return folder


def cgroup_v2(folder, limit, used=0, inactive_file=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


def test_gpus_are_described(driver):
    driver.devices = [device(0), GB10]
    h200, gb10 = gpus.visible_gpus()
    assert h200 == gpus.Gpu(
        index=0, uuid="GPU-0a0b-c0de", name="NVIDIA H200", compute_capability=(9, 0),
        memory_total=140 * GIB, unified=False, driver="580.95.05",
    )  # fmt: skip
    assert (gb10.memory_total, gb10.unified, gb10.compute_capability) == (None, True, (12, 1))
    assert gpus.gpu_problem() is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("1,9,0", [1]),  # what follows an entry that names none is not read
        ("0,-1,1", [0]),
        ("GPU-2a0b-c0de", [2]),
        ("GPU-1a,0", [1, 0]),  # the beginning of a UUID is enough
        ("GPU-", []),  # but not where several begin so
        ("1,1", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(driver, monkeypatch, asked, expected):
    driver.devices = [device(0), device(1), device(2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert [gpu.index for gpu in gpus.visible_gpus()] == expected
    if not expected:
        assert gpus.gpu_problem() == f"CUDA_VISIBLE_DEVICES={asked!r} hides every GPU"


def test_gpus_of_others_are_not_counted(driver, monkeypatch):
    driver.devices = [device(0), device(1), device(2)]
    driver.devices[0].allowed = False
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in gpus.visible_gpus()] == [2]


def test_mig_instance_has_its_own_memory(driver, monkeypatch):
    driver.devices = [device(0), device(1)]
    instance = device(5, name="NVIDIA H200 MIG 1g.18gb", total=16 * GIB, free=15 * GIB)
    instance.uuid, instance.parent, instance.capability = "MIG-77", driver.devices[1], None
    driver.mig = {"MIG-77": instance}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-77")
    (gpu,) = gpus.visible_gpus()
    assert (gpu.index, gpu.compute_capability, gpu.memory_total) == (1, (9, 0), 16 * GIB)
    assert gpu_memory.available_memory(gpu) == host_memory.Memory(16 * GIB, 15 * GIB, "NVML")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-78")
    assert gpus.visible_gpus() == []


def test_problems_are_named(driver, monkeypatch):
    assert "finds no GPU" in gpus.gpu_problem()
    driver.devices = [device(0, name="Tesla P100", capability=(6, 0)), device(1)]
    assert gpus.gpu_problem() == (
        "GPU 0 (Tesla P100) has compute capability 6.0, RAPIDS needs 7.5 or newer"
    )
    driver.devices = [device(0, capability=(7, 5))]
    assert gpus.gpu_problem() is None
    driver.cuda = 12040
    assert gpus.gpu_problem() == (
        "the NVIDIA driver 580.95.05 goes up to CUDA 12.4, RAPIDS needs a driver for CUDA 13"
    )


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "does not answer: .*Not Loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "does not answer: "),
    ],
)
def test_driver_that_does_not_start(monkeypatch, code, problem):
    def init():
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    monkeypatch.setattr(pynvml, "nvmlErrorString", lambda code: "Driver Not Loaded", raising=False)
    assert gpus.visible_gpus() == []
    with pytest.raises(UserError, match=problem):
        gpus.resolve_backend("gpu")


def test_gpu_lost_while_asked(driver, monkeypatch):
    def lost(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    driver.devices = [device(0)]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)
    assert gpus.visible_gpus() == []
    assert "does not answer" in gpus.gpu_problem()


def test_without_nvidia_ml_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.visible_gpus() == []
    assert "nvidia-ml-py" in gpus.gpu_problem()
    assert gpus.resolve_backend("auto")[0] == "cpu"


def test_backend_gpu(driver, rapids, tmp_path, monkeypatch):
    driver.devices = [device(0)]
    expected = ("gpu", "backend: gpu (NVIDIA H200, memory 140.0 GiB)")
    assert gpus.resolve_backend("auto") == gpus.resolve_backend("gpu") == expected
    driver.devices = [GB10]
    fake = proc(tmp_path, total=int(121.7 * GIB))
    monkeypatch.setattr(gpus, "meminfo", lambda: host_memory.meminfo(fake))
    expected = ("gpu", "backend: gpu (NVIDIA GB10, unified memory 121.7 GiB)")
    assert gpus.resolve_backend("auto") == expected


def test_backend_cpu(driver, rapids):
    driver.devices = [device(0)]
    assert gpus.resolve_backend("cpu") == ("cpu", "backend: cpu (as the config asks)")
    rapids.installed = False
    assert gpus.resolve_backend("auto") == (
        "cpu",
        "backend: cpu (rapids-singlecell is not installed for the NVIDIA H200)",
    )
    rapids.installed, driver.devices = True, []
    backend, reason = gpus.resolve_backend("auto")
    assert backend == "cpu"
    assert "finds no GPU" in reason


def test_backend_gpu_that_cannot_be_had(driver, rapids, monkeypatch):
    driver.devices = [device(0)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES='' hides.*or set backend: cpu"):
        gpus.resolve_backend("gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    rapids.installed = False
    with pytest.raises(UserError, match=r"rapids-singlecell is not installed.*`make`.*: cpu"):
        gpus.resolve_backend("gpu")
    with pytest.raises(UserError, match="'cuda' is unknown; choose auto, gpu or cpu"):
        gpus.resolve_backend("cuda")


def test_memory_of_a_gpu(driver, tmp_path):
    driver.devices = [device(0), GB10]
    h200, gb10 = gpus.visible_gpus()
    assert gpu_memory.available_memory(h200) == host_memory.Memory(140 * GIB, 100 * GIB, "NVML")
    fake = proc(tmp_path, total=121 * GIB, available=90 * GIB)
    expected = host_memory.Memory(121 * GIB, 90 * GIB, "/proc/meminfo")
    assert gpu_memory.available_memory(gb10, proc=fake) == expected


@pytest.mark.parametrize("cgroup", [None, "", "0::/\n", "0::/user.slice/a.scope\n"])
def test_host_memory_without_limit(tmp_path, cgroup):
    fake = proc(tmp_path / "proc", cgroup=cgroup)
    cgroup_v2(tmp_path / "cg/user.slice/a.scope", "max", used=50 * GIB)
    expected = host_memory.Memory(128 * GIB, 100 * GIB, "/proc/meminfo")
    assert host_memory.host_memory(proc=fake, cgroups=tmp_path / "cg") == expected


def test_host_memory_under_cgroup_v2(tmp_path):
    top = tmp_path / "cg"
    fake = proc(tmp_path / "proc", cgroup="0::/slurm/job_7/step_0\n")
    cgroup_v2(top / "slurm/job_7/step_0", "max", used=10 * GIB)
    cgroup_v2(top / "slurm/job_7", 16 * GIB, used=10 * GIB, inactive_file=4 * GIB)
    cgroup_v2(top / "slurm", 64 * GIB, used=20 * GIB)
    found = host_memory.host_memory(proc=fake, cgroups=top)
    assert found == host_memory.Memory(16 * GIB, 10 * GIB, str(top / "slurm/job_7"))
    # The group above has less left, though its limit is wider.
    cgroup_v2(top / "slurm", 64 * GIB, used=61 * GIB)
    found = host_memory.host_memory(proc=fake, cgroups=top)
    assert found == host_memory.Memory(16 * GIB, 3 * GIB, str(top / "slurm"))


def test_host_memory_in_a_container_that_sees_the_hosts_path(tmp_path):
    fake = proc(tmp_path / "proc", cgroup="0::/docker/0123abcd\n")
    cgroup_v2(tmp_path / "cg", 8 * GIB, used=9 * GIB, inactive_file=0)
    found = host_memory.host_memory(proc=fake, cgroups=tmp_path / "cg")
    assert found == host_memory.Memory(8 * GIB, 0, str(tmp_path / "cg"))


def test_host_memory_under_cgroup_v1(tmp_path):
    fake = proc(
        tmp_path / "proc", cgroup="9:cpu,cpuacct:/\n4:memory:/box/7\n1:name=systemd:/\n0::/"
    )
    folder = tmp_path / "cg/memory/box/7"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(32 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(20 * GIB))
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {5 * GIB}\n")
    unlimited = folder.parent
    (unlimited / "memory.limit_in_bytes").write_text("9223372036854771712")
    (unlimited / "memory.usage_in_bytes").write_text(str(127 * GIB))
    (unlimited / "memory.stat").write_text("total_inactive_file 0\n")
    found = host_memory.host_memory(proc=fake, cgroups=tmp_path / "cg")
    assert found == host_memory.Memory(32 * GIB, 17 * GIB, str(folder))


def test_host_memory_never_exceeds_what_the_machine_has_left(tmp_path):
    fake = proc(tmp_path / "proc", available=2 * GIB, cgroup="0::/box\n")
    cgroup_v2(tmp_path / "cg/box", 16 * GIB, used=1 * GIB)
    assert host_memory.host_memory(proc=fake, cgroups=tmp_path / "cg").available == 2 * GIB


def test_host_memory_of_this_machine():
    found = host_memory.host_memory()
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.available <= found.total <= physical


# ------------------------------------------------------------------------- waiting, and peaks


def test_the_limit_of_the_config_caps_a_gpu(driver):
    driver.devices = [device(0, free=30 * GIB)]
    (gpu,) = gpus.visible_gpus()
    found = gpu_memory.available_memory(gpu, limit=40 * GIB)
    assert found == host_memory.Memory(40 * GIB, 30 * GIB, "gpu.limit_gb, NVML")
    found = gpu_memory.available_memory(gpu, limit=20 * GIB)
    assert found == host_memory.Memory(20 * GIB, 20 * GIB, "gpu.limit_gb, NVML")
    assert gpu_memory.available_memory(gpu, limit=200 * GIB).total == 140 * GIB


def test_unified_memory_ends_at_a_cgroups_limit(driver, tmp_path):
    driver.devices = [GB10]
    (gpu,) = gpus.visible_gpus()
    fake = proc(tmp_path / "proc", cgroup="0::/box\n")
    top = tmp_path / "cg"
    cgroup_v2(top / "box", 64 * GIB, used=10 * GIB, inactive_file=2 * GIB)
    expected = host_memory.Memory(64 * GIB, 56 * GIB, str(top / "box"))
    assert gpu_memory.available_memory(gpu, proc=fake, cgroups=top) == expected
    assert gpu_memory.available_memory(None, proc=fake, cgroups=top) == expected


def test_memory_that_decides_what_is_run(driver, tmp_path, monkeypatch):
    assert gpus.gpu_memory() is None
    driver.devices = [device(0), GB10]
    assert gpus.gpu_memory() == 140 * GIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    fake = proc(tmp_path, total=121 * GIB)
    monkeypatch.setattr(gpus, "meminfo", lambda: host_memory.meminfo(fake))
    assert gpus.gpu_memory() == 121 * GIB


H200 = gpus.Gpu(0, "GPU-0", "NVIDIA H200", (9, 0), 140 * GIB, False, "580")
SPARK = gpus.Gpu(0, "GPU-1", "NVIDIA GB10", (12, 1), None, True, "580")


@pytest.fixture
def wait(caplog):
    """Wait with a clock that only sleeping moves, for memory that becomes free so many GiB at a
    second; how long it took."""

    def run(needed, free, *, gpu=H200, wait_s=90, source="NVML", **more):
        now, reads = [0.0], []

        def read():
            reads.append(now[0])
            there = free[min(int(now[0]), len(free) - 1)]
            return host_memory.Memory(140 * GIB, there * GIB, source)

        def sleep(seconds):
            assert 0 < seconds <= 1
            now[0] += seconds

        with caplog.at_level("INFO", logger="scrna"):
            gpu_memory.wait_for_memory(
                gpu, needed * GIB, wait_s, read=read, clock=lambda: now[0], sleep=sleep, **more
            )
        return now[0]

    return run


def test_free_memory_is_not_waited_for(wait, caplog):
    assert wait(30, [30]) == 0
    assert caplog.messages == []


def test_lingering_memory_is_waited_for_and_that_is_said_once(wait, caplog):
    assert wait(30, [2, 2, 10, 31]) == 3
    assert caplog.messages == [
        "waiting up to 90 s for 30.0 GiB on NVIDIA H200: 2.0 GiB of 140.0 GiB are free (NVML)"
    ]


def test_memory_that_does_not_come_is_an_error_with_the_figures(wait):
    expected = (
        r"^30\.0 GiB of memory are needed on GPU 0 \(NVIDIA H200\), but 12\.0 GiB of 140\.0 GiB "
        r"are free \(NVML\) after 90 s\. Another process holds the rest .*smi.* memory\.wait_s$"
    )
    with pytest.raises(UserError, match=expected):
        wait(30, [2, 12])
    with pytest.raises(UserError, match=r"2\.0 GiB of 140\.0 GiB are free \(NVML\) after 2 s"):
        wait(30, [2], wait_s=1.5)
    with pytest.raises(UserError, match="after 0 s"):
        wait(30, [2, 30], wait_s=0)


def test_what_to_do_on_a_spark_is_printed(wait, monkeypatch):
    monkeypatch.setattr(os, "system", None)
    monkeypatch.setattr(subprocess, "Popen", None)  # printed, never run
    expected = (
        r"free \(/proc/meminfo\) after 90 s\. CPU and GPU share this memory: close other programs, "
        r".* as root: sync; echo 3 > /proc/sys/vm/drop_caches$"
    )
    with pytest.raises(UserError, match=expected):
        wait(30, [2], gpu=SPARK, source="/proc/meminfo")


def test_memory_that_there_is_not_is_not_waited_for(wait):
    expected = r"^150\.0 GiB .* which has 140\.0 GiB \(NVML\): take a larger GPU, .*backend: cpu$"
    with pytest.raises(UserError, match=expected):
        wait(150, [100], wait_s=10**9)


def test_what_the_process_holds_itself_counts_as_free(wait):
    assert wait(30, [2], held=28 * GIB) == 0
    with pytest.raises(UserError, match=r"but 12\.0 GiB of"):
        wait(30, [2], held=10 * GIB)


def test_waiting_asks_nvml_by_itself(driver):
    driver.devices = [device(0, free=30 * GIB)]
    (gpu,) = gpus.visible_gpus()
    gpu_memory.wait_for_memory(gpu, 30 * GIB, 0)
    with pytest.raises(UserError, match=r"30\.0 GiB of 140\.0 GiB are free \(NVML\) after 0 s"):
        gpu_memory.wait_for_memory(gpu, 31 * GIB, 0)


def test_pool_of_this_process(monkeypatch):
    monkeypatch.delitem(sys.modules, "rmm", raising=False)
    assert gpu_memory.pool_held() == 0
    cuda = SimpleNamespace()
    pool = SimpleNamespace(pool_size=lambda: 10 * GIB, get_upstream=lambda: cuda)
    state = SimpleNamespace(resource=SimpleNamespace(get_upstream=lambda: pool), used=4 * GIB)
    mr = SimpleNamespace(get_current_device_resource=lambda: state.resource)
    statistics = SimpleNamespace(
        get_statistics=lambda: state.used and SimpleNamespace(current_bytes=state.used)
    )
    rmm = SimpleNamespace(mr=mr, statistics=statistics)
    for name, module in {"rmm": rmm, "rmm.mr": mr, "rmm.statistics": statistics}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert gpu_memory.pool_held() == 6 * GIB
    state.used = None  # not counted
    assert gpu_memory.pool_held() == 0
    state.resource, state.used = cuda, 4 * GIB  # plain allocations are given back
    assert gpu_memory.pool_held() == 0
    state.resource = pool
    assert gpu_memory.pool_held() == 6 * GIB
    del pool.pool_size  # an RMM that names it otherwise
    assert gpu_memory.pool_held() == 0


def until(condition):
    """Wait until a thread has done its part; a minute at most, for a busy machine."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


def test_peak_of_a_gpu(driver):
    driver.devices = [device(0, free=100 * GIB)]
    (gpu,) = gpus.visible_gpus()
    with gpu_memory.MemoryPeak(gpu, interval=0.001) as peak:
        assert driver.sessions == 1
        assert (peak.start_bytes, peak.peak_bytes) == (40 * GIB, 40 * GIB)
        driver.devices[0].memory.free = 60 * GIB
        until(lambda: peak.peak_bytes == 80 * GIB)
        driver.devices[0].memory.free = 120 * GIB
    assert (peak.start_bytes, peak.peak_bytes) == (40 * GIB, 80 * GIB)
    assert driver.sessions == 0
    assert all(thread.name != "memory-peak" for thread in threading.enumerate())


@pytest.mark.parametrize("gpu", [SPARK, None])
def test_peak_of_unified_memory(tmp_path, gpu):
    fake = proc(tmp_path, total=120 * GIB, available=100 * GIB)
    with gpu_memory.MemoryPeak(gpu, interval=0.001, proc=fake) as peak:
        other = proc(tmp_path / "later", total=120 * GIB, available=50 * GIB) / "meminfo"
        os.replace(other, fake / "meminfo")
        until(lambda: peak.peak_bytes == 70 * GIB)
    assert peak.start_bytes == 20 * GIB


def test_peak_outlives_a_driver_that_stops_and_an_error(driver, monkeypatch):
    driver.devices = [device(0, free=100 * GIB)]
    (gpu,) = gpus.visible_gpus()

    def lost(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    peak = gpu_memory.MemoryPeak(gpu, interval=0.001)
    with suppress(KeyError), peak:
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
        until(lambda: "memory-peak" not in [thread.name for thread in threading.enumerate()])
        raise KeyError
    assert peak.peak_bytes == 40 * GIB
    assert driver.sessions == 0
    with pytest.raises(pynvml.NVMLError), gpu_memory.MemoryPeak(gpu):
        pass


def test_light_to_import():
    """A process that needs only tables pays for none of the field's libraries."""
    code = (
        "import json, sys; sys.path.append(sys.argv[1])\n"
        "import scrna.resources.gpus, scrna.resources.locks, scrna.processes\n"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    scripts = str(Path(gpus.__file__).parents[2])
    listed = subprocess.run(
        [sys.executable, "-S", "-c", code, scripts], capture_output=True, check=True
    )
    loaded = set(json.loads(listed.stdout)) - {"scrna", "__main__"}
    assert loaded <= set(sys.stdlib_module_names)


@pytest.mark.gpu
def test_agrees_with_nvidia_smi(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    query = "--query-gpu=index,uuid,name,compute_cap,driver_version"
    smi = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    found = [
        ", ".join([str(g.index), g.uuid, g.name, "{}.{}".format(*g.compute_capability), g.driver])
        for g in gpus.visible_gpus()
    ]
    assert found == smi.stdout.splitlines()
    memory = gpu_memory.available_memory(gpus.visible_gpus()[0])
    assert 0 < memory.available <= memory.total


@pytest.mark.parametrize(("gpu", "expected"), [(H200, "pool"), (SPARK, "async")])
def test_memory_is_pooled_where_it_is_the_gpus_own(monkeypatch, gpu, expected):
    from scrna.resources import gpu_pool

    monkeypatch.setattr(gpus, "visible_gpus", lambda: [gpu])
    assert gpu_pool.memory_kind("auto") == expected
    assert gpu_pool.memory_kind("managed") == "managed"
