"""In memory or in blocks: the arithmetic, the words, the refusals; with fake GPUs and memory."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scrna import provenance
from scrna.config.settings import complete
from scrna.data import step_files
from scrna.data.counts import sizes_of
from scrna.errors import UserError
from scrna.resources import admission, gpu_memory, gpus, plan
from scrna.resources.admission import decide
from scrna.resources.estimates import block_bytes, pca_columns, step_bytes
from scrna.resources.host_memory import GIB, Memory
from scrna.resources.plan import Choice, blocks_problems, choose, plan_steps
from scrna.workflow import session

LARGE = {"n_obs": 1_000_000, "n_vars": 28_000, "nnz": 1_822_000_000}
HUGE = {"n_obs": 1_400_000, "n_vars": 28_000, "nnz": 2_811_203_114}
H200 = {"total": int(139.8 * GIB), "headroom": 8 * GIB}
NVML = "NVML"
SHARED = "/proc/meminfo"


def chosen(step="hvg", sizes=LARGE, asked="auto", backend="gpu", **more):
    return choose(step, **sizes, asked=asked, backend=backend, **(H200 | more))


# ---------------------------------------------------------------------------------- the choice


def test_what_fits_is_held_in_memory():
    choice = chosen("markers", method="wilcoxon")
    needed = step_bytes("markers", **LARGE, method="wilcoxon")
    assert choice == Choice(
        "markers", "memory", needed, int(139.8 * GIB) - 8 * GIB,
        f"needs {needed / GIB:.1f} GiB of 131.8 GiB (139.8 GiB less 8.0 GiB headroom)",
    )  # fmt: skip
    assert str(choice) == f"markers: in memory, {choice.reason}"
    assert "needs at most 14.5 GiB of 131.8" in chosen("hvg", at_most=True).reason


def test_what_does_not_fit_goes_by_blocks():
    needed = step_bytes("hvg", **LARGE)
    assert chosen(total=needed + GIB, headroom=GIB).mode == "memory"
    choice = chosen(total=needed + GIB - 1, headroom=GIB)
    assert (choice.mode, choice.needed) == ("blocks", block_bytes("hvg", **LARGE))
    assert str(choice) == (
        "hvg: in blocks, in memory it needs 14.5 GiB of 14.5 GiB (15.5 GiB less 1.0 GiB headroom)"
    )


def test_more_non_zeros_than_cupy_holds_always_go_by_blocks():
    choice = chosen("hvg", HUGE, total=10**15)
    assert choice.mode == "blocks"
    assert str(choice) == (
        "hvg: in blocks, 2,811,203,114 non-zeros are more than a sparse matrix on the GPU holds "
        "(2,147,483,647)"
    )
    edge = HUGE | {"nnz": 2**31 - 1}
    assert chosen("hvg", edge).mode == "memory"
    assert chosen("hvg", edge | {"nnz": 2**31}).mode == "blocks"
    assert chosen("hvg", edge | {"nnz": 2**31}, backend="cpu").mode == "memory"  # SciPy's do


def test_the_highly_variable_genes_of_a_huge_matrix_may_fit():
    n_vars, nnz = pca_columns(**HUGE, n_top_genes=5000)
    assert chosen("pca", {"n_obs": HUGE["n_obs"], "n_vars": n_vars, "nnz": nnz}).mode == "memory"


def test_blocks_that_are_asked_for():
    choice = chosen("markers", asked="blocks", method="t-test")
    assert str(choice) == "markers: in blocks, as execution: blocks asks"


def test_memory_that_is_asked_for():
    assert chosen(asked="memory").reason == chosen().reason
    expected = (
        r"^hvg cannot be done in memory, as execution: memory asks: 2,811,203,114 non-zeros are "
        r"more .*\(2,147,483,647\)\. Set execution: auto"
    )
    with pytest.raises(UserError, match=expected):
        chosen("hvg", HUGE, asked="memory")
    expected = r"in memory it needs 14\.5 GiB of 7\.5 GiB \(10\.0 GiB less 2\.5 GiB headroom\)"
    with pytest.raises(UserError, match=expected):
        chosen(asked="memory", total=10 * GIB)


def test_a_small_machine_keeps_a_quarter_free_at_most():
    demo = {"n_obs": 3000, "n_vars": 2000, "nnz": 1_000_000}
    choice = chosen("markers", demo, backend="cpu", total=6 * GIB)
    assert choice.mode == "memory"
    assert choice.available == 4.5 * GIB


def test_steps_without_a_choice():
    for step in ("qc", "normalize", "final"):
        choice = chosen(step, asked="memory")
        assert (choice.mode, choice.reason[:16]) == ("blocks", "as always: needs")
    choice = chosen("umap", {"n_obs": 10**6, "n_vars": 0, "nnz": 0}, asked="blocks")
    assert choice.mode == "memory"


# ------------------------------------------------------------------- what blocks cannot do


@pytest.mark.parametrize(
    ("step", "settings", "backend", "expected"),
    [
        ("markers", {"method": "wilcoxon"}, "gpu", "method wilcoxon .* GPU: take wilcoxon_binned$"),
        ("markers", {}, "gpu", "take wilcoxon_binned$"),
        ("markers", {"method": "wilcoxon"}, "cpu", "method wilcoxon .* the CPU: take t-test$"),
        ("markers", {"method": "logreg"}, "cpu", "method logreg .* the CPU: take t-test$"),
        ("hvg", {"flavor": "pearson_residuals"}, "gpu", "hvg.flavor pearson.*: take seurat_v3$"),
        ("hvg", {"flavor": "pearson_residuals"}, "cpu", "hvg.flavor pearson.*: take seurat_v3$"),
        ("pca", {"solver": "lanczos"}, "gpu", r"pca\.solver lanczos cannot .*: take auto$"),
        ("pca", {"solver": "arpack"}, "cpu", r"pca\.solver arpack cannot work .*: take auto$"),
        ("pca", {"regress_out": ["a"]}, "cpu", r"pca\.regress_out cannot .*: leave it empty, or"),
        ("pca", {"scale": True}, "cpu", r"pca\.scale cannot .* the CPU: set it to false, or"),
        ("pca", {"zero_center": False}, "cpu", r"pca\.zero_center false cannot.*: set it to true"),
    ],
)
def test_methods_that_blocks_cannot_do(step, settings, backend, expected):
    with pytest.raises(UserError, match=expected):
        chosen(step, asked="blocks", backend=backend, **settings)
    with pytest.raises(UserError, match=f"{step} has to work in blocks, in memory it needs .*But"):
        chosen(step, total=GIB, backend=backend, **settings)
    assert chosen(step, asked="memory", backend=backend, total=10**12, **settings).mode == "memory"


def test_a_dense_pca_is_refused_in_blocks_on_the_cpu():
    assert len(list(blocks_problems("pca", {"dense": True}, "cpu"))) == 2
    assert list(blocks_problems("pca", {"dense": True, "regress_out": ["a"]}, "gpu")) == []


@pytest.mark.parametrize(
    ("step", "settings", "backend"),
    [
        ("markers", {"method": "wilcoxon_binned"}, "gpu"),
        ("markers", {"method": "logreg"}, "gpu"),
        ("markers", {"method": "t-test"}, "cpu"),
        ("markers", {"method": "t-test_overestim_var"}, "gpu"),
        ("hvg", {"flavor": "seurat_v3"}, "cpu"),
        ("pca", {"solver": "covariance_eigh"}, "cpu"),
        ("pca", {"regress_out": ["a"], "scale": True, "zero_center": False}, "gpu"),
        ("umap", {}, "gpu"),
    ],
)
def test_methods_that_blocks_can_do(step, settings, backend):
    assert list(blocks_problems(step, settings, backend)) == []


# ------------------------------------------------------------------------------- before the run


def dataset(**given):
    full = complete({"run": "d", "datasets": {"d": {"kind": "simulate"} | given}})
    return full["datasets"]["d"]


def planned(sizes, *, total=139.8, available=100, backend="gpu", **given):
    memory = Memory(int(total * GIB), int(available * GIB), NVML if backend == "gpu" else SHARED)
    return plan_steps("d", dataset(**given), sizes, backend, memory, 8 * GIB)


BINNED = {"markers": {"method": "wilcoxon_binned"}}


def test_the_plan_of_a_dataset():
    hvg, pca, markers = planned(LARGE, **BINNED)
    assert [c.mode for c in (hvg, pca, markers)] == ["memory"] * 3
    assert "needs 14.5 GiB of 131.8" in hvg.reason  # all of a GPU's memory, a step waits for it
    assert "needs at most " in pca.reason  # nobody knows which genes
    hvg, pca, markers = planned(HUGE | {"at_most": True}, **BINNED)
    assert [c.mode for c in (hvg, pca, markers)] == ["blocks", "memory", "blocks"]
    assert hvg.reason.startswith("at most 2,811,203,114 non-zeros are more")


def test_the_plan_follows_the_settings():
    assert [c.step for c in planned(LARGE, markers={"enabled": False})] == ["hvg", "pca"]
    whole, part = (planned(LARGE, pca={"use_highly_variable": v})[1] for v in (False, True))
    assert whole.needed > part.needed * 1.5
    alone, batched = (planned(LARGE, batch_key=key)[0] for key in (None, "donor"))
    assert batched.needed > 3 * alone.needed
    assert planned(LARGE, batch_key="donor", hvg={"batch_key": None})[0] == alone
    scaled = planned(LARGE, pca={"scale": True})[1]
    assert scaled.needed > LARGE["n_obs"] * 5000 * 12
    assert {c.mode for c in planned(LARGE, execution="blocks", **BINNED)} == {"blocks"}


def test_of_the_hosts_memory_what_is_available_counts():
    hvg, *_ = planned(LARGE, backend="cpu", total=128, available=60, markers={"method": "t-test"})
    assert "of 52.0 GiB (60.0 GiB less 8.0 GiB headroom)" in hvg.reason


def test_a_plan_that_cannot_be_is_refused_with_the_key():
    expected = (
        r"^datasets\.d: markers has to work in blocks, 2,811,203,114 non-zeros .* But "
        r"markers\.method wilcoxon cannot work in blocks on the GPU: take wilcoxon_binned$"
    )
    with pytest.raises(UserError, match=expected):
        planned(HUGE)
    expected = r"at most 2,811.*binned\. If far fewer cells will stay, make results/d/filter\.h5 f"
    with pytest.raises(UserError, match=expected):
        planned(HUGE | {"at_most": True})
    with pytest.raises(UserError, match=r"datasets\.d: hvg cannot be done in memory"):
        planned(HUGE, execution="memory", **BINNED)


@pytest.fixture
def results(tmp_path):
    """Results of a dataset `d`: its counts, and with `filtered` what stays of them."""
    folder = tmp_path / "d"
    folder.mkdir()
    facts = {"n_obs": 5, "n_vars": 4, "nnz": 11, "digest": "x"}
    (folder / "counts.json").write_text(json.dumps(facts))
    os.utime(folder / "counts.json", (1000, 1000))

    def filtered():
        keep = {"obs/keep": [1, 0, 1, 1, 0], "var/keep": [1, 1, 0, 1]}
        step_files.write(
            folder / "filter.h5",
            {name: np.array(values, bool) for name, values in keep.items()}
            | {"var/n_cells_kept": np.array([3, 2, 1, 3])},
        )
        return folder / "filter.h5"

    return SimpleNamespace(folder=folder, filtered=filtered)


def test_sizes_are_those_of_what_the_filter_leaves(results):
    found = sizes_of(results.folder)
    assert found == {"n_obs": 5, "n_vars": 4, "nnz": 11, "at_most": True}
    path = results.filtered()
    assert sizes_of(results.folder) == {"n_obs": 3, "n_vars": 3, "nnz": 8, "at_most": False}
    os.utime(path, (900, 900))  # of counts that have been converted again since
    assert sizes_of(results.folder)["at_most"]
    assert sizes_of(results.folder.parent / "other") is None


# --------------------------------------------------------------------------------- in the step


@pytest.fixture
def here(monkeypatch):
    """Replace the machine: one GPU and its memory; collect what is noted and waited."""
    gpu = gpus.Gpu(0, "GPU-0", "NVIDIA H200", (9, 0), 140 * GIB, False, "580")
    state = SimpleNamespace(
        gpus=[gpu], memory=Memory(140 * GIB, 130 * GIB, NVML), notes={}, waits=[], held=0, limits=[]
    )

    def available(gpu, *, limit=None):
        state.limits.append(limit)
        return state.memory

    def wait(gpu, needed, wait_s, *, held, read):
        state.waits.append((needed, wait_s, held))
        if read().available + held < needed:
            raise UserError("only so much is free")

    monkeypatch.setattr(gpus, "visible_gpus", lambda: state.gpus)
    monkeypatch.setattr(gpus, "gpu_problem", lambda: "no NVIDIA driver found")
    monkeypatch.setattr(gpu_memory, "available_memory", available)
    monkeypatch.setattr(gpu_memory, "wait_for_memory", wait)
    monkeypatch.setattr(gpu_memory, "pool_held", lambda: state.held)
    monkeypatch.setattr(provenance, "note", state.notes.__setitem__, raising=False)
    monkeypatch.setattr(admission, "_limits", admission._limits)
    admission.configure()
    return state


def test_a_step_decides_says_so_and_keeps_it(here, caplog):
    with caplog.at_level(logging.INFO, logger="scrna"):
        choice = decide("hvg", asked="auto", backend="gpu", **LARGE, flavor="cell_ranger")
    assert choice.mode == "memory"
    assert caplog.messages == [str(choice)]
    assert here.waits == [(choice.needed, 90, 0)]
    record = {key: getattr(choice, key) for key in ("mode", "needed", "available", "reason")}
    assert here.notes == {"execution": record}
    json.dumps(here.notes)


def test_the_configs_limits_are_kept(here):
    admission.configure(headroom_gb=2, wait_s=5, limit_gb=40)
    here.memory = Memory(40 * GIB, 40 * GIB, "gpu.limit_gb, NVML")
    choice = decide("hvg", backend="gpu", **LARGE)
    assert choice.reason.endswith("of 38.0 GiB (40.0 GiB less 2.0 GiB headroom)")
    assert here.waits[0][1] == 5
    assert set(here.limits) == {40 * GIB}


def test_the_limit_is_the_gpus_alone(here):
    admission.configure(limit_gb=40)
    here.memory = Memory(64 * GIB, 60 * GIB, SHARED)
    choice = decide("hvg", backend="cpu", **LARGE)
    assert choice.reason.endswith("of 52.0 GiB (60.0 GiB less 8.0 GiB headroom)")
    assert here.limits == [None]
    assert here.waits == []


def test_auto_goes_by_blocks_where_memory_does_not_become_free(here):
    here.memory = Memory(140 * GIB, 10 * GIB, NVML)
    choice = decide("hvg", backend="gpu", **LARGE)
    assert (choice.mode, choice.reason) == ("blocks", "since only so much is free")
    assert [wait_s for _, wait_s, _ in here.waits] == [90, 0]
    assert here.waits[1][0] == choice.needed == block_bytes("hvg", **LARGE)
    assert here.notes["execution"]["mode"] == "blocks"


def test_a_wait_in_vain_is_an_error_where_there_is_no_other_way(here):
    here.memory = Memory(140 * GIB, 10 * GIB, NVML)
    for step, more in (
        ("hvg", {"asked": "memory"}),
        ("markers", {"method": "wilcoxon"}),
        ("umap", {}),
    ):
        sizes = LARGE | ({"n_obs": 10**7} if step == "umap" else {})
        with pytest.raises(UserError, match="only so much is free"):
            decide(step, backend="gpu", **sizes, **more)
    here.memory = Memory(140 * GIB, GIB, NVML)
    with pytest.raises(UserError, match="only so much is free"):  # nor for blocks
        decide("hvg", backend="gpu", **LARGE)


def test_what_the_pool_holds_counts_as_free(here):
    here.memory, here.held = Memory(140 * GIB, 10 * GIB, NVML), 100 * GIB
    assert decide("hvg", backend="gpu", **LARGE).mode == "memory"
    assert admission.usable_memory("gpu") == 102 * GIB


def test_on_unified_memory_the_headroom_stays_free(here):
    here.gpus = [gpus.Gpu(0, "GPU-0", "NVIDIA GB10", (12, 1), None, True, "580")]
    here.memory = Memory(120 * GIB, 100 * GIB, SHARED)
    choice = decide("hvg", backend="gpu", **LARGE)
    assert "of 92.0 GiB (100.0 GiB less 8.0 GiB headroom)" in choice.reason
    assert here.waits == [(choice.needed + 8 * GIB, 90, 0)]
    here.memory = Memory(120 * GIB, 16 * GIB, SHARED)
    assert decide("hvg", backend="gpu", **LARGE).mode == "blocks"


def test_steps_without_a_matrix_wait_and_say_nothing(here, caplog):
    with caplog.at_level(logging.INFO, logger="scrna"):
        choice = decide("umap", backend="gpu", n_obs=10**6, n_pcs=40)
    assert choice.mode == "memory"
    assert here.waits == [(choice.needed, 90, 0)]
    assert caplog.messages == []
    assert here.notes["execution"]["needed"] == choice.needed


def test_a_gpu_step_without_a_gpu(here):
    here.gpus = []
    with pytest.raises(UserError, match="there is no GPU here: no NVIDIA driver found"):
        decide("hvg", backend="gpu", **LARGE)


def test_usable_memory(here, monkeypatch):
    assert admission.usable_memory("gpu") == 122 * GIB
    # under gpu.limit_gb, what this process has allocated already is not there any more
    monkeypatch.setattr(gpu_memory, "allocated", lambda: 30 * GIB)
    here.memory = Memory(40 * GIB, 40 * GIB, f"gpu.limit_gb, {NVML}")
    assert admission.usable_memory("gpu") == 2 * GIB
    here.memory, here.held = Memory(64 * GIB, 4 * GIB, SHARED), 100 * GIB
    assert admission.usable_memory("cpu") == 0


def test_the_choices_are_said_before_the_run(here, results):
    given = {
        "run": ["d", "e"],
        "memory": {"headroom_gb": 4},
        "datasets": {"d": {"kind": "simulate"}, "e": {"kind": "simulate"}},
    }
    lines = session.plan_lines(complete(given), "gpu", results.folder.parent)
    assert [line.split(", ")[0] for line in lines] == [
        f"d: {step}: in memory" for step in ("hvg", "pca", "markers")
    ]
    assert all("(140.0 GiB less 4.0 GiB headroom)" in line for line in lines)
    given["execution"] = "blocks"
    with pytest.raises(UserError, match=r"datasets\.d: markers has to .* take wilcoxon_binned"):
        session.plan_lines(complete(given), "gpu", results.folder.parent)


def test_light_to_import():
    code = (
        "import sys; sys.path.append(sys.argv[1]); import scrna.resources.plan; print(*sys.modules)"
    )
    scripts = Path(plan.__file__).parents[2]
    listed = subprocess.run(
        [sys.executable, "-S", "-c", code, scripts], capture_output=True, check=True, text=True
    )
    loaded = {name.split(".")[0] for name in listed.stdout.split()} - {"scrna", "__main__"}
    assert loaded <= set(sys.stdlib_module_names)


def test_a_graph_that_the_gpu_cannot_number_is_refused():
    plan.check_graph(70_000_000, 15, "gpu")
    plan.check_graph(10**9, 15, "cpu")
    with pytest.raises(UserError, match=r"80,000,000 cells .* 2,240,000,000 .* to 14 at most"):
        plan.check_graph(80_000_000, 15, "gpu")
    plan.check_graph(80_000_000, 14, "gpu")
