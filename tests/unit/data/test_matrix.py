"""In blocks or in memory: the same results."""

import logging
import sys
import time
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from scripts.hvg import hvg
from scripts.markers import markers
from scripts.normalize import block_totals, normalize
from scripts.pca import pca
from scripts.qc import qc
from scrna.data import counts as counts_module
from scrna.data import lazy_matrix, matrix, read_progress, row_blocks, step_files
from scrna.data.counts import Counts
from scrna.data.matrix import open_matrix
from scrna.resources import admission

BLOCK_NNZ = 15_000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", BLOCK_NNZ)


@pytest.fixture(scope="module")
def files(simulated):
    return simulated.counts, simulated.filtered, simulated.normalized


@pytest.fixture(scope="module")
def clusters(tmp_path_factory, simulated):
    """The true types of the kept cells as a clustering, and a group that is left out."""
    path = tmp_path_factory.mktemp("clusters") / "leiden.h5"
    types = simulated.kept.obs["cell_type"].cat.codes.to_numpy().copy()
    types[:5] = 3
    step_files.write(path, {"obs/leiden": step_files.Categories(types, list("0123"))})
    return path


def test_there_are_many_uneven_blocks(simulated):
    spans = Counts(simulated.counts).ranges()
    assert len(spans) >= 7
    assert len({stop - start for start, stop in spans}) > 3


def test_qc_and_size_factors_are_exact(simulated, settings, tmp_path, monkeypatch):
    for nnz in (BLOCK_NNZ, 2**24):
        monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
        qc(simulated.counts, tmp_path / f"qc{nnz}.h5", **settings("qc"), backend="cpu")
        files = simulated.counts, simulated.filtered, tmp_path / f"n{nnz}.h5"
        normalize(*files, target_sum=10000, backend="cpu")
    for name in ("qc", "n"):
        many, one = (
            step_files.read_all(tmp_path / f"{name}{nnz}.h5") for nnz in (BLOCK_NNZ, 2**24)
        )
        for slot in one:
            np.testing.assert_array_equal(many[slot], one[slot])


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat", "seurat_v3"])
@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_the_same_genes_are_highly_variable(files, settings, tmp_path, flavor, batch_key):
    found = {}
    for execution in ("memory", "blocks"):
        path = tmp_path / f"{execution}.h5"
        wanted = settings("hvg", flavor=flavor, n_top_genes=100, batch_key=batch_key)
        hvg(*files, path, **wanted, backend="cpu", execution=execution)
        found[execution] = step_files.read_all(path)
    for name, values in found["memory"].items():
        if name.startswith("var/"):
            assert found["blocks"][name].dtype == values.dtype
            # two genes whose normalised variances differ by less than rounding may swap ranks,
            # and a loess through them magnifies rounding
            near = (2e-3, 1) if flavor == "seurat_v3" else (1e-5, 1e-5)
            np.testing.assert_allclose(found["blocks"][name], values, *near)
    assert found["blocks"]["var/highly_variable"].sum() == 100


@pytest.mark.parametrize("changes", [{}, {"use_highly_variable": False, "n_comps": 20}])
def test_components_are_the_same_up_to_sign(simulated, files, settings, tmp_path, changes):
    hvg(*files, tmp_path / "hvg.h5", **settings("hvg", n_top_genes=150), backend="cpu")
    found = {}
    for execution in ("memory", "blocks"):
        path = tmp_path / f"{execution}.h5"
        inputs = simulated.counts, simulated.qc, *files[1:], tmp_path / "hvg.h5"
        wanted = settings("pca", **{"n_comps": 10} | changes)
        pca(*inputs, path, **wanted, backend="cpu", seed=0, execution=execution)
        found[execution] = step_files.read_all(path)
    for slot in ("obsm/X_pca", "varm/PCs"):
        memory, in_blocks = found["memory"][slot], found["blocks"][slot]
        assert memory.dtype == in_blocks.dtype
        sign = np.sign((memory * in_blocks).sum(axis=0))
        np.testing.assert_allclose(in_blocks * sign, memory, atol=2e-3 * np.abs(memory).max())
    for name in ("variance", "variance_ratio"):
        both = (found[execution]["uns/pca"][name] for execution in found)
        np.testing.assert_allclose(*both, rtol=1e-3)


@pytest.mark.parametrize("method", ["t-test", "t-test_overestim_var"])
def test_markers_are_the_same(files, clusters, settings, tmp_path, method):
    import pandas as pd

    tables = {}
    for execution in ("memory", "blocks"):
        table = tmp_path / f"{execution}.csv"
        wanted = settings("markers", method=method, groupby="leiden")
        markers(
            *files, clusters, tmp_path / "m.h5", table, **wanted,
            backend="cpu", execution=execution,
        )  # fmt: skip
        tables[execution] = pd.read_csv(table, dtype={"group": str}).set_index(["group", "names"])
    memory, in_blocks = tables.values()
    assert set(memory.index.get_level_values("group")) == set("012")
    in_blocks = in_blocks.loc[memory.index]
    for column in memory:
        np.testing.assert_allclose(in_blocks[column], memory[column], rtol=2e-3, atol=1e-6)


def test_blocks_that_do_not_fit_are_read_for_each_pass(
    files, settings, tmp_path, monkeypatch, caplog
):
    calls = []
    taken = lazy_matrix._taken
    monkeypatch.setattr(lazy_matrix, "_taken", lambda *args: calls.append(1) or taken(*args))
    n_blocks = len(Counts(files[0]).ranges(step_files.read(files[1], "obs/keep")))
    wanted = settings("hvg", flavor="seurat_v3", n_top_genes=100)
    results = {}
    for there in (1e12, 1):
        calls.clear()
        monkeypatch.setattr(admission, "usable_memory", lambda backend, there=there: there)
        with caplog.at_level(logging.INFO):
            hvg(*files, tmp_path / "hvg.h5", **wanted, backend="cpu", execution="blocks")
        results[there] = step_files.read(tmp_path / "hvg.h5", "var/variances_norm"), len(calls)
    assert results[1e12][1] == n_blocks
    assert results[1][1] >= 2 * n_blocks
    assert "read again for each pass" in caplog.text
    np.testing.assert_allclose(results[1][0], results[1e12][0])


@pytest.mark.parametrize("there", [1e12, 1])
def test_an_array_is_light_to_hash(files, monkeypatch, there):
    """The libraries' functions refer to it, and Dask pickles and hashes them with all of it."""
    from distributed.protocol.pickle import dumps

    monkeypatch.setattr(admission, "usable_memory", lambda backend: there)
    with open_matrix("pca", *files, backend="cpu", asked="blocks") as matrix:
        held = sum(block.data.nbytes for block in lazy_matrix.held_blocks)
        assert (held > 500_000) == (there > 1)
        assert len(dumps(matrix)) < 100_000
        assert (
            matrix.compute().nnz
            == step_files.read(files[1], "var/n_cells_kept")[
                step_files.read(files[1], "var/keep")
            ].sum()
        )
    assert not lazy_matrix.held_blocks


def test_progress_counts_every_pass(monkeypatch, files, caplog):
    monkeypatch.setattr("scrna.progress._FIRST", 0)
    monkeypatch.setattr("scrna.progress._EVERY", 0)
    with (
        caplog.at_level(logging.INFO),
        open_matrix("pca", *files, backend="cpu", asked="blocks") as matrix,
    ):
        n = matrix.shape[0]
    assert f"pca, pass 1: {n:,} cells in" in caplog.text


def test_an_error_in_a_block_reaches_the_step(files, monkeypatch):
    def broken(*args):
        raise OSError("a shard is cut off")

    monkeypatch.setattr(Counts, "read", broken)
    with (
        pytest.raises(OSError, match="cut off"),
        open_matrix("pca", *files, backend="cpu", asked="blocks"),
    ):
        pass
    assert read_progress._watched is None


@pytest.mark.slow
def test_a_cluster_of_two_workers_gives_the_same(files, simulated, settings, tmp_path):
    """As on two GPUs: a step is a task of one worker and spreads its blocks over both."""
    from distributed import Client, LocalCluster

    wanted = settings("hvg", n_top_genes=100)
    hvg(*files, tmp_path / "own.h5", **wanted, backend="cpu", execution="blocks")
    qc(simulated.counts, tmp_path / "own_qc.h5", **settings("qc"), backend="cpu")
    paths = [path for path in sys.path if "scripts" in path or "main" in path]

    def on_worker(name, *args, **kwargs):
        from importlib import import_module

        counts_module = import_module("scrna.data.counts")
        counts_module.BLOCK_NNZ = BLOCK_NNZ
        getattr(import_module(f"scripts.{name}"), name)(*args, **kwargs)

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            preload=[],
            env={"PYTHONPATH": ":".join(paths)},
        ) as cluster,
        Client(cluster) as client,
    ):
        out = tmp_path / "spread.h5", tmp_path / "spread_qc.h5"
        own = {"backend": "cpu", "execution": "blocks"}
        client.submit(on_worker, "hvg", *files, out[0], **wanted, **own, pure=False).result()
        client.submit(
            on_worker, "qc", simulated.counts, out[1], **settings("qc"), backend="cpu", pure=False
        ).result()
    for one, many in zip((tmp_path / "own.h5", tmp_path / "own_qc.h5"), out, strict=True):
        expected, found = step_files.read_all(one), step_files.read_all(many)
        for slot, values in expected.items():
            if slot != "uns/hvg":
                np.testing.assert_allclose(found[slot], values, rtol=1e-6)


@pytest.fixture
def two_clients(monkeypatch):
    """The clients of two steps that run at the same time on one cluster."""
    from distributed import Client, LocalCluster

    own = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
    own["dashboard_address"] = "127.0.0.1:0"
    with LocalCluster(**own) as cluster, Client(cluster) as one, Client(cluster) as other:
        turns = iter([one, other])

        @contextmanager
        def next_client(*args, **kwargs):
            client = next(turns)
            with client.as_current():
                yield client

        for module in (row_blocks, matrix):
            monkeypatch.setattr(module, "cluster_for", next_client)
        yield one, other


def test_steps_at_the_same_time_share_no_task_of_a_cluster(two_clients, simulated, files):
    """Dask drops what one client let go, and what another sends at that moment with it."""
    store = Counts(files[0])
    genes = step_files.read(files[1], "var/keep")
    own = (block_totals, store, "cpu", genes, "cpu")
    running = [row_blocks.each(*own, label=label) for label in ("qc", "normalize")]
    parts = [[next(each)] for each in running]  # both are in the middle
    keys = [set(client.futures) for client in two_clients]
    assert all(len(of_one) >= len(store.ranges()) for of_one in keys)
    assert not keys[0] & keys[1]
    expected = np.asarray(simulated.adata.X[:, np.flatnonzero(genes)].sum(axis=1)).ravel()
    for part, each in zip(parts, running, strict=True):
        np.testing.assert_array_equal(np.concatenate([*part, *each]), expected)


def test_matrices_at_the_same_time_share_no_task_and_no_progress(two_clients, files, monkeypatch):
    read = {}
    monkeypatch.setattr(
        read_progress._Passes, "update", lambda self, n: read.setdefault(self._step, []).append(n)
    )
    with (
        open_matrix("pca", *files, backend="cpu", asked="blocks") as one,
        open_matrix("hvg", *files, backend="cpu", asked="blocks") as other,
    ):
        keys = [set(client.futures) for client in two_clients]
        assert all(keys)
        assert not keys[0] & keys[1]
        assert (one.compute() != other.compute()).nnz == 0
        end = time.monotonic() + 60
        while sum(map(sum, read.values())) < 2 * one.shape[0] and time.monotonic() < end:
            time.sleep(0.01)  # what workers tell comes by itself
    assert {step: sum(cells) for step, cells in read.items()} == {
        "pca": one.shape[0],
        "hvg": one.shape[0],
    }


@pytest.mark.parametrize(
    ("backend", "nnz", "free", "needs_client", "spreads"),
    [
        ("gpu", 2 * 10**9, 10**12, False, False),  # one GPU holds the matrix
        ("gpu", 2 * 10**9, 10**10, False, True),
        ("gpu", 0, 10**10, False, False),  # it is kept from an earlier step
        ("gpu", 2 * 10**9, 10**12, True, True),
        ("cpu", 2 * 10**9, 10**12, False, True),
    ],
)
def test_blocks_are_spread_where_one_gpu_is_too_small(
    monkeypatch, backend, nnz, free, needs_client, spreads
):
    class Client:
        def scheduler_info(self, n_workers):
            return {"workers": ["on GPU 0", "on GPU 1"]}

        def as_current(self):
            return nullcontext()

    client = Client()
    monkeypatch.setattr("distributed.worker_client", lambda: nullcontext(client))
    monkeypatch.setattr(read_progress, "in_worker", lambda: True)
    monkeypatch.setattr(admission, "usable_memory", lambda backend: free)
    with row_blocks.cluster_for(backend, nnz, needs_client=needs_client) as given:
        assert given is (client if spreads else None)
