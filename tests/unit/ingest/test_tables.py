import numpy as np
import pandas as pd
import pytest

from scrna.errors import UserError
from scrna.ingest.obs_table import kept_cells
from scrna.ingest.tables import describe_columns, fit_for_disk, name_genes

# -------------------------------------------------------------------------------------- the genes


def genes(**columns):
    return pd.DataFrame(columns, index=[f"ENSG{i:08}" for i in range(4)])


def test_symbols_come_from_the_first_known_column():
    var = genes(gene_name=list("abcd"), feature_name=list("wxyz"), other=list("1234"))
    table, used, notes = name_genes(var, "auto", dataset="toy")
    assert used == "feature_name"
    assert list(table.index) == list("wxyz")
    assert list(table["gene_ids"]) == list(var.index)
    assert notes == []


@pytest.mark.parametrize(
    "column",
    ["gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "gene_short_name"],
)
def test_known_symbol_columns(column):
    assert name_genes(genes(**{column: list("abcd")}), "auto", dataset="toy")[1] == column


def test_the_configured_column_and_the_index():
    var = genes(feature_name=list("abcd"), mine=list("ABCD"))
    assert list(name_genes(var, "mine", dataset="toy")[0].index) == list("ABCD")
    table, used, _ = name_genes(var, "index", dataset="toy")
    assert used == "index"
    assert list(table.index) == list(var.index)


def test_a_column_that_is_not_there():
    match = r"datasets\.toy\.gene_symbols: toy has no var column 'symbol'; did you mean symbols\?"
    with pytest.raises(UserError, match=match):
        name_genes(genes(symbols=list("abcd")), "symbol", dataset="toy")


def test_missing_and_repeated_symbols():
    var = genes(feature_name=pd.Categorical(["A", np.nan, "A", ""], categories=["A", ""]))
    table, _, notes = name_genes(var, "auto", dataset="toy")
    assert list(table.index) == ["A", "ENSG00000001", "A-1", "ENSG00000003"]
    assert notes == [
        "2 genes have no symbol in feature_name and go by their id.",
        "1 gene symbols occur more than once (A): the 1 repeats have a number added (-1, -2, …).",
    ]


def test_a_column_without_a_symbol_is_passed_over():
    var = genes(feature_name=[np.nan] * 4, gene_name=list("abcd"))
    assert name_genes(var, "auto", dataset="toy")[1] == "gene_name"


def test_gene_ids_that_are_there_already():
    ids = list("ijkl")
    var = pd.DataFrame({"gene_ids": ids}, index=list("abcd"))
    assert list(name_genes(var, "auto", dataset="toy")[0].columns) == ["gene_ids"]
    var["feature_name"] = list("wxyz")
    table = name_genes(var, "auto", dataset="toy")[0]
    assert list(table["gene_ids"]) == ids
    assert list(table["source_index"]) == list("abcd")
    same = genes(gene_ids=genes().index, feature_name=list("wxyz"))
    assert "source_index" not in name_genes(same, "auto", dataset="toy")[0]


def test_ensembl_ids_as_names_are_doubted():
    _, _, notes = name_genes(genes(weight=[1, 2, 3, 4]), "auto", dataset="toy")
    assert "Genes go by Ensembl ids" in notes[0]
    assert "datasets.toy.gene_symbols; there are weight." in notes[0]


# ------------------------------------------------------------------------------------- the tables


def test_tables_are_made_fit():
    table = pd.DataFrame(
        {
            "_index": [1, 2, 3],
            "a/b": ["x", "x", "y"],
            "mixed": np.array(["x", 1, None], dtype=object),
            "unique": ["p", "q", "r"],
            5: [True, False, True],
        }
    )
    fit, notes = fit_for_disk(table, "obs")
    assert list(fit.columns) == ["index", "a_b", "mixed", "unique", "5"]
    assert fit["a_b"].dtype == "category"
    assert fit["unique"].dtype == "str"
    assert list(fit["mixed"].cat.categories) == ["1", "x"]
    assert fit["mixed"].isna().tolist() == [False, False, True]
    assert notes[1] == (
        "The obs column 'a/b' is named 'a_b' here: AnnData cannot write it under its own name."
    )
    assert list(table.columns)[1] == "a/b"


def test_many_values_are_not_counted():
    obs = pd.DataFrame({"id": [f"x{i}" for i in range(10_000)], "few": ["a", "b"] * 5000})
    described = describe_columns(obs)
    assert described["id"]["distinct"] is None
    assert described["few"]["distinct"] == 2


def test_values_match_as_numbers_and_as_strings():
    obs = pd.DataFrame({"n": [1, 2], "s": ["1", "2"], "b": [True, False], "f": [1.0, np.nan]})
    for keep in ({"n": ["1"]}, {"s": [1]}, {"b": [True]}, {"b": ["True"]}, {"f": [1]}):
        assert kept_cells(obs, keep, dataset="toy").tolist() == [True, False]
