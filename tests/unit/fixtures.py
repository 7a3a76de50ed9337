"""Analyses that several test modules share, each run once.

A test module takes them by ``pytest_plugins = ["tests.unit.fixtures"]``.
"""

import pytest

from scrna.ingest.simulate import Simulation
from tests.unit.steps import analyse


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Some 630 cells × 500 genes in three batches, before and after Harmony."""
    folder = tmp_path_factory.mktemp("demo")
    simulation = Simulation(n_obs=700, n_vars=500, markers_per_type=25, seed=0)
    simulation.write_h5ad(folder / "source.h5ad")
    return analyse(
        folder,
        folder / "source.h5ad",
        batch_key=["batch"],
        label_key="cell_type",
        filter={"min_genes": 100},
        hvg={"n_top_genes": 300},
        pca={"n_comps": 50},
        trajectory={"root": {"label": "type_1"}},
    )
