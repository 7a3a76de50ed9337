"""In blocks against in memory, on the GPU: pbmc3k and simulated counts, both in uneven blocks."""

import numpy as np
import pandas as pd
import pytest

from scripts.convert import convert
from scripts.filter import filter_cells
from scripts.hvg import hvg
from scripts.markers import markers
from scripts.neighbors import neighbors
from scripts.normalize import normalize
from scripts.pca import pca
from scripts.qc import qc
from scrna import backend
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.matrix import open_matrix
from scrna.ingest.simulate import Simulation
from scrna.resources import kept_matrices

pytestmark = pytest.mark.gpu
GPU = {"backend": "gpu"}


@pytest.fixture(scope="module", params=["pbmc3k", "simulated"])
def files(request, settings, tmp_path_factory):
    """The files up to the normalisation, made in one block."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "pbmc3k":
        counts = request.getfixturevalue("counts")
    else:
        counts = folder / "counts.zarr"
        Simulation(n_obs=9000, n_vars=3000).write_h5ad(folder / "s.h5ad")
        convert(folder / "s.h5ad", counts, folder / "counts.json", dataset="simulated")
    qc(counts, folder / "qc.h5", **settings("qc", **GPU))
    table = folder / "filter.csv"
    filter_cells(counts, folder / "qc.h5", folder / "filter.h5", table, **settings("filter"))
    normalize(counts, folder / "filter.h5", folder / "normalize.h5", **settings("normalize", **GPU))
    hvg(
        counts,
        folder / "filter.h5",
        folder / "normalize.h5",
        folder / "hvg.h5",
        **settings("hvg", n_top_genes=1000, batch_key=None, **GPU),
    )
    n_cells = step_files.read(folder / "filter.h5", "obs/keep").sum()
    groups = np.random.default_rng(0).integers(0, 4, n_cells)
    step_files.write(
        folder / "leiden.h5", {"obs/leiden": step_files.Categories(groups, list("0123"))}
    )
    return counts, folder


@pytest.fixture(autouse=True)
def uneven_blocks(monkeypatch, files):
    nnz = Counts(files[0]).indptr[-1]
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", int(nnz // 9))
    assert len(Counts(files[0]).ranges()) >= 7


def matrix_of(files):
    counts, folder = files
    return counts, folder / "filter.h5", folder / "normalize.h5"


def test_qc_and_size_factors_are_exact(files, settings, tmp_path):
    counts, folder = files
    qc(counts, tmp_path / "qc.h5", **settings("qc", **GPU))
    normalize(
        counts, folder / "filter.h5", tmp_path / "normalize.h5", **settings("normalize", **GPU)
    )
    for name in ("qc", "normalize"):
        expected, found = (step_files.read_all(f / f"{name}.h5") for f in (folder, tmp_path))
        for slot, values in expected.items():
            np.testing.assert_array_equal(found[slot], values, err_msg=slot)


def test_the_matrix_is_the_same(files):
    found = {}
    for asked in ("memory", "blocks"):
        with open_matrix("hvg", *matrix_of(files), backend="gpu", asked=asked) as matrix:
            found[asked] = backend.to_host(backend.computed(matrix))
    memory, in_blocks = found.values()
    assert (memory != in_blocks).nnz == 0


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat", "seurat_v3"])
@pytest.mark.parametrize("batched", [False, True])
def test_the_same_genes_are_highly_variable(files, settings, tmp_path, flavor, batched):
    if batched and "batch" not in Counts(files[0]).table("obs"):
        pytest.skip("pbmc3k has one batch")
    chosen = {}
    for execution in ("memory", "blocks"):
        wanted = settings(
            "hvg", flavor=flavor, n_top_genes=1000, batch_key="batch" if batched else None, **GPU
        )
        hvg(*matrix_of(files), tmp_path / "hvg.h5", **wanted, execution=execution)
        chosen[execution] = step_files.read(tmp_path / "hvg.h5", "var/highly_variable")
    np.testing.assert_array_equal(chosen["blocks"], chosen["memory"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"zero_center": False},
        {"scale": True},
        {"scale": True, "regress_out": ["total_counts", "pct_counts_mt"]},
    ],
    ids=str,
)
def test_components_agree_up_to_sign(files, settings, tmp_path, changes):
    counts, folder = files
    found = {}
    for execution in ("memory", "blocks"):
        asked = settings("pca", **{"n_comps": 20} | changes, **GPU, seed=0)
        inputs = [folder / f"{step}.h5" for step in "qc filter normalize hvg".split()]
        pca(counts, *inputs, tmp_path / "pca.h5", **asked, execution=execution)
        found[execution] = step_files.read_all(tmp_path / "pca.h5")
    pairs = zip(*(found[execution]["obsm/X_pca"].T[:5] for execution in found), strict=True)
    r = [abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs]
    print(f"{changes}: least |r| of the first 5 components in blocks and in memory: {min(r):.7f}")
    assert min(r) > 0.9999
    variance = [found[execution]["uns/pca"]["variance"] for execution in found]
    np.testing.assert_allclose(*variance, rtol=5e-3)


@pytest.mark.parametrize("method", ["t-test", "t-test_overestim_var", "wilcoxon_binned", "logreg"])
def test_marker_scores_agree(files, settings, tmp_path, method):
    tables = {}
    for execution in ("memory", "blocks"):
        table = tmp_path / f"{execution}.csv"
        wanted = settings("markers", method=method, groupby="leiden", **GPU)
        markers(
            *matrix_of(files),
            files[1] / "leiden.h5",
            tmp_path / "m.h5",
            table,
            **wanted,
            execution=execution,
        )
        table = pd.read_csv(table, dtype={"group": str})
        tables[execution] = table.set_index(["group", "names"])["scores"].sort_index()
    memory, in_blocks = tables.values()
    r = np.corrcoef(memory, in_blocks)[0, 1]
    print(f"{method}: r {r:.6f}, largest difference {abs(memory - in_blocks).max():.2g}")
    # an iterative fit over several starts of summation
    assert abs(memory - in_blocks).max() < (0.1 if method == "logreg" else 2e-3)
    assert r > 0.999


@pytest.mark.parametrize("algorithm", ["nn_descent", "cagra", "ivfflat", "all_neighbors"])
def test_approximate_neighbors_are_measured(files, settings, tmp_path, algorithm):
    counts, folder = files
    inputs = [folder / f"{step}.h5" for step in "qc filter normalize hvg".split()]
    pca(counts, *inputs, tmp_path / "pca.h5", **settings("pca", n_comps=40, **GPU, seed=0))
    wanted = settings("neighbors", algorithm=algorithm, min_recall=0.5, **GPU, seed=0)
    neighbors(tmp_path / "pca.h5", tmp_path / "n.h5", **wanted)
    found = step_files.provenance_of(tmp_path / "n.h5")["recall"]
    print(f"recall of {algorithm}: {found['recall']}")
    assert found["algorithm"] == algorithm
    assert found["recall"] > 0.9


@pytest.mark.parametrize("execution", ["memory", "blocks"])
def test_a_kept_matrix_gives_the_same_results(files, settings, tmp_path, execution, monkeypatch):
    counts, folder = files
    how = {"backend": "gpu", "execution": execution}
    n_reads = []
    read = Counts.read
    monkeypatch.setattr(
        Counts, "read", lambda *args, **more: n_reads.append(1) or read(*args, **more)
    )

    def results(name: str) -> dict:
        place = tmp_path / name
        place.mkdir()
        asked = settings("hvg", n_top_genes=1000, batch_key=None)
        hvg(*matrix_of(files), place / "hvg.h5", **asked, **how)
        inputs = counts, folder / "qc.h5", *matrix_of(files)[1:], place / "hvg.h5"
        pca(*inputs, place / "pca.h5", **settings("pca", n_comps=20, seed=0), **how)
        asked = settings("markers", groupby="leiden", method="wilcoxon_binned")
        tables = place / "markers.h5", place / "markers.csv"
        markers(*matrix_of(files), folder / "leiden.h5", *tables, **asked, **how)
        found = {
            slot: step_files.read(place / "pca.h5", slot) for slot in ("obsm/X_pca", "varm/PCs")
        }
        return found | {
            "genes": step_files.read(place / "hvg.h5", "var/highly_variable"),
            "scores": pd.read_csv(place / "markers.csv")["scores"].to_numpy(),
        }

    cold = results("cold")
    n_cold = len(n_reads)
    kept_matrices.start()
    try:
        kept = results("kept")
        assert kept_matrices.nbytes() > 0
    finally:
        kept_matrices.stop()
    assert len(n_reads) - n_cold == n_cold / 3  # by hvg alone
    np.testing.assert_array_equal(kept["genes"], cold["genes"])
    np.testing.assert_allclose(kept["scores"], cold["scores"], rtol=1e-4, atol=1e-4)
    # sums on a GPU differ in the last digits from run to run, components of noise by a little more
    for name in ("obsm/X_pca", "varm/PCs"):
        for found, expected in zip(kept[name].T, cold[name].T, strict=True):
            assert np.corrcoef(found, expected)[0, 1] > 0.99999, name
