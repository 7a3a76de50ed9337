import copy
import re

import pytest
import yaml

from scrna.config import settings as checks
from scrna.config.datasets import Source, required_obs, sources
from scrna.config.settings import check, complete, pick_run
from scrna.errors import UserError

SIMULATED = {"kind": "simulate"}


def whole(text="", **dataset):
    """A whole config of one dataset `d`, with settings written as YAML."""
    given = {"run": "d", "datasets": {"d": SIMULATED | dataset}} | (yaml.safe_load(text) or {})
    return complete(given)


def one(text="", **dataset):
    return whole(text, **dataset)["datasets"]["d"]


def complaints(text="", *, backend="cpu", **dataset):
    """What is said of a config, line by line."""
    with pytest.raises(UserError) as refusal:
        check(whole(text, **dataset) | {"backend": backend})
    head, *lines = str(refusal.value).split("\n")
    assert head == "The config has errors:"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


# --------------------------------------------------------------------------------------- defaults


def test_defaults_are_those_of_the_notebook():
    wanted = {
        "filter": {"max_genes": 5000, "max_pct_mt": 20, "min_cells": 3},
        "normalize": {"target_sum": 1e4},
        "hvg": {"flavor": "cell_ranger", "n_top_genes": 5000},
        "pca": {"n_comps": 100},
        "neighbors": {"n_neighbors": 15, "n_pcs": 40},
        "leiden": {"resolution": 0.6},
        "louvain": {"enabled": False},
        "tsne": {
            "perplexity": 30,
            "early_exaggeration": 12,
            "learning_rate": "auto",
        },  # 200, or more
    }
    found = one()
    for step, settings in wanted.items():
        assert settings.items() <= found[step].items()


def test_what_is_left_out_is_filled_in():
    full = complete({"datasets": {"demo": SIMULATED}})
    assert full["run"] == ["demo"]
    assert (full["backend"], full["seed"]) == ("auto", 0)
    demo = full["datasets"]["demo"]
    assert demo["kind"] == "simulate"
    assert (demo["source"], demo["batch_key"], demo["keep_obs"]) == (None, None, {})
    assert demo["simulate"]["n_obs"] == 3000
    assert demo["umap"] == {
        "min_dist": 0.5, "spread": 1.0, "n_components": 2, "max_iter": None, "alpha": 1.0,
        "negative_sample_rate": 5, "init": "spectral",
    }  # fmt: skip


def test_a_dataset_overrides_sections_for_itself_alone():
    given = {
        "run": ["a", "b"],
        "umap": {"min_dist": 0.3},
        "filter": {"max_genes": 4000},
        "datasets": {
            "a": SIMULATED | {"umap": {"spread": 2}, "filter": {"max_genes": None}},
            "b": SIMULATED | {"simulate": {"n_obs": 10}},
            "c": SIMULATED | {"umap": {"spread": 7}},
        },
    }
    before = copy.deepcopy(given)
    full = complete(given)
    assert given == before
    a, b, c = (full["datasets"][name] for name in "abc")
    assert (a["umap"]["min_dist"], a["umap"]["spread"], a["umap"]["alpha"]) == (0.3, 2, 1)
    assert (b["umap"]["min_dist"], b["umap"]["spread"]) == (0.3, 1)
    assert (a["filter"]["max_genes"], b["filter"]["max_genes"]) == (None, 4000)
    assert (b["simulate"]["n_obs"], b["simulate"]["n_vars"]) == (10, 2000)
    assert full["umap"]["spread"] == 1
    assert c == given["datasets"]["c"]  # it does not run
    assert a["leiden"] == b["leiden"] == full["leiden"]


def test_a_datasets_execution_is_the_configs_unless_it_has_its_own():
    given = {"run": ["a", "b"], "datasets": {name: dict(SIMULATED) for name in "abc"}}
    given["datasets"]["b"]["execution"] = "memory"

    def found(**more):
        full = complete(given | more)["datasets"]
        return full["a"]["execution"], full["b"]["execution"]

    assert found() == ("auto", "memory")
    assert found(execution="blocks") == ("blocks", "memory")


# -------------------------------------------------------------------------------------- run: auto

PICKED = {"run": "auto", "datasets": {"demo": {}, "brain_1m": {}, "cell_atlas": {}}}


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (150_754_820_096, "run: cell_atlas (auto: the GPU has 150.8 GB)"),  # H200
        (int(121.7 * 2**30), "run: cell_atlas (auto: the GPU has 130.7 GB)"),  # DGX Spark
        (int(96e9), "run: cell_atlas (auto: the GPU has 96.0 GB)"),
        (int(96e9) - 1, "run: brain_1m (auto: the GPU has 96.0 GB)"),
        (24_152_899_584, "run: brain_1m (auto: the GPU has 24.2 GB)"),  # L4, sold as 24 GB
        (int(24e9), "run: brain_1m (auto: the GPU has 24.0 GB)"),
    ],
)
def test_auto_picks_the_dataset_that_the_gpu_is_up_to(memory, expected):
    config, line = pick_run(PICKED, lambda: memory)
    assert line == expected
    assert config == PICKED | {"run": line.split()[1]}


def test_auto_picks_nothing_for_a_small_gpu_or_none():
    expected = (
        r"^run: auto picks no dataset for a GPU with 16\.0 GB of memory: brain_1m, the smaller "
        r"one, is for 24 GB and more; name a dataset yourself, e\.g\. run: demo$"
    )
    with pytest.raises(UserError, match=expected):
        pick_run(PICKED, lambda: int(16e9))
    with pytest.raises(UserError, match=r"there is no GPU here; name a dataset yourself"):
        pick_run(PICKED, lambda: None)


def test_auto_picks_only_what_is_defined():
    with pytest.raises(UserError, match="picks cell_atlas, which datasets does not define; define"):
        pick_run({"run": "auto", "datasets": {"demo": {}}}, lambda: 10**12)
    with pytest.raises(UserError, match="picks brain_1m, which datasets does not define"):
        pick_run({"run": "auto"}, lambda: int(30e9))


@pytest.mark.parametrize(
    "config",
    [
        {"run": "auto", "datasets": {"auto": SIMULATED}},  # a dataset really called so
        {"run": "demo", "datasets": {"demo": SIMULATED}},
        {"run": ["auto"], "datasets": {"demo": SIMULATED}},
        {"datasets": {"demo": SIMULATED}},
    ],
)
def test_a_run_that_names_its_datasets_asks_for_no_gpu(config):
    def gpu_memory():
        raise AssertionError

    assert pick_run(config, gpu_memory) == (config, None)


# ----------------------------------------------------------------------------------- cross-checks


@pytest.mark.parametrize(
    ("text", "dataset", "expected"),
    [
        ("", {"kind": "auto"}, "source is missing: the URL or path of the counts"),
        (
            "filter: {min_counts: 9, max_counts: 8}",
            {},
            "filter.min_counts is 9, above filter.max_counts, 8",
        ),
        (
            "filter: {min_genes: 9}",
            {"filter": {"max_genes": 8}},
            "filter.min_genes is 9, above filter.max_genes, 8",
        ),
        (
            "filter: {remove_doublets: true}",
            {},
            "filter.remove_doublets is true, but doublets.method is none",
        ),
        (
            "trajectory: {root: {label: B}}",
            {},
            "trajectory.root names a label, but label_key is not set",
        ),
        (
            "markers: {method: wilcoxon_binned}",
            {},
            "markers.method wilcoxon_binned needs the GPU; on the CPU use wilcoxon",
        ),
        (
            "execution: blocks\nmarkers: {method: wilcoxon_binned}",
            {},
            "markers.method wilcoxon_binned needs the GPU; on the CPU use t-test",
        ),
        (
            "execution: blocks",
            {},
            "markers.method wilcoxon cannot work in blocks on the CPU: take t-test "
            "(execution: blocks)",
        ),
        (
            "markers: {enabled: false}\nhvg: {flavor: pearson_residuals}",
            {"execution": "blocks"},
            "hvg.flavor pearson_residuals cannot work in blocks on the CPU: take seurat_v3 "
            "(execution: blocks)",
        ),
        (
            "markers: {method: t-test}\npca: {scale: true}",
            {"execution": "blocks"},
            "pca.scale cannot work in blocks on the CPU: set it to false, or take the GPU "
            "(execution: blocks)",
        ),
        (
            "harmony: {flavor: harmony1}",
            {"batch_key": "b"},
            "harmony.flavor harmony1 needs the GPU; on the CPU use harmony2",
        ),
        (
            "tsne: {method: fft}",
            {},
            "tsne.method fft needs the GPU; on the CPU use auto",
        ),
        (
            "neighbors: {algorithm: nn_descent}",
            {},
            "neighbors.algorithm nn_descent needs the GPU; on the CPU use auto",
        ),
        (
            "harmony: {ridge_lambda: 1}",
            {"batch_key": "b"},
            "harmony.ridge_lambda is 1, but flavor harmony2 estimates it; leave it null or take "
            "flavor harmony1",
        ),
        (
            "harmony: {theta: [1, 2]}",
            {"batch_key": ["a", "b", "c"]},
            "harmony.theta has 2 values for 3 batch columns",
        ),
        (
            "pca: {solver: full}",
            {},
            "pca.solver full does not do a sparse matrix on the CPU; there are auto, arpack, "
            "covariance_eigh",
        ),
        (
            "pca: {solver: lanczos, scale: true}",
            {},
            "pca.solver lanczos does not do a dense matrix (scale or regress_out) on the CPU; "
            "there are auto, arpack, covariance_eigh, randomized, full",
        ),
        (
            "pca: {solver: covariance_eigh, zero_center: false}",
            {},
            "pca.solver covariance_eigh does not do zero_center false on the CPU; there are auto, "
            "arpack, randomized",
        ),
        ("qc: {ribo: '^RP['}", {}, "qc.ribo is '^RP[', which is not a valid regular expression: "),
        (
            "markers: {groupby: louvain}",
            {},
            "markers.groupby is louvain, but louvain.enabled is false",
        ),
        (
            "markers: {groupby: leiden_1}\nleiden: {resolution: [0.5, 1.5]}",
            {},
            "markers.groupby is leiden_1, but leiden.resolution gives leiden, leiden_0.5, leiden_1",
        ),
        (
            "markers: {groupby: leiden_0.6}",
            {},
            "markers.groupby is leiden_0.6, but leiden.resolution gives leiden",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(text, dataset, expected):
    (said,) = complaints(text, **dataset)
    assert said.startswith(f"datasets.d: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arpack", "a sparse matrix on the GPU; there are auto, covariance_eigh, lanczos, rando"),
        ("covariance_eigh, scale: true", "a dense matrix (scale or regress_out) on the GPU; ther"),
        ("randomized, regress_out: [total_counts]", "a dense matrix (scale or regress_out) on "),
        ("full, scale: true, zero_center: false", "a sparse matrix on the GPU; there are auto"),
    ],
)
def test_solvers_that_the_gpu_does_not_have_are_refused(text, expected):
    (said,) = complaints(f"pca: {{solver: {text}}}", backend="gpu")
    solver = text.split(",")[0]
    assert said.startswith(f"datasets.d: pca.solver {solver} does not do {expected}")


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("filter: {min_counts: 8, max_counts: 8}", "cpu"),
        ("markers: {method: wilcoxon_binned}", "gpu"),
        ("harmony: {flavor: harmony1, ridge_lambda: 1}", "gpu"),
        ("harmony: {theta: [1, 2]}", "cpu"),
        ("pca: {solver: full, scale: true}", "cpu"),
        ("pca: {solver: full, scale: true}", "gpu"),
        ("pca: {solver: randomized, zero_center: false}", "cpu"),
        ("pca: {solver: covariance_eigh, scale: true, zero_center: false}", "gpu"),
        ("pca: {solver: lanczos}", "gpu"),
        ("markers: {groupby: leiden_1.5}\nleiden: {resolution: [0.5, 1.5]}", "cpu"),
        ("markers: {groupby: louvain}\nlouvain: {enabled: true}", "cpu"),
        ("markers: {groupby: cell_type}", "cpu"),
        ("trajectory: {root: {label: B}}", "cpu"),
        ("execution: blocks\nmarkers: {method: wilcoxon_binned}", "gpu"),
        ("execution: blocks\nmarkers: {method: t-test}", "cpu"),
        ("execution: blocks\nmarkers: {enabled: false}", "gpu"),
        ("execution: memory", "gpu"),
    ],
)
def test_settings_that_go_together(text, backend):
    check(whole(text, batch_key=["a", "b"], label_key="l") | {"backend": backend})


def test_what_blocks_cannot_do_is_told_of_the_gpu_too():
    text = "execution: blocks\npca: {solver: lanczos}\nhvg: {flavor: pearson_residuals}"
    said = complaints(text, backend="gpu")
    assert [line.split(": ")[1:3] for line in said] == [
        [
            "hvg.flavor pearson_residuals cannot work in blocks on the GPU",
            "take seurat_v3 (execution",
        ],
        ["pca.solver lanczos cannot work in blocks on the GPU", "take auto (execution"],
        [
            "markers.method wilcoxon cannot work in blocks on the GPU",
            "take wilcoxon_binned (execution",
        ],
    ]


def test_a_search_without_the_metric_is_refused():
    (said,) = complaints("neighbors: {algorithm: cagra, metric: cosine}", backend="gpu")
    assert (
        "neighbors.algorithm cagra does not support metric cosine; use auto or nn_descent" in said
    )


def test_harmony_is_not_looked_at_without_batches():
    check(whole("harmony: {flavor: harmony1}") | {"backend": "cpu"})


def test_contradictions_of_all_datasets_are_told_at_once():
    given = {
        "run": ["a", "b"],
        "pca": {"solver": "lanczos"},
        "datasets": {"a": {"source": "x.h5ad"}, "b": {}, "c": {}},
    }
    with pytest.raises(UserError) as refusal:
        check(complete(given) | {"backend": "cpu"})
    said = [line.split()[1:3] for line in str(refusal.value).split("\n")[1:]]
    about = ["datasets.a: pca.solver", "datasets.b: source", "datasets.b: pca.solver"]
    assert said == [words.split() for words in about]


# ---------------------------------------------------------------------------------------- columns


def test_the_columns_that_settings_name():
    dataset = one(
        "pca: {regress_out: [age, log1p_total_counts_mt, pct_counts_in_top_50_genes]}\n"
        "hvg: {batch_key: plate}\nmarkers: {groupby: type}\nfilter: {by: lane}\n"
        "doublets: {method: scrublet, by: chip}",
        batch_key=["donor", "assay"],
        label_key="cell_type",
    )
    assert required_obs(dataset, "d") == {
        "donor": "datasets.d.batch_key",
        "assay": "datasets.d.batch_key",
        "cell_type": "datasets.d.label_key",
        "plate": "hvg.batch_key",
        "lane": "filter.by",
        "chip": "doublets.by",
        "age": "pca.regress_out",
        "type": "markers.groupby",
    }


def test_a_column_that_only_looks_like_one_of_qc_is_asked_for():
    names = ["pct_counts_mito", "total_counts_x", "log1p_pct_counts_mt"]
    dataset = one(f"pca: {{regress_out: [{', '.join(names)}]}}")
    assert list(required_obs(dataset, "d")) == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "markers: {enabled: false, groupby: type}",
        "markers: {groupby: leiden_0.6}",
        "hvg: {batch_key: null}",
        "doublets: {by: chip}\nfilter: {by: none}",
    ],
)
def test_settings_that_name_no_column(text):
    assert required_obs(one(text), "d") == {}


def test_a_path_may_have_a_dollar_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("QUX", raising=False)
    odd = tmp_path / "a $QUX b" / "c $D $.h5ad"
    odd.parent.mkdir()
    odd.touch()
    assert sources({"d": one(kind="auto", source=str(odd))})["d"].files == [str(odd)]
    with pytest.raises(UserError, match="variable QUX is not set"):
        sources({"d": one(kind="auto", source=str(odd.with_name("other.h5ad")))})


@pytest.mark.parametrize("name", ["a{x}.h5ad", "{dataset}/a.h5ad", "a{}.h5ad"])
def test_a_path_with_what_snakemake_takes_for_a_wildcard_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    expected = r"datasets\.d\.source is .*Snakemake takes \{\w*\} in a path for a wildcard; rename"
    with pytest.raises(UserError, match=expected):
        sources({"d": one(kind="auto", source=str(path))})


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cells_x_genes.mtx", r"kb-python's, .*name the \.h5ad of kb count --h5ad"),
        ("quants_mat.mtx", r"alevin-fry's; in Python: pyroe.load_fry"),
        ("count_matrix.mtx", r"Parse's, .*name the anndata\.h5ad"),
    ],
)
def test_a_folder_of_another_tool_is_refused_with_what_to_take(tmp_path, file, expected):
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=expected):
        sources({"d": one(kind="auto", source=str(tmp_path))})


CLUSTERINGS = {
    "leiden: {resolution: [0.6, 0.6000001, 1]}": "leiden.resolution has 0.6 and 0.6000001, which "
    "both make leiden_0.6",
    "louvain: {resolution: [1, 1.0000001]}": "louvain.resolution has 1 and 1.0000001",
    "annotations: {leiden: {B: B cells}}": "annotations.leiden names 'B', which is not a cluster",
    "annotations: {leiden: {'01': B cells}}": "annotations.leiden names '01', which is not a",
    "annotations: {leiden_0.7: {0: B cells}}": "annotations names clusters of leiden_0.7, but "
    "leiden.resolution gives leiden$",
    "annotations: {louvain: {0: B cells}}": "annotations names clusters of louvain, but "
    "louvain.enabled is false",
    "annotations: {cell_line: {0: B cells}}": "of cell_line, which is not a clustering; there are "
    "leiden, louvain$",
    "annotations: {leiden_pca: {0: B cells}}": "of leiden_pca, but without a batch_key there is "
    "one representation: write leiden$",
    "trajectory: {root: {cluster: -1}}": "trajectory.root.cluster is '-1', which is not a cluster",
    "trajectory: {root: {cluster: T cells}}": "trajectory.root.cluster is 'T cells', which is not",
}


@pytest.mark.parametrize(("text", "expected"), CLUSTERINGS.items())
def test_clusterings_that_cannot_be_are_refused(text, expected):
    assert [line for line in complaints(**yaml.safe_load(text)) if re.search(expected, line)]


@pytest.mark.parametrize(
    "text",
    [
        "leiden: {resolution: [0.6, 0.60001]}",
        "annotations: {leiden: {0: B cells, '12': T cells}}",
        "annotations: {leiden_0.6: {0: B}}\nleiden: {resolution: [1, 0.6]}",
        "annotations: {louvain_pca: {0: B}}\nlouvain: {enabled: true}\nbatch_key: batch",
        "trajectory: {root: {cluster: 3}}",
        "trajectory: {enabled: false, root: {cluster: x}}",
    ],
)
def test_clusterings_that_may_be(text):
    check(whole(**yaml.safe_load(text)) | {"backend": "cpu"})


def test_a_share_that_qc_does_not_compute_is_a_column_of_the_source():
    text = "pca: {regress_out: [pct_counts_in_top_50_genes, pct_counts_in_top_9_genes]}"
    assert list(required_obs(one(text), "d")) == ["pct_counts_in_top_9_genes"]


# ---------------------------------------------------------------------------------------- sources


def source_of(**dataset):
    return sources({"d": one(**{"kind": "auto"} | dataset)})["d"]


def test_where_a_datasets_files_are(tmp_path, monkeypatch):
    monkeypatch.setenv("REAL", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.h5ad").touch()
    here = [str(tmp_path / "a.h5ad")]
    assert source_of(kind="simulate", source=None) == Source(None, ["resources/d.h5ad"])
    assert source_of(source="a.h5ad") == Source(None, ["a.h5ad"])
    assert source_of(source="$REAL/a.h5ad") == Source(None, here)
    assert source_of(source="${REAL}/a.h5ad") == Source(None, here)
    assert source_of(source="~/a.h5ad") == Source(None, here)


@pytest.mark.parametrize("suffix", ["h5ad", "h5"])
@pytest.mark.parametrize("query", ["", "?download=1"])
def test_what_is_downloaded_lies_in_resources(suffix, query):
    url = f"https://example.org/some.file.{suffix}{query}"
    assert source_of(source=url) == Source(url, [f"resources/d.{suffix}"])


def test_a_url_of_another_kind_of_file_is_refused():
    expected = r"source is 'https://x\.org/a\.tar\.gz'; a URL has to end in \.h5ad or \.h5 "
    with pytest.raises(UserError, match=expected):
        source_of(source="https://x.org/a.tar.gz")


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    expected = r"source is '\$NOWHERE/a\.h5ad', but the environment variable NOWHERE is not set"
    with pytest.raises(UserError, match=expected):
        source_of(source="$NOWHERE/a.h5ad")


def test_a_file_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = "datasets.d.source is 'data/a.h5ad', but there is no such file or folder in /"
    with pytest.raises(UserError, match=expected):
        source_of(source="data/a.h5ad")
    with pytest.raises(UserError, match=r"is '/no/a\.h5ad', but there is no such file or folder$"):
        source_of(source="/no/a.h5ad")


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("features", ["features.tsv", "genes.tsv"])
def test_a_10x_folder_is_its_three_files(tmp_path, end, features):
    names = [f"matrix.mtx{end}", f"barcodes.tsv{end}", f"{features}{end}"]
    for name in [*names, "web_summary.html"]:
        (tmp_path / name).touch()
    found = source_of(source=str(tmp_path))
    assert found == Source(None, [str(tmp_path / name) for name in names])


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a folder without the three files of 10x .*; found none$"):
        source_of(source=str(tmp_path))
    (tmp_path / "matrix.mtx").touch()
    with pytest.raises(UserError, match=r"found \S+/matrix\.mtx$"):
        source_of(source=str(tmp_path))


def test_names_for_clusters():
    text = "leiden: {0: B cells, '1': T cells}"
    given = {"datasets": {"d": {"source": "x", "annotations": yaml.safe_load(text)}}, "run": "d"}
    found = checks.annotations(complete(given)["datasets"]["d"])
    assert found == {"leiden": {"0": "B cells", "1": "T cells"}}
    assert checks.annotations(complete({**given, "datasets": {"d": {}}})["datasets"]["d"]) == {}


@pytest.mark.parametrize("wrong", [{"leiden": {"0": 3}}, {"leiden": {}}, {"leiden": "B"}])
def test_names_for_clusters_that_are_none(wrong):
    with pytest.raises(UserError, match=r"datasets\.d\.annotations"):
        complete({"datasets": {"d": {"source": "x", "annotations": wrong}}, "run": "d"})
