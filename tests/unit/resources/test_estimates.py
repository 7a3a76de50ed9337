"""What a step is said to need: held against arithmetic, and against the peaks seen on an H200."""

import json

import pytest

from scrna.data import counts
from scrna.resources.estimates import (
    BLOCK_NNZ,
    BLOCK_STEPS,
    GPU_MAX_NNZ,
    MATRIX_STEPS,
    block_bytes,
    csr_bytes,
    memory_mb,
    pca_columns,
    step_bytes,
)

STEPS = "qc filter normalize hvg pca harmony neighbors umap tsne leiden louvain markers trajectory"
STEPS = [*STEPS.split(), "final"]
SMALL = {"n_obs": 200_000, "n_vars": 20_000, "nnz": 357_000_000}
LARGE = {"n_obs": 1_000_000, "n_vars": 28_000, "nnz": 1_822_000_000}
GB = 1e9


def test_bytes_of_a_sparse_matrix():
    assert csr_bytes(1000, 50_000) == 50_000 * (4 + 4) + 1001 * 4
    assert csr_bytes(1000, 2**31 - 1) == (2**31 - 1) * 8 + 1001 * 4
    assert csr_bytes(1000, 2**31) == 2**31 * (4 + 8) + 1001 * 8


def test_what_lies_in_the_highly_variable_genes():
    assert pca_columns(1000, 20_000, 1_000_000, 20_000) == (20_000, 1_000_000)
    assert pca_columns(1000, 20_000, 1_000_000, 30_000) == (20_000, 1_000_000)
    assert pca_columns(1000, 20_000, 1_000_000, 5000) == (5000, 600_000)
    assert pca_columns(1000, 20_000, 1_000_000, 10) == (10, 10_000)  # each cell has all ten


def test_the_limits_are_those_of_the_reader():
    assert (BLOCK_NNZ, GPU_MAX_NNZ) == (counts.BLOCK_NNZ, counts.GPU_MAX_NNZ)


# The peaks are docs/measurements.md's, GB on an H200. Its reader held the matrix twice for a
# moment, which hvg's peak is.
PEAKS = {
    "small": (
        SMALL,
        {
            "qc": 0.64, "hvg": 5.66 / 2, "pca": 1.09, "harmony": 0.33, "neighbors": 0.27,
            "umap": 0.22, "tsne": 0.94, "leiden": 0.28, "trajectory": 0.30, "markers": 6.39,
        },
    ),
    "large": (
        LARGE,
        {
            "qc": 0.64, "hvg": 28.86 / 2, "pca": 2.33, "harmony": 1.67, "neighbors": 1.33,
            "umap": 1.05, "leiden": 1.35, "trajectory": 1.46, "markers": 28.86,
        },
    ),
    "1 M, neighbors of t-SNE given": (
        {"n_obs": 899_800, "n_vars": 27_998, "nnz": 1_990_000_000},
        {"harmony": 1.67, "umap": 1.08, "tsne": 8.57, "leiden": 1.39, "trajectory": 2.00},
    ),
    "pbmc3k": (
        {"n_obs": 2700, "n_vars": 13_700, "nnz": 2_280_000},
        {"qc": 0.11, "hvg": 0.08 / 2, "pca": 0.61, "tsne": 0.02, "neighbors": 0, "markers": 0.08},
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", PEAKS)
def test_no_estimate_is_below_what_was_measured(data):
    sizes, peaks = PEAKS[data]
    for step, peak in peaks.items():
        of_step = dict(sizes)
        if step == "pca":
            of_step["n_vars"], of_step["nnz"] = pca_columns(**sizes, n_top_genes=5000)
        # one block at a time was worked on then
        estimate = step_bytes(step, **of_step, threads=1)
        assert peak * GB <= estimate, step
        assert estimate < peak * GB * (5 if step == "pca" else 2) + 1 * GB, step


def test_copies_of_the_flavors_and_methods():
    matrix = csr_bytes(LARGE["n_obs"], LARGE["nnz"])
    rest = step_bytes("hvg", **LARGE) - matrix
    assert rest == BLOCK_NNZ * 40 + 2**28

    def copies(step, **settings):
        return (step_bytes(step, **LARGE, **settings) - rest) / matrix

    assert copies("hvg", flavor="seurat_v3") == 2
    assert copies("hvg", flavor="seurat") == 3
    assert copies("hvg", flavor="pearson_residuals") == 5
    assert copies("hvg", batch_key="donor") == 4  # the largest batch may be nearly all
    assert copies("hvg", batch_key="donor", largest_batch=0.25) == 1.75
    assert copies("hvg", batch_key="donor", largest_batch=0.25, flavor="seurat") == 2.25
    wanted = {"t-test": 1, "wilcoxon": 2, "logreg": 3}
    for method, n in wanted.items():
        assert copies("markers", method=method) == pytest.approx(n, abs=0.01)
        assert copies("markers", method=method, backend="cpu") == pytest.approx(2.5, abs=0.03)
    # 1,000 bins a gene and group
    bins = copies("markers", method="wilcoxon_binned", n_groups=10)
    assert (bins - 1) * matrix == pytest.approx(28_000 * 10 * (1000 * 12 + 64), rel=1e-6)


def test_a_dense_matrix_counts_three_times():
    sizes = {"n_obs": 100_000, "n_vars": 5000, "nnz": 10_000_000}
    dense = 100_000 * 5000 * 4 * 3
    sparse = step_bytes("pca", **sizes)
    for settings in ({"scale": True}, {"regress_out": ["total_counts"]}, {"dense": True}):
        assert step_bytes("pca", **sizes, **settings) == sparse + dense
    assert step_bytes("pca", **sizes, scale=True, zero_center=False) == sparse
    assert step_bytes("pca", **sizes, regress_out=[], scale=False) == sparse


def test_whole_sections_of_the_config_may_be_given():
    config = {"n_pcs": 40, "n_neighbors": 30, "metric": "cosine", "algorithm": "brute"}
    thirty = step_bytes("neighbors", n_obs=10**6, **config)
    assert thirty > step_bytes("neighbors", n_obs=10**6, **config | {"n_neighbors": 15})
    assert step_bytes("neighbors", n_obs=10**6, **config | {"algorithm": "cagra"}) > thirty
    assert step_bytes("tsne", n_obs=10**6, perplexity=60) > step_bytes("tsne", n_obs=10**6)


@pytest.mark.parametrize("step", [*MATRIX_STEPS, *BLOCK_STEPS])
@pytest.mark.parametrize("backend", ["gpu", "cpu"])
def test_blocks_need_little_however_large_the_matrix(step, backend):
    genes = {"n_vars": 5000 if step == "pca" else 28_000}
    small = block_bytes(step, **LARGE | genes, backend=backend)
    large = block_bytes(step, n_obs=10**7, nnz=2 * 10**10, **genes, backend=backend)
    assert small < large < 14 * GB
    assert large - small < 9e6 * 1000  # cells × components alone
    assert block_bytes(step, **LARGE | genes, backend=backend, threads=1) < small
    tiny = block_bytes(step, n_obs=1000, n_vars=500, nnz=100_000, backend="cpu")
    assert tiny < 0.1 * GB


def test_steps_that_always_go_by_blocks_need_what_blocks_do():
    for step in BLOCK_STEPS:
        assert step_bytes(step, **LARGE) == block_bytes(step, **LARGE)


# ------------------------------------------------------------------------------------- mem_mb


@pytest.fixture
def memory(tmp_path):
    def of(step, *, n_obs=200_000, n_vars=20_000, nnz=300_000_000, **more):
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"n_obs": n_obs, "n_vars": n_vars, "nnz": nnz}))
        return memory_mb(path, step, **more)

    return of


@pytest.mark.parametrize(("step", "share"), [("hvg", 1), ("pca", 0.6), ("markers", 2.5)])
def test_a_step_that_reads_the_matrix_has_room_for_it(memory, step, share):
    matrix = 300_000_000 * 8 / 1e6
    assert share * matrix < memory(step) - 2000 < 2 * share * matrix + 2000
    assert memory(step, nnz=600_000_000) - memory(step) >= 1.4 * share * matrix
    large = {"n_obs": 2_000_000, "nnz": 4_000_000_000}
    assert memory(step, **large, mode="blocks") < memory(step, **large) / 2


def test_a_dense_pca_has_room_for_the_dense_matrix(memory):
    dense = 200_000 * 5000 * 4 / 1e6
    assert memory("pca", dense_genes=5000) - memory("pca") > 3 * dense
    large = {"n_obs": 2_000_000, "nnz": 4_000_000_000, "dense_genes": 5000}
    assert memory("pca", **large, mode="blocks") < memory("pca", **large) / 5


@pytest.mark.parametrize("step", sorted(set(STEPS) - set(MATRIX_STEPS)))
def test_other_steps_do_not_grow_with_the_matrix(memory, step):
    assert memory(step, nnz=3_000_000_000) == memory(step)
    assert memory(step, mode="blocks") == memory(step)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_grows_with_the_cells_and_has_room_for_its_imports(memory, step):
    small, large = (
        memory(step, n_obs=n_obs, n_vars=2000, nnz=n_obs * 1000) for n_obs in (1000, 10_000_000)
    )
    assert 2000 <= small < 2300
    assert large > small + 2000
    assert isinstance(large, int)


def test_the_neighbor_graph_fits(memory):
    graph = 200_000 * 15 * 8 / 1e6  # values and columns, in one direction
    for step in ("neighbors", "umap", "leiden", "trajectory"):
        assert memory(step) - 2000 > 4 * graph


def test_counts_that_are_not_converted_yet_have_no_sizes(tmp_path):
    with pytest.raises(FileNotFoundError):
        memory_mb(tmp_path / "counts.json", "pca")


def test_the_summary_may_be_named_by_text(memory, tmp_path):
    assert memory("pca") == memory_mb(str(tmp_path / "counts.json"), "pca")
