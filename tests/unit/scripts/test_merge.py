"""Samples are looked at, converted, merged and given what the sheet says of them."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scripts.convert import convert
from scripts.merge import merge
from scripts.metadata import metadata
from scrna.data.counts import Counts
from scrna.errors import UserError
from scrna.ingest import merge as merging
from scrna.ingest.sample_checks import check_samples

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]


def human(numbers):
    return [f"ENSG{n:011d}" for n in numbers]


def toy(genes, seed, n_obs=30, prefix="", ids=human, symbol="GENE{}", **obs):
    """Random counts of some genes, which have a number each: cells are named by `prefix`."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_obs, len(genes))) * (rng.random((n_obs, len(genes))) < 0.3)
    dense[:, 0] = 1
    names = [f"{prefix}{i}" for i in range(n_obs)]
    var = pd.DataFrame({"gene_symbols": [symbol.format(n) for n in genes]}, index=ids(genes))
    return ad.AnnData(
        sp.csr_matrix(dense.astype(np.float32)), obs=pd.DataFrame(obs, index=names), var=var
    )


class Lab:
    """A folder with samples, each converted by itself."""

    def __init__(self, folder: Path):
        self.folder = folder

    def convert(self, **sources):
        """Convert AnnDatas or paths."""
        for name, source in sources.items():
            (folder := self.folder / name).mkdir()
            if isinstance(source, ad.AnnData):
                source.write_h5ad(folder / "source.h5ad")
                source = folder / "source.h5ad"
            convert(source, folder / "counts.zarr", folder / "counts.json", dataset="lab")
        self.names = list(sources)
        return self

    def merge(self, *names, **options):
        names = list(names or self.names)
        stores = [self.folder / name / "counts.zarr" for name in names]
        out = self.folder / "merged.zarr"
        merge(stores, out, out.with_suffix(".json"), dataset="lab", samples=names, **options)
        return ad.read_zarr(out), json.loads(out.with_suffix(".json").read_text())

    def add(self, columns, **options):
        out = self.folder / "counts.zarr"
        metadata(
            self.folder / "merged.zarr", out, out.with_suffix(".json"),
            dataset="lab", columns=columns, **options,
        )  # fmt: skip
        return ad.read_zarr(out), json.loads(out.with_suffix(".json").read_text())

    def check(self, sha256=None, **options):
        samples = {
            name: {"files": [str(self.folder / name / "source.h5ad")], "sha256": sha256}
            for name in self.names
        }
        return check_samples(samples, dataset="lab", **options)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def entries(adata, names="gene_ids"):
    """The counts as a table, cells by genes, which knows no order of genes."""
    labels = adata.var.get(names, adata.var_names)
    table = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=labels.to_numpy())
    return table[sorted(table.columns)].astype(np.int64)


def concatenated(adatas, on, **options):
    """What anndata.concat makes of the same samples."""
    if on == "symbols":
        adatas = {
            name: ad.AnnData(a.X, obs=a.obs, var=pd.DataFrame(index=a.var["gene_symbols"]))
            for name, a in adatas.items()
        }
    return ad.concat(adatas, **options)


# -------------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize("join", ["inner", "outer"])
@pytest.mark.parametrize("on", ["ids", "symbols"])
@pytest.mark.parametrize("block", [10, 2**20])
def test_counts_equal_anndatas_concat_in_every_entry(lab, monkeypatch, join, on, block):
    monkeypatch.setattr(merging, "_BLOCK_NNZ", block)
    adatas = {
        "a": toy(range(40), 1, prefix="a"),
        "b": toy(range(50)[::-1], 2, prefix="b"),  # in another order
        "c": toy([*range(20, 60), 3], 3, prefix="c", n_obs=7),
    }
    found, facts = lab.convert(**adatas).merge(join=join, join_on=on)
    expected = concatenated(adatas, on, join=join, fill_value=0)
    names = "gene_ids" if on == "ids" else "index"
    pd.testing.assert_frame_equal(entries(found, names), entries(expected), check_names=False)
    assert found.X.has_sorted_indices
    assert found.X.dtype == np.uint16
    assert facts["joined"] == {
        "join": join,
        "on": on,
        "n_common": len(concatenated(adatas, on, join="inner").var),
        "n_either": len(concatenated(adatas, on, join="outer").var),
    }
    assert facts["nnz"] == found.X.nnz == expected.X.nnz
    store = Counts(lab.folder / "merged.zarr")  # as every step opens it
    assert (store.matrix("cpu", nnz=found.X.nnz) != expected.X[:, _order(expected, found)]).nnz == 0


def _order(expected, found):
    wanted = found.var["gene_ids"] if expected.var_names[0].startswith("ENS") else found.var_names
    return expected.var_names.get_indexer(wanted)


def test_blocks_change_nothing(lab, monkeypatch):
    lab.convert(a=toy(range(40), 1, prefix="a"), b=toy(range(5, 45)[::-1], 2, prefix="b"))
    digests = set()
    for block in (1, 17, 2**20):
        monkeypatch.setattr(merging, "_BLOCK_NNZ", block)
        digests.add(lab.merge()[1]["digest"])
    assert len(digests) == 1


def test_another_order_of_samples_changes_the_order_alone(lab):
    lab.convert(a=toy(range(40), 1, prefix="a", x=1), b=toy(range(5, 45), 2, prefix="b", x=2))
    one, two = lab.merge("a", "b")[0], lab.merge("b", "a")[0]
    assert list(two.obs_names) == [*one.obs_names[30:], *one.obs_names[:30]]
    pd.testing.assert_frame_equal(entries(two).loc[one.obs_names], entries(one))
    assert list(one.obs["sample"].cat.categories) == ["a", "b"]
    assert list(two.obs["sample"].cat.categories) == ["b", "a"]


def test_counts_above_65535_are_kept(lab):
    large = toy(range(10), 1, prefix="a")
    large.X[3, 0] = 70_000
    found, facts = lab.convert(small=toy(range(10), 2, prefix="b"), large=large).merge()
    assert facts["dtype"] == "uint32"
    assert facts["max"] == found.X.max() == 70_000


def test_a_sample_alone_is_itself(lab):
    own = toy(range(10), 1)
    found, _ = lab.convert(a=own).merge()
    pd.testing.assert_frame_equal(entries(found), entries(own), check_names=False)


def test_cells_that_the_join_leaves_without_counts_are_said(lab):
    a, b = toy(range(10), 1, prefix="a"), toy(range(5, 15), 2, prefix="b")
    a.X = sp.csr_matrix(a.X.toarray() * ((np.arange(30) > 3)[:, None] | (np.arange(10) < 5)))
    _, facts = lab.convert(a=a, b=b).merge()
    n_empty = int((a.X[:, 5:].sum(axis=1) == 0).sum())
    assert n_empty >= 4
    assert f"{n_empty} cells have no count in the genes that all samples have." in facts["warnings"]


# --------------------------------------------------------------------------------------- the genes


def test_symbols_that_share_ids_are_those_of_the_first_sample(lab):
    a, b = toy(range(10), 1, prefix="a"), toy(range(10), 2, prefix="b", symbol="NEW{}")
    found, facts = lab.convert(a=a, b=b).merge()
    assert list(found.var_names) == [f"GENE{n}" for n in range(10)]
    assert any("10 genes go by another symbol" in text for text in facts["warnings"])


def test_ids_with_and_without_versions_are_the_same(lab):
    versions = toy(range(10), 2, prefix="b", ids=lambda ns: [f"{i}.{n + 1}" for n, i in zip(ns, human(ns), strict=True)])  # fmt: skip # noqa: E501
    _, facts = lab.convert(a=toy(range(10), 1, prefix="a"), b=versions).merge()
    assert facts["joined"] == {"join": "inner", "on": "ids", "n_common": 10, "n_either": 10}


def test_without_ensembl_ids_symbols_are_joined_and_it_is_said(lab):
    plain = toy(range(10), 2, prefix="b", ids=lambda ns: [f"GENE{n}" for n in ns])
    _, facts = lab.convert(a=toy(range(10), 1, prefix="a"), b=plain).merge()
    assert facts["joined"]["on"] == "symbols"
    assert "Genes are joined on symbols: b without Ensembl ids." in facts["warnings"]


def test_columns_of_genes_stay_where_samples_agree(lab):
    a, b = toy(range(10), 1, prefix="a"), toy(range(5, 12), 2, prefix="b")
    for adata in (a, b):
        adata.var["genome"] = "GRCh38"
        adata.var["number"] = [int(i[-3:]) for i in adata.var_names]
    a.var["mean"], b.var["mean"] = 1.0, 2.0
    found, facts = lab.convert(a=a, b=b).merge(join="outer")
    assert set(found.var) == {"gene_ids", "gene_symbols", "genome", "number"}
    assert list(found.var["number"]) == [int(i[-3:]) for i in found.var["gene_ids"]]
    assert any(text.endswith("left out: mean.") for text in facts["warnings"])


def mouse(ns):
    return [f"ENSMUSG{n:011d}" for n in ns]


SPECIES = "a human, b mouse.*a dataset of its own"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"genes": range(10), "ids": mouse}, SPECIES),
        ({"genes": range(50, 60)}, "no gene is in all samples, joined on ids .*join_on"),
        (
            {"genes": range(10), "ids": list, "symbol": "Gene{}"},
            "share 0 gene symbols, and 10 if upper and lower case.*human and mouse",
        ),
    ],
)
def test_samples_that_do_not_belong_together_are_refused(lab, other, said):
    options = {"genes": range(10), "seed": 2, "prefix": "b"} | other
    if options.get("ids") is list:
        options["ids"] = lambda ns: [f"Gene{n}" for n in ns]
    lab.convert(a=toy(range(10), 1, prefix="a"), b=toy(**options))
    with pytest.raises(UserError, match=said):
        lab.merge()
    with pytest.raises(UserError, match=said):  # and before they are converted
        lab.check()


def test_few_genes_in_common_are_a_warning_with_both_counts(lab):
    lab.convert(a=toy(range(30), 1, prefix="a"), b=toy(range(25, 60), 2, prefix="b"))
    for notes in (lab.merge()[1]["warnings"], lab.check()):
        assert any("Of 60 genes in any sample only 5 are in all" in note for note in notes)


# --------------------------------------------------------------------------------------- the cells


def test_names_that_clash_have_their_sample_added(lab):
    lab.convert(a=toy(range(10), 1, prefix="x"), b=toy(range(10), 2, n_obs=31, prefix="x"))
    found, facts = lab.merge()
    assert list(found.obs_names[[0, 29, 30, 60]]) == ["x0-a", "x29-a", "x0-b", "x30-b"]
    said = " ".join(facts["warnings"])
    assert "Cells are named BARCODE-SAMPLE" in said
    assert "Samples a and b share 30 of 30 barcodes" in said
    assert any("Samples a and b share 30 of 30 barcodes" in note for note in lab.check())


def test_names_that_do_not_clash_stay(lab):
    found, facts = lab.convert(
        a=toy(range(9), 1, prefix="a"), b=toy(range(9), 2, prefix="b")
    ).merge()
    assert list(found.obs_names[[0, 30]]) == ["a0", "b0"]
    assert not any("BARCODE" in text or "share" in text for text in facts["warnings"])


def test_columns_of_the_sources_are_joined(lab):
    n = np.arange(30)
    a = toy(
        range(10), 1, prefix="a", number=n, share=n / 2, flag=n > 3, text=[f"t{i}" for i in n],
        group=pd.Categorical(["y", "x"] * 15), mixed=n, own=n, sample="mine", both_flag=n > 1,
        both_text=pd.Categorical(["u", "v"] * 15),
    )  # fmt: skip
    b = toy(
        range(10), 2, prefix="b", number=n, share=n, text=[f"s{i}" for i in n],
        group=pd.Categorical(["z", "x"] * 15), mixed=pd.Categorical(["p", "q"] * 15),
        both_flag=n > 9, both_text=[f"w{i}" for i in n],
    )  # fmt: skip
    found, facts = lab.convert(a=a, b=b).merge()
    obs, names = found.obs, [*a.obs_names, *b.obs_names]
    expected = pd.concat([a.obs, b.obs]).loc[names]
    assert obs["number"].dtype == np.int64
    assert obs["both_flag"].dtype == bool
    for column in ("number", "share", "text", "group", "mixed", "both_flag", "both_text"):
        assert list(obs[column].astype(str)) == list(expected[column].astype(str)), column
    np.testing.assert_array_equal(obs["own"], [*map(float, n), *[np.nan] * 30])
    assert list(obs["flag"].astype("str").fillna("-")) == [*map(str, n > 3), *"-" * 30]
    assert list(obs["group"].cat.categories) == ["x", "y", "z"]
    assert list(obs["sample"]) == ["a"] * 30 + ["b"] * 30
    assert list(obs["sample_source"].astype("str").fillna("-")) == ["mine"] * 30 + ["-"] * 30
    said = " ".join(facts["warnings"])
    assert "kept as sample_source" in said
    assert "not all samples have are missing in the others: " in said


# ------------------------------------------------------------------------------------- the sheet's


def test_the_sheet_goes_to_obs_without_writing_a_count(lab):
    samples = {
        "a": toy(range(9), 1, prefix="a", source_only=1, replaced=1),
        "b": toy(range(9), 2, prefix="b", source_only=1, replaced=1),
        "c": toy(range(9), 3, prefix="c", source_only=1, replaced=1),
    }
    before, merged = lab.convert(**samples).merge()
    columns = {
        "age": {"a": 30, "b": 40, "c": 30},
        "batch": {"a": "y", "b": "x", "c": "y"},
        "bmi": {"a": 20.5, "b": None, "c": 21.0},
        "n": {"a": 1, "b": None, "c": 3},
        "replaced": {"a": "A", "b": None, "c": "C"},
        "smokes": {"a": True, "b": False, "c": True},
        "treated": {"a": True, "b": None, "c": False},
    }
    found, facts = lab.add(columns)
    assert (found.X != before.X).nnz == 0
    assert list(found.obs_names) == list(before.obs_names)
    pd.testing.assert_frame_equal(found.var, before.var)
    for path in (lab.folder / "merged.zarr/X").rglob("*"):
        if path.is_file():
            assert path.samefile(
                lab.folder / "counts.zarr" / path.relative_to(lab.folder / "merged.zarr")
            )
    of = found.obs.groupby("sample", observed=True)
    assert list(of["age"].first()) == [30, 40, 30]
    assert found.obs["age"].dtype == np.int64
    assert found.obs["smokes"].dtype == bool
    assert list(found.obs["batch"].cat.categories) == ["y", "x"]
    np.testing.assert_array_equal(of["bmi"].first(), [20.5, np.nan, 21])
    np.testing.assert_array_equal(of["n"].first(), [1, np.nan, 3])
    assert list(found.obs["replaced"].astype("str").fillna("-").iloc[[0, 30, 60]]) == [
        "A",
        "-",
        "C",
    ]
    assert list(found.obs["treated"].astype("str").fillna("-").iloc[[0, 30, 60]]) == [
        "True",
        "-",
        "False",
    ]
    assert set(facts["obs_columns"]) == {*found.obs} == {"sample", "source_only", *columns}
    assert facts["sheet"] == {"samples": ["a", "b", "c"], "columns": columns}
    assert any("replaced of the sources is replaced" in text for text in facts["warnings"])
    assert facts["digest"] != merged["digest"]
    store = Counts(lab.folder / "counts.zarr")
    assert list(store.obs(["batch"])["batch"]) == list(found.obs["batch"])
    again = lab.add(columns | {"age": {"a": 31, "b": 40, "c": 30}})[1]
    assert again["digest"] != facts["digest"]


def test_what_the_config_names_is_looked_for_in_the_sheet_too(lab):
    lab.convert(a=toy(range(9), 1, prefix="a"), b=toy(range(9), 2, prefix="b")).merge()
    wanted = {"donor": "datasets.lab.batch_key"}
    lab.add({"donor": {"a": "x", "b": "y"}}, required_obs=wanted)
    lab.check(required_obs=wanted, sheet_columns=["donor"])
    for do in (partial(lab.add, {}), lab.check):
        with pytest.raises(
            UserError, match=r"datasets\.lab\.batch_key: lab has no obs column 'donor'"
        ):
            do(required_obs=wanted)


# ----------------------------------------------------------------------------------- the refusals


def test_the_same_file_twice_is_refused_before_it_is_converted(lab):
    lab.convert(a=toy(range(9), 1), b=toy(range(9), 1), c=toy(range(9), 2))
    (lab.folder / "b/source.h5ad").write_bytes((lab.folder / "a/source.h5ad").read_bytes())
    with pytest.raises(UserError, match=r"samples a and b are the same file by content \(/"):
        lab.check()


def test_the_same_counts_of_two_files_are_refused(lab):
    lab.convert(a=toy(range(9), 1), b=toy(range(9), 1))
    with pytest.raises(UserError, match="samples a and b hold the same cells and counts"):
        lab.merge()
    assert not (lab.folder / "merged.zarr").exists()


def test_another_file_than_the_sheets_is_refused(lab):
    lab.convert(a=toy(range(9), 1))
    with pytest.raises(UserError, match=r"sample a: .* is not the expected file: its SHA-256 is"):
        lab.check(sha256="0" * 64)


def test_a_file_that_cannot_be_read_is_said_with_its_sample(lab):
    lab.convert(a=toy(range(9), 1), b=toy(range(9), 2))
    (lab.folder / "b/source.h5ad").write_text("no file")
    with pytest.raises(UserError, match=r"sample b: source\.h5ad is not a file of a known kind"):
        lab.check()


# ---------------------------------------------------------------------------------------- real data


def test_cell_lines_cut_into_their_batches_and_merged_are_the_original(lab, real_data):
    path = real_data / "celllines/celllines_5batch.h5ad"
    whole = ad.read_h5ad(path)
    batches = list(dict.fromkeys(whole.obs["batch"]))
    lab.convert(**{str(batch): whole[whole.obs["batch"] == batch].copy() for batch in batches})
    found, facts = lab.merge()
    (lab.folder / "whole").mkdir()
    convert(path, lab.folder / "whole/counts.zarr", lab.folder / "whole/counts.json", dataset="x")
    original = ad.read_zarr(lab.folder / "whole/counts.zarr")
    order = original.obs_names.get_indexer(found.obs_names)
    assert sorted(order) == list(range(1408))
    assert (original.X[order] != found.X).nnz == 0
    for one, other in (
        (found.var, original.var),
        (found.obs[original.obs.columns], original.obs.iloc[order]),
    ):
        assert list(one.dtypes.map(str)) == list(other.dtypes.map(str))
        in_order = [table.astype(object) for table in (one, other)]  # not of the categories
        pd.testing.assert_frame_equal(*in_order)
    assert facts["joined"]["n_common"] == facts["joined"]["n_either"] == 28_517


def test_blood_of_two_chemistries(lab, real_data):
    lab.convert(pbmc1k=real_data / "pbmc1k/mtx_v3", pbmc3k=real_data / "pbmc3k/pbmc3k_raw.h5ad")
    sources = {
        "pbmc1k": sc.read_10x_mtx(real_data / "pbmc1k/mtx_v3", var_names="gene_ids"),
        "pbmc3k": ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad"),
    }
    genes = sources["pbmc1k"].var["feature_types"] == "Gene Expression"
    sources["pbmc1k"] = sources["pbmc1k"][:, genes]
    sources["pbmc3k"].var_names = sources["pbmc3k"].var["gene_ids"]
    for join, n_genes in (("inner", 30_358), ("outer", 38_981)):
        found, facts = lab.merge(join=join)
        assert found.shape == (3592, n_genes)
        expected = ad.concat(sources, join=join, fill_value=0)
        order = expected.var_names.get_indexer(found.var["gene_ids"])
        assert sorted(order) == list(range(n_genes))
        assert (sp.csr_matrix(expected.X)[:, order] != found.X).nnz == 0
        assert list(found.obs_names) == list(expected.obs_names)
        assert facts["joined"]["on"] == "ids"
    assert lab.merge(join_on="symbols")[0].shape == (3592, 20_283)


_MEASURE = """
import json, re, sys
sys.path[1:1] = [sys.argv[1]]
sys.path.append(sys.argv[1] + "/scripts")
from pathlib import Path
from scripts.convert import convert
from scripts.merge import merge
folder, peaks = Path(sys.argv[2]), []
for name in ("few", "many"):
    stores = [folder / name / sample / "counts.zarr" for sample in "ab"]
    out = folder / name / "merged.zarr"
    merge(stores, out, out.with_suffix(".json"), dataset=name, samples=["a", "b"])
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held too
    peaks.append(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]))
print(json.dumps(peaks))
"""


def test_names_and_columns_of_many_cells_are_not_held(tmp_path):
    n_obs, n_vars = {"few": 35_000, "many": 200_000}, 50
    for name, n in n_obs.items():
        (tmp_path / name).mkdir()
        obs = pd.DataFrame(
            {"barcode": [f"ACGTACGTACGTACGT-{i}" for i in range(n)], "type": ["a", "b"] * (n // 2)},
            index=[f"sample_of_many_cells_{i}" for i in range(n)],
        )
        parts = np.ones(n, np.float32), np.arange(n) % n_vars, np.arange(n + 1)
        X = sp.csr_matrix(parts, shape=(n, n_vars))
        var = pd.DataFrame(index=human(range(n_vars)))
        samples = {"a": ad.AnnData(X, obs=obs, var=var), "b": ad.AnnData(X[::-1], obs=obs, var=var)}
        Lab(tmp_path / name).convert(**samples)
    command = [sys.executable, "-c", _MEASURE, str(Path(__file__).parents[3]), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = json.loads(done.stdout)
    # as Python's strings names and barcodes take 180 bytes a cell, tables made of them 420
    assert many - few < 250 * 2 * (n_obs["many"] - n_obs["few"])
