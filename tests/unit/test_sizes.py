import json

import pytest

from scrna.sizes import memory_mb

STEPS = "qc filter normalize hvg pca harmony neighbors umap tsne leiden louvain markers trajectory"
STEPS = [*STEPS.split(), "final"]


@pytest.fixture
def memory(tmp_path):
    def of(step, *, n_obs=200_000, n_vars=20_000, nnz=300_000_000):
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"n_obs": n_obs, "n_vars": n_vars, "nnz": nnz}))
        return memory_mb(path, step)

    return of


@pytest.mark.parametrize("step", ["hvg", "pca", "markers"])
def test_a_step_that_reads_the_matrix_has_room_for_it_and_a_copy(memory, step):
    matrix = 300_000_000 * 8 / 1e6
    assert 2 * matrix < memory(step) < 4 * matrix
    assert memory(step, nnz=600_000_000) - memory(step) >= 2 * matrix


@pytest.mark.parametrize("step", sorted(set(STEPS) - {"hvg", "pca", "markers"}))
def test_other_steps_do_not_grow_with_the_matrix(memory, step):
    assert memory(step, nnz=3_000_000_000) == memory(step)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_grows_with_the_cells_and_has_room_for_its_imports(memory, step):
    small, large = (memory(step, n_obs=n_obs, nnz=n_obs * 1000) for n_obs in (1000, 10_000_000))
    assert 2000 <= small < 2200
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
