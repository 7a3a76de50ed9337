"""GPU against CPU on pbmc3k in three tiers: exact, within tolerance, within a reseed's range."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

from scripts.harmony import harmony
from scripts.hvg import hvg, moments
from scripts.louvain import louvain
from scripts.markers import markers
from scripts.pca import pca
from scripts.trajectory import trajectory
from scripts.tsne import tsne
from scrna import backend
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.matrix import open_matrix
from scrna.methods import clustering
from scrna.methods import tsne as tsne_method
from scrna.methods.harmony import run_harmony
from scrna.methods.nearest import connected_pieces

pytestmark = pytest.mark.gpu


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of a row's entries that the same row of the other has."""
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(one, other, strict=True)]))


def nearest(points: np.ndarray, k: int = 15) -> np.ndarray:
    """Find the k nearest points of each, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)


# --------------------------------------------------------------------------------------- exact


def test_qc_is_exactly_equal(analyses):
    cpu, gpu = (step_files.read_all(analyses[name] / "qc.h5") for name in ("cpu", "gpu"))
    assert list(cpu) == list(gpu)
    for name, values in cpu.items():
        if "log1p" in name:
            np.testing.assert_allclose(gpu[name], values, rtol=1e-12)
        else:
            np.testing.assert_array_equal(gpu[name], values, err_msg=name)


def test_the_same_cells_and_genes_stay(analyses):
    for slot in ("obs/keep", "var/keep", "var/n_cells_kept"):
        cpu, gpu = (step_files.read(analyses[name] / "filter.h5", slot) for name in ("cpu", "gpu"))
        np.testing.assert_array_equal(gpu, cpu)
    assert step_files.read(analyses["gpu"] / "filter.h5", "obs/keep").sum() == 2638


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat", "seurat_v3", "pearson_residuals"])
def test_the_same_genes_are_highly_variable(analyses, counts, settings, tmp_path, flavor):
    folder, chosen = analyses["cpu"], {}
    for device in ("cpu", "gpu"):
        out = tmp_path / f"{device}.h5"
        chosen_by = settings("hvg", flavor=flavor, n_top_genes=2000, batch_key=None, backend=device)
        hvg(counts, folder / "filter.h5", folder / "normalize.h5", out, **chosen_by)
        chosen[device] = step_files.read(out, "var/highly_variable")
    both = (chosen["cpu"] & chosen["gpu"]).sum()
    print(f"{flavor}: {both} of 2000 genes in common")
    # loess and clipped residuals are float32 on the GPU: a tie at the cut may fall either way
    assert both >= (2000 if flavor in ("cell_ranger", "seurat") else 1995)


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat", "seurat_v3"])
@pytest.mark.parametrize("asked", ["memory", "blocks"])
def test_statistics_of_genes_that_are_all_taken_agree(analyses, counts, flavor, asked):
    folder, found = analyses["cpu"], {}
    values = None if flavor == "seurat_v3" else folder / "normalize.h5"
    for device, how in (("cpu", "memory"), ("gpu", asked)):
        files = counts, folder / "filter.h5", values
        with open_matrix("hvg", *files, backend=device, asked=how, flavor=flavor) as matrix:
            found[device] = moments(matrix, flavor)
            n_cells = matrix.shape[0]
    assert found["cpu"].keys() == found["gpu"].keys()
    mean = found["cpu"]["means"]
    for name, expected in found["cpu"].items():
        error = 1e-4 * np.abs(expected)
        if flavor == "cell_ranger" and name == "dispersions":
            # (E[x²] - mean²) / mean: the GPU sums n float32 values, each rounded to 2**-24, and
            # of a gene that all cells have little is left of the difference
            squares = expected * mean + 2 * mean**2
            error = error + n_cells * 2.0**-24 * squares / np.maximum(mean, 1e-12)
        assert (np.abs(found["gpu"][name] - expected) <= error).all(), name


# ----------------------------------------------------------------------------------- tolerance


def test_log_normalized_values_agree(analyses, counts):
    folder = analyses["cpu"]
    files = counts, folder / "filter.h5", folder / "normalize.h5"
    found = {}
    for device in ("cpu", "gpu"):
        with open_matrix("hvg", *files, backend=device, asked="memory") as matrix:
            found[device] = backend.to_host(matrix)
    cpu, gpu = found["cpu"], found["gpu"]
    np.testing.assert_array_equal(gpu.indices, cpu.indices)
    np.testing.assert_array_equal(gpu.indptr, cpu.indptr)
    np.testing.assert_allclose(gpu.data, cpu.data, rtol=1e-6)


def test_principal_components_agree_up_to_sign(analyses):
    cpu, gpu = (step_files.read(analyses[name] / "pca.h5", "obsm/X_pca") for name in ("cpu", "gpu"))
    r = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(cpu.T[:20], gpu.T[:20], strict=True)]
    print(f"least |r| of the first 20 components: {min(r):.8f}")
    assert min(r) > 0.9999
    ratio = [
        step_files.read(analyses[n] / "pca.h5", "uns/pca")["variance_ratio"] for n in ("cpu", "gpu")
    ]
    np.testing.assert_allclose(ratio[1], ratio[0], rtol=1e-3)


def test_scaled_and_regressed_components_agree(analyses, counts, settings, tmp_path):
    folder, found = analyses["cpu"], {}
    files = [folder / f"{step}.h5" for step in "qc filter normalize hvg".split()]
    asked = {"n_comps": 20, "regress_out": ["total_counts", "pct_counts_mt"], "scale": True}
    for device in ("cpu", "gpu"):
        out = tmp_path / f"{device}.h5"
        pca(counts, *files, out, **settings("pca", **asked, backend=device, seed=0))
        found[device] = step_files.read(out, "obsm/X_pca")
    pairs = zip(found["cpu"].T[:5], found["gpu"].T[:5], strict=True)
    r = [abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs]
    print(f"least |r| of the first 5 components after regress_out and scale: {min(r):.6f}")
    assert min(r) > 0.999


@pytest.mark.parametrize("method", ["wilcoxon", "t-test", "t-test_overestim_var"])
def test_marker_scores_agree(analyses, counts, settings, tmp_path, method):
    folder, tables = analyses["cpu"], {}
    files = counts, folder / "filter.h5", folder / "normalize.h5", folder / "leiden.h5"
    for device in ("cpu", "gpu"):
        table = tmp_path / f"{device}.csv"
        asked = settings("markers", method=method, backend=device)
        markers(*files, tmp_path / f"{device}.h5", table, **asked)
        found = pd.read_csv(table, dtype={"group": str})
        tables[device] = found.set_index(["group", "names"]).sort_index()
    cpu, gpu = tables["cpu"], tables["gpu"].loc[tables["cpu"].index]
    np.testing.assert_allclose(gpu["scores"], cpu["scores"], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(gpu["pct_nz_group"], cpu["pct_nz_group"], atol=1e-5)
    tested = cpu["pvals_adj"] < 0.05
    assert ((gpu["pvals_adj"] < 0.05) == tested).mean() > 0.999


@pytest.mark.parametrize("method", ["wilcoxon_binned", "logreg"])
def test_the_gpus_other_tests_find_the_same_markers(analyses, counts, settings, tmp_path, method):
    folder, top = analyses["cpu"], {}
    files = counts, folder / "filter.h5", folder / "normalize.h5", folder / "leiden.h5"
    other = "wilcoxon" if method == "wilcoxon_binned" else "logreg"
    for device, asked in (("gpu", method), ("cpu", other)):
        table = tmp_path / f"{device}.csv"
        markers(
            *files,
            tmp_path / f"{device}.h5",
            table,
            **settings("markers", method=asked, backend=device),
        )
        found = pd.read_csv(table, dtype={"group": str})
        top[device] = {g: set(part["names"].head(20)) for g, part in found.groupby("group")}
    shared = np.mean([len(top["gpu"][g] & top["cpu"][g]) / 20 for g in top["cpu"]])
    print(f"{method} on the GPU, {other} on the CPU: {shared:.2f} of the top 20 in common")
    assert shared > (0.9 if method == "wilcoxon_binned" else 0.5)


def test_harmony_on_the_gpu_agrees_with_r(real_data):
    folder = real_data / "reference/harmony"
    read = {"sep": "\t"}
    before = pd.read_csv(folder / "pbmc_3500_pcs.tsv.gz", **read).to_numpy(dtype=np.float32)
    expected = pd.read_csv(folder / "pbmc_3500_pcs_harmonized.tsv.gz", **read).to_numpy()
    donors = pd.read_csv(folder / "pbmc_3500_meta.tsv.gz", **read)[["donor"]].astype("category")
    donors.index = donors.index.astype(str)
    after = run_harmony(
        before,
        donors,
        theta=[2.0],
        sigma=0.1,
        lamb=None,
        max_iter=10,
        flavor="harmony2",
        backend="gpu",
        seed=0,
        threads=1,
    )
    n = expected.shape[1]
    r = [np.corrcoef(after[:, i], expected[:, i])[0, 1] for i in range(n)]
    print(f"Harmony on the GPU against R: least r {min(r):.3f}, median {np.median(r):.3f}")
    assert min(r) > 0.9


# --------------------------------------------------------------------------------------- range


def test_neighbors_overlap(analyses):
    files = [analyses[name] / "neighbors.h5" for name in ("cpu", "gpu")]
    graphs = [step_files.read(file, "obsp/distances") for file in files]
    shared = np.mean(
        [
            len(np.intersect1d(a.indices, b.indices)) / max(len(a.indices), 1)
            for a, b in zip(*graphs, strict=True)
        ]
    )
    print(f"neighbors in common: {shared:.4f}")
    assert shared > 0.99
    weights = [
        step_files.read(analyses[n] / "neighbors.h5", "obsp/connectivities") for n in ("cpu", "gpu")
    ]
    assert abs(weights[1] - weights[1].T).max() < 1e-6
    assert np.isclose(weights[0].sum(), weights[1].sum(), rtol=0.01)


def test_clusters_agree_as_well_as_a_reseed(analyses):
    labels = {
        n: step_files.read(folder / "leiden.h5", "obs/leiden") for n, folder in analyses.items()
    }
    on_gpu = adjusted_rand_score(labels["cpu"], labels["gpu"])
    reseeded = adjusted_rand_score(labels["cpu"], labels["reseed"])
    print(f"Leiden: ARI GPU {on_gpu:.3f}, CPU reseed {reseeded:.3f}")
    assert on_gpu > min(reseeded, 0.95) - 0.15


def test_of_few_cells_the_best_of_several_tries_is_taken(analyses, monkeypatch):
    graph = step_files.read(analyses["gpu"] / "neighbors.h5", "obsp/connectivities")

    def modularities(seeds) -> np.ndarray:
        how = {"n_iterations": 100, "backend": "gpu"}
        found = (clustering.leiden(graph, 0.5, seed=seed, **how) for seed in seeds)
        return np.array([clustering.modularity(graph, clusters, 0.5) for clusters in found])

    best = modularities(range(4))
    monkeypatch.setattr(clustering, "TRIES_UP_TO", 0)
    alone = modularities(range(8))
    print(f"Leiden: modularity, best of tries {best}, alone {alone}")
    assert (best >= alone[:4] - 1e-6).all()
    assert best.min() > np.median(alone) - 1e-6


def test_louvain_agrees_with_leiden(analyses, settings, tmp_path):
    folder = analyses["gpu"]
    asked = settings("louvain", resolution=[0.6, 1.2], backend="gpu", seed=0)
    louvain(folder / "neighbors.h5", tmp_path / "louvain.h5", **asked)
    labels = step_files.read(tmp_path / "louvain.h5", "obs/louvain")
    assert adjusted_rand_score(labels, step_files.read(folder / "leiden.h5", "obs/leiden")) > 0.6
    finer = step_files.read(tmp_path / "louvain.h5", "obs/louvain_1.2")
    assert len(finer.categories) > len(labels.categories)


def test_umap_keeps_neighbors_as_well_as_a_reseed(analyses):
    points = {
        n: step_files.read(folder / "umap.h5", "obsm/X_umap") for n, folder in analyses.items()
    }
    near = {name: nearest(values) for name, values in points.items()}
    on_gpu, reseeded = (overlap(near["cpu"], near[name]) for name in ("gpu", "reseed"))
    print(f"UMAP neighbors in common: GPU {on_gpu:.2f}, CPU reseed {reseeded:.2f}")
    assert on_gpu > reseeded - 0.15


def test_tsne_keeps_neighborhoods(analyses, settings, tmp_path):
    from sklearn.manifold import trustworthiness

    found = {}
    components = step_files.read(analyses["cpu"] / "pca.h5", "obsm/X_pca")[:, :40]
    for device in ("cpu", "gpu"):
        out = tmp_path / f"{device}.h5"
        tsne(analyses["cpu"] / "pca.h5", out, **settings("tsne", backend=device, seed=0))
        points = step_files.read(out, "obsm/X_tsne")
        found[device] = trustworthiness(components, points, n_neighbors=15)
    print(f"t-SNE trustworthiness: {found}")
    assert found["gpu"] > found["cpu"] - 0.02


def test_tsne_by_fft_on_neighbors_that_are_given(analyses, settings, tmp_path, monkeypatch):
    """As for many cells, here with cells that have twins, which a search may find before them."""
    from sklearn.manifold import trustworthiness

    components = np.array(step_files.read(analyses["cpu"] / "pca.h5", "obsm/X_pca")[:, :40])
    components[100:200] = components[:100]
    step_files.write(tmp_path / "pca.h5", {"obsm/X_pca": components})
    found = {}
    for method in ("barnes_hut", "fft"):
        for exact_up_to in (200_000, 0):
            monkeypatch.setattr(tsne_method, "EXACT_UP_TO", exact_up_to)
            out = tmp_path / f"{method}-{exact_up_to}.h5"
            tsne(tmp_path / "pca.h5", out, **settings("tsne", method=method, backend="gpu", seed=0))
            points = step_files.read(out, "obsm/X_tsne")
            found[method, exact_up_to] = trustworthiness(components, points, n_neighbors=15)
    print(f"t-SNE trustworthiness: {found}")
    assert min(found.values()) > max(found.values()) - 0.02


def test_pieces_of_a_graph(analyses):
    graph = step_files.read(analyses["cpu"] / "neighbors.h5", "obsp/connectivities").tolil()
    for cells in (slice(5, 8), slice(100, 101)):
        graph[cells], graph[:, cells] = 0, 0
    graph = graph.tocsr()
    graph.eliminate_zeros()
    (n_cpu, on_cpu), (n_gpu, on_gpu) = (connected_pieces(graph, backend=x) for x in ("cpu", "gpu"))
    assert n_cpu == n_gpu >= 5
    assert adjusted_rand_score(on_cpu, on_gpu) == 1
    assert set(on_gpu) == set(range(n_gpu))


@pytest.mark.parametrize("root", [None, {"gene": "CD79A"}])
def test_trajectory_agrees(analyses, counts, settings, tmp_path, root):
    folder, found = analyses["cpu"], {}
    names = Counts(counts).cell_names()[kept(folder / "filter.h5")[0]]
    for device in ("cpu", "gpu"):
        out = tmp_path / f"{device}.h5"
        files = [folder / f"{step}.h5" for step in "filter normalize neighbors leiden".split()]
        asked = settings("trajectory", root=root or {"cell": names[0]}, backend=device, seed=0)
        trajectory(counts, *files, out, label_key=None, **asked)
        found[device] = step_files.read_all(out)
    evals = [found[device]["uns/diffmap_evals"] for device in ("cpu", "gpu")]
    np.testing.assert_allclose(evals[1], evals[0], rtol=1e-3)
    times = [found[device]["obs/dpt_pseudotime"] for device in ("cpu", "gpu")]
    finite = np.isfinite(times[0])
    np.testing.assert_array_equal(finite, np.isfinite(times[1]))
    r = np.corrcoef(times[0][finite], times[1][finite])[0, 1]
    print(f"pseudotime GPU against CPU: r {r:.4f}")
    assert r > 0.99


def test_doublets_are_within_a_reseed(counts, settings, tmp_path):
    """Scores on the GPU are as near to the CPU's as those of another seed, and made ones are found.

    A seed draws other doublets to compare with, and the libraries draw differently from the same.
    """
    from scripts.doublets import doublets

    scores, called = {}, {}
    for name, on, seed in (("cpu", "cpu", 0), ("reseed", "cpu", 1), ("gpu", "gpu", 0)):
        out = tmp_path / f"{name}.h5"
        given = {"method": "scrublet", "backend": on, "seed": seed}
        doublets(counts, out, out.with_suffix(".csv"), **settings("doublets", **given))
        scores[name] = step_files.read(out, "obs/doublet_score")
        called[name] = step_files.read(out, "obs/predicted_doublet").mean()
    assert np.isfinite(scores["gpu"]).all()
    between = {n: spearmanr(scores["cpu"], scores[n]).statistic for n in ("reseed", "gpu")}
    print(f"doublet scores against the CPU's: {between}; predicted: {called}")
    assert between["gpu"] > between["reseed"] - 0.05
    assert 0 < called["gpu"] < 0.25


def test_doublets_on_the_gpu_are_the_same_alone_and_beside_others(tmp_path):
    from scripts.convert import convert
    from scripts.doublets import doublets
    from scrna.ingest.simulate import Simulation

    Simulation(n_obs=1200, n_vars=2000, n_batches=2, seed=0).write_h5ad(tmp_path / "both.h5ad")
    found = {}
    for name, keep in (("both", {}), ("one", {"batch": ["batch_2"]})):
        folder = tmp_path / name
        folder.mkdir()
        store = folder / "counts.zarr"
        source = tmp_path / "both.h5ad"
        convert(source, store, folder / "counts.json", dataset=name, keep_obs=keep)
        given = {"method": "scrublet", "by": "batch", "expected_rate": None, "seed": 0}
        doublets(store, folder / "d.h5", folder / "d.csv", **given, backend="gpu")
        own = Counts(store).obs(["batch"])["batch"] == "batch_2"
        found[name] = step_files.read(folder / "d.h5", "obs/doublet_score")[own]
    np.testing.assert_allclose(found["one"], found["both"], rtol=1e-5)


def test_harmony_mixes_cell_lines(real_data, settings, tmp_path):
    """On celllines Harmony on the GPU joins the batches and keeps the lines apart."""
    from scripts.convert import convert
    from scripts.filter import filter_cells
    from scripts.leiden import leiden
    from scripts.neighbors import neighbors
    from scripts.normalize import normalize
    from scripts.qc import qc

    def file(name):
        return tmp_path / f"{name}.h5"

    on, seeded = {"backend": "gpu"}, {"backend": "gpu", "seed": 0}
    counts = tmp_path / "counts.zarr"
    source = real_data / "celllines/celllines_5batch.h5ad"
    convert(source, counts, tmp_path / "counts.json", dataset="celllines")
    qc(counts, file("qc"), **settings("qc", **on))
    bounds = settings("filter", min_genes=1, max_genes=None, max_pct_mt=20)
    filter_cells(counts, file("qc"), file("filter"), tmp_path / "filter.csv", **bounds)
    normalize(counts, file("filter"), file("normalize"), **settings("normalize", **on))
    matrix = counts, file("filter"), file("normalize")
    hvg(*matrix, file("hvg"), **settings("hvg", batch_key="batch", **on))
    pca(counts, file("qc"), *matrix[1:], file("hvg"), file("pca"), **settings("pca", **seeded))
    asked = settings("harmony", batch_key=["batch"], **seeded)
    harmony(counts, file("filter"), file("pca"), file("harmony"), **asked)
    cells = kept(file("filter"))[0]
    lines = Counts(counts).obs(["cell_line"])["cell_line"][cells]
    scores = {}
    for rep in ("pca", "harmony"):
        neighbors(file(rep), file("neighbors"), **settings("neighbors", **seeded))
        leiden(file("neighbors"), file("leiden"), **settings("leiden", **seeded))
        scores[rep] = adjusted_rand_score(lines, step_files.read(file("leiden"), "obs/leiden"))
    print(f"celllines on the GPU: ARI {scores}")
    assert scores["harmony"] > max(0.8, scores["pca"])
