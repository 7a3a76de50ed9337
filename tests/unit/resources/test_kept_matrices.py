"""What a warm worker keeps from one step to the next: the same results, nothing stale."""

import logging
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from scripts.hvg import hvg
from scripts.markers import markers
from scripts.normalize import normalize
from scripts.pca import pca
from scrna.data import block, step_files
from scrna.data import counts as counts_module
from scrna.data.counts import Counts
from scrna.data.matrix import gene_values, open_matrix
from scrna.resources import admission, gpu_memory, kept_matrices
from scrna.resources.host_memory import Memory

MODES = ("memory", "blocks")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", 15_000)


@pytest.fixture
def warm():
    kept_matrices.start()
    yield
    kept_matrices.stop()


@pytest.fixture
def reads(monkeypatch):
    """Ranges of cells that were read from disk."""
    spans = []
    read = Counts.read

    def counted(self, start, stop, *args, **kwargs):
        spans.append((start, stop))
        return read(self, start, stop, *args, **kwargs)

    monkeypatch.setattr(Counts, "read", counted)
    return spans


@pytest.fixture(scope="module")
def clusters(tmp_path_factory, simulated):
    path = tmp_path_factory.mktemp("clusters") / "leiden.h5"
    types = simulated.kept.obs["cell_type"].cat.codes.to_numpy()
    step_files.write(path, {"obs/leiden": step_files.Categories(types, list("0123"))})
    return path


def n_blocks(simulated) -> int:
    cells, _ = counts_module.kept(simulated.filtered)
    return len(Counts(simulated.counts).ranges(cells))


def analysed(simulated, clusters, settings, folder, mode) -> dict[str, str]:
    """Run the three steps that see the matrix; the digests of all that they find."""
    folder.mkdir()
    files = simulated.counts, simulated.filtered, simulated.normalized
    how = {"backend": "cpu", "execution": mode}
    hvg(*files, folder / "hvg.h5", **settings("hvg", n_top_genes=150), **how)
    inputs = simulated.counts, simulated.qc, *files[1:], folder / "hvg.h5", folder / "pca.h5"
    pca(*inputs, **settings("pca", n_comps=10), seed=0, **how)
    asked = settings("markers", method="t-test", groupby="leiden")
    markers(*files, clusters, folder / "markers.h5", folder / "markers.csv", **asked, **how)
    return {name: step_files.digest_of(folder / f"{name}.h5") for name in ("hvg", "pca", "markers")}


@pytest.mark.parametrize("mode", MODES)
def test_the_matrix_is_read_once_and_the_results_are_the_same(
    simulated, clusters, settings, tmp_path, reads, mode, warm
):
    kept = analysed(simulated, clusters, settings, tmp_path / "kept", mode)
    assert len(reads) == n_blocks(simulated)  # by hvg, and by nothing after it
    kept_matrices.stop()
    cold = analysed(simulated, clusters, settings, tmp_path / "cold", mode)
    assert len(reads) == 4 * n_blocks(simulated)
    assert kept == cold
    how = {
        name: step_files.provenance_of(tmp_path / f"{name}/markers.h5")["matrix"]
        for name in ("kept", "cold")
    }
    assert how == {"kept": "kept in memory", "cold": "read"}


def opened(simulated, *, mode="memory", **changed):
    files = simulated._asdict() | changed
    asked = {"backend": "cpu", "asked": mode, "method": "t-test"}
    return open_matrix("markers", files["counts"], files["filtered"], files["normalized"], **asked)


@pytest.mark.parametrize("mode", MODES)
def test_another_filter_or_factor_is_another_matrix(simulated, tmp_path, reads, mode, warm):
    def total(**changed) -> float:
        with opened(simulated, mode=mode, **changed) as matrix:
            return float(matrix.sum() if mode == "memory" else matrix.map_blocks(_sums).sum())

    first = total()
    n_reads = len(reads)
    assert total() == first
    assert len(reads) == n_reads
    other = tmp_path / "normalize.h5"
    normalize(simulated.counts, simulated.filtered, other, target_sum=500, backend="cpu")
    assert total(normalized=other) < 0.8 * first
    copied = tmp_path / "same.h5"  # of the same content
    shutil.copy(simulated.normalized, copied)
    n_reads = len(reads)
    assert total(normalized=copied) == first
    assert len(reads) == n_reads


@pytest.mark.parametrize("mode", MODES)
def test_a_genes_values_are_of_the_kept_matrix_or_read(simulated, reads, mode, warm):
    files = simulated.counts, simulated.filtered, simulated.normalized
    genes = counts_module.kept(files[1])[1]
    numbers = [np.flatnonzero(genes)[100], np.flatnonzero(~genes)[0]]  # one is filtered out
    cold = [gene_values(*files, number, backend="cpu") for number in numbers]
    with opened(simulated, mode=mode) as matrix:
        whole = matrix.compute() if mode == "blocks" else matrix
        expected = whole[:, [100]].toarray()[:, 0]
    assert expected.any()
    np.testing.assert_array_equal(cold[0], expected)
    reads.clear()
    np.testing.assert_array_equal(gene_values(*files, numbers[0], backend="cpu"), expected)
    assert not reads
    np.testing.assert_array_equal(gene_values(*files, numbers[1], backend="cpu"), cold[1])
    assert reads


def _sums(block):
    return np.array([[block.sum()]])


def test_a_matrix_that_was_written_into_is_read_again(simulated, reads, warm, caplog):
    with opened(simulated) as matrix:
        before = matrix.copy()
        matrix.data[3] = 7
    n_reads = len(reads)
    with caplog.at_level(logging.INFO, "scrna"), opened(simulated) as matrix:
        assert (matrix != before).nnz == 0
    assert len(reads) > n_reads
    assert "written into" in caplog.text


def test_nothing_is_kept_where_there_is_no_worker(simulated, reads):
    for _ in range(2):
        with opened(simulated):
            pass
    assert kept_matrices.nbytes() == 0
    assert len(reads) == 2 * n_blocks(simulated)


def matrices(n: int) -> list:
    return [sp.random(100, 20, 0.2, "csr", dtype=np.float32, random_state=i) for i in range(n)]


def test_what_was_used_longest_ago_goes_first(warm):
    for name, matrix in zip("abc", matrices(3), strict=True):
        kept_matrices.put((name,), [matrix])
    one = kept_matrices.nbytes_of(("a",))
    assert kept_matrices.nbytes() == 3 * one > 3 * 8 * 400
    assert kept_matrices.get(("a",)).shape == (100, 20)  # now b is the oldest
    kept_matrices.make_room(0)
    assert kept_matrices.nbytes() == 3 * one
    kept_matrices.make_room(1)
    assert (kept_matrices.get(("b",)), kept_matrices.nbytes()) == (None, 2 * one)
    kept_matrices.make_room(10**9, but=("c",))
    assert (kept_matrices.get(("a",)), kept_matrices.nbytes()) == (None, one)
    assert kept_matrices.largest() == (100, 20, 400)


@pytest.mark.parametrize(("free", "n_kept"), [(10**9, 1), (10**4, 0)])
def test_a_step_gets_the_memory_that_it_needs(monkeypatch, warm, free, n_kept):
    kept_matrices.put(("old",), matrices(1))
    there = Memory(10**10, free, "a test")
    monkeypatch.setattr(gpu_memory, "available_memory", lambda *_, **__: there)
    admission.configure(headroom_gb=0)
    admission.make_room_for("umap", "cpu", {"n_neighbors": 15, "seed": 0, "backend": "cpu"})
    assert (kept_matrices.nbytes() > 0) == n_kept
    admission.decide("hvg", backend="cpu", n_obs=1000, n_vars=100, nnz=10**5, asked="auto")
    assert (kept_matrices.nbytes() > 0) == n_kept


def test_nothing_is_kept_that_leaves_too_little(simulated, monkeypatch, warm):
    monkeypatch.setattr(admission, "usable_memory", lambda _: 0)
    with opened(simulated):
        assert kept_matrices.nbytes() == 0


@pytest.mark.parametrize(("free", "how"), [(10**12, "kept in memory"), (10**6, "read")])
def test_columns_are_read_where_kept_blocks_leave_no_room(
    simulated, settings, tmp_path, monkeypatch, warm, free, how
):
    """Blocks that are kept, and their highly variable columns, have to fit beside each other."""
    files = simulated.counts, simulated.filtered, simulated.normalized
    asked = {"backend": "cpu", "execution": "blocks"}
    hvg(*files, tmp_path / "hvg.h5", **settings("hvg", n_top_genes=150), **asked)
    assert kept_matrices.nbytes() > 0
    monkeypatch.setattr(admission, "usable_memory", lambda _: free)
    inputs = simulated.counts, simulated.qc, *files[1:], tmp_path / "hvg.h5"
    pca(*inputs, tmp_path / "pca.h5", **settings("pca", n_comps=10), seed=0, **asked)
    assert step_files.provenance_of(tmp_path / "pca.h5")["matrix"] == how


def test_columns_are_those_of_the_matrix():
    (matrix,) = matrices(1)
    genes = np.arange(20) % 3 == 0
    found = block.columns_of(matrix, genes, "cpu")
    assert (found != matrix[:, genes]).nnz == 0
    assert found.dtype == np.float32
