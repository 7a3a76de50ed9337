"""rapids-singlecell goes on from the final object of pbmc3k as it is."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

from scripts.final import final
from scripts.matrix import matrix

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def whole(analyses, counts, tmp_path_factory):
    """Gather the analysis that was made on the GPU."""
    folder = analyses["gpu"]
    out = tmp_path_factory.mktemp("final") / "final.zarr"
    steps = [folder / f"{name}.h5" for name in "qc hvg pca neighbors umap leiden".split()]
    base = [folder / f"{name}.h5" for name in ("filter", "normalize")]
    matrix(counts, *base, out.with_name("matrix.zarr"), X=True, counts_layer=True)
    final(counts, *base, out.with_name("matrix.zarr"), steps, out)
    return ad.read_zarr(out)


@pytest.fixture
def adata(whole):
    """Put its matrices on the GPU."""
    import rapids_singlecell as rsc

    copied = whole.copy()
    rsc.get.anndata_to_GPU(copied, convert_all=True)
    return copied


def test_it_goes_to_the_gpu_and_back(adata, whole):
    import cupyx.scipy.sparse
    import rapids_singlecell as rsc

    for values in (adata.X, adata.layers["counts"]):
        assert isinstance(values, cupyx.scipy.sparse.csr_matrix)
    rsc.get.anndata_to_CPU(adata, convert_all=True)
    assert (adata.X != whole.X).nnz == 0
    assert (adata.layers["counts"] != whole.layers["counts"]).nnz == 0


def test_clusters_and_embedding_of_its_graph(adata, whole):
    import rapids_singlecell as rsc

    resolution = whole.uns["leiden"]["params"]["resolution"]
    rsc.tl.leiden(adata, resolution=float(np.ravel(resolution)[0]), key_added="again", rng=0)
    assert adjusted_rand_score(adata.obs["again"], whole.obs["leiden"]) > 0.7
    rsc.tl.umap(adata, rng=0)
    assert adata.obsm["X_umap"].shape == (whole.n_obs, 2)
    assert np.isfinite(np.asarray(adata.obsm["X_umap"])).all()


def test_a_new_graph_of_its_components(adata):
    import rapids_singlecell as rsc

    rsc.pp.neighbors(adata, n_neighbors=10, use_rep="X_pca", key_added="again")
    assert adata.obsp["again_connectivities"].shape == (adata.n_obs, adata.n_obs)


def test_markers_are_those_that_scanpy_finds(adata, whole):
    import rapids_singlecell as rsc

    rsc.tl.rank_genes_groups(adata, "leiden", method="wilcoxon")
    theirs = whole.copy()
    sc.tl.rank_genes_groups(theirs, "leiden", method="wilcoxon")
    for group in whole.obs["leiden"].cat.categories[:3]:
        gpu, cpu = (sc.get.rank_genes_groups_df(each, group).head(20) for each in (adata, theirs))
        assert len(set(gpu["names"]) & set(cpu["names"])) >= 19  # a tie may fall either way
        shared = gpu.set_index("names").join(cpu.set_index("names"), rsuffix="_cpu", how="inner")
        np.testing.assert_allclose(shared["scores"], shared["scores_cpu"], rtol=1e-3)
        np.testing.assert_allclose(
            shared["logfoldchanges"], shared["logfoldchanges_cpu"], rtol=1e-2, atol=1e-2
        )
