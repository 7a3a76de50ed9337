"""The sample sheet: what is read from it, and what is refused with its line."""

import os
from pathlib import Path

import pytest

from scrna.config import samples
from scrna.config.datasets import sources
from scrna.config.settings import complete
from scrna.config.source_address import full_address, set_credentials_aside
from scrna.errors import UserError

GOOD = "sample,source,donor\na,a.h5ad,1\nb,sub/b.h5,2\n"


@pytest.fixture
def sheet(tmp_path):
    """Write a sheet, with files for the sources of GOOD beside it."""
    (tmp_path / "sub").mkdir()
    for name in ("a.h5ad", "sub/b.h5", "c.h5ad"):
        (tmp_path / name).write_text(name)

    def write(text: str, name: str = "samples.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


def files(path: Path) -> dict[str, list[str]]:
    found = samples.sample_sources({"lab": samples.read_sheet(path)})["lab"]
    return {name: source.files for name, source in found.items()}


# ------------------------------------------------------------------------------------- the reading


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.csv", GOOD),
        ("s.csv", "\ufeff" + GOOD),  # as Excel saves it
        ("s.csv", GOOD.replace("\n", "\r\n")),
        ("s.csv", GOOD.replace(",", " , ") + "\n,,\n\n"),
        ("s.csv", 'source,donor,sample\n"a.h5ad","1",a\nsub/b.h5,2,b\n'),
        ("s.tsv", GOOD.replace(",", "\t")),
        ("s.TSV", GOOD.replace(",", "\t")),
    ],
)
def test_a_sheet_is_read(sheet, tmp_path, name, text):
    found = samples.read_sheet(path := sheet(text, name))
    assert [sample.name for sample in found.samples] == ["a", "b"]
    assert found.columns == {"donor": [1, 2]}
    assert files(path) == {"a": [f"{tmp_path}/a.h5ad"], "b": [f"{tmp_path}/sub/b.h5"]}


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-2", "+3"], [1, -2, 3]),
        (["1", "", "NA"], [1, None, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["TRUE", "false", "n/a"], [True, False, None]),
        (["yes", "no", ""], ["yes", "no", None]),
        (["007", "1"], ["007", "1"]),  # a code
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["inf", "1"], ["inf", "1"]),
        (["None", "drug"], ["None", "drug"]),  # no treatment
        (["1", "x"], ["1", "x"]),
        (["0", "1"], [0, 1]),
    ],
)
def test_values_are_typed_by_their_column(texts, values):
    found = samples.typed(texts)
    assert found == values
    assert [*map(type, found)] == [*map(type, values)]


def test_paths_start_at_the_sheet_and_variables_are_filled_in(sheet, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "sub"))
    path = sheet(f"sample,source\na,a.h5ad\nb,$DATA/b.h5\nc,file://{tmp_path}/c.h5ad\n")
    monkeypatch.chdir("/")
    expected = {"a": "a.h5ad", "b": "sub/b.h5", "c": "c.h5ad"}
    assert files(path) == {name: [f"{tmp_path}/{file}"] for name, file in expected.items()}
    monkeypatch.chdir(tmp_path)  # a sheet's relative path stays one: results may move
    assert files(Path("samples.csv"))["a"] == ["a.h5ad"]


def test_cell_rangers_outs_is_its_filtered_matrix(sheet, tmp_path):
    path = sheet("sample,source\nx,run/outs\n")
    outs = tmp_path / "run/outs"
    for folder in ("raw", "filtered"):
        (outs / f"{folder}_feature_bc_matrix").mkdir(parents=True)
        for file in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"):
            (outs / f"{folder}_feature_bc_matrix" / file).touch()
        (outs / f"{folder}_feature_bc_matrix.h5").touch()
    assert files(path) == {"x": [f"{outs}/filtered_feature_bc_matrix.h5"]}
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    assert {Path(f).parent.name for f in files(path)["x"]} == {"filtered_feature_bc_matrix"}
    raw = sheet("sample,source\nx,run/outs/raw_feature_bc_matrix.h5\n")
    assert files(raw) == {"x": [f"{outs}/raw_feature_bc_matrix.h5"]}
    single = {"d": {"kind": "auto", "source": str(outs)}}
    assert len(sources(single)["d"].files) == 3


def test_urls_are_downloaded_to_a_folder_of_the_dataset_without_their_secrets(sheet, monkeypatch):
    monkeypatch.setenv("SCRNA_ADDRESSES", "{}")  # set back when the test ends
    text = "sample,source\na,https://me:pw@host/a.h5?token=T\nb,b.h5ad\n"
    path = sheet(text.replace("b.h5ad", "c.h5ad"))
    sheets = {"lab": samples.read_sheet(path)}
    set_credentials_aside({"lab": {"source": None}}, samples.addresses(sheets))
    source = samples.sample_sources(sheets)["lab"]["a"]
    assert source.files == ["resources/lab/a.h5"]
    assert source.address() == {"url": "https://host/a.h5"}
    assert full_address("lab/a", source.url) == "https://me:pw@host/a.h5?token=T"


# ------------------------------------------------------------------------------------ the refusals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line names the columns: sample, source"),
        ("sample,source\n", "has no samples: write a line for each"),
        (GOOD.replace(",", ";"), r"has semicolons between its columns; a .csv file has commas"),
        (GOOD.replace(",", "\t"), "has tabs between its columns.*or name it .tsv"),
        ("sample,donor\na,1\n", "line 1: there is no column 'source'"),
        ("Sample,source\na,a.h5ad\n", "line 1: there is no column 'sample'; did you mean Sample"),
        ("sample,source,,x\na,a.h5ad,,1\n", "line 1: column 3 has no name"),
        ("sample,source,x,x\na,a.h5ad,1,1\n", "line 1: there are two columns 'x'"),
        ("sample,source\na,a.h5ad,1\n", "line 2: 3 fields, but 2 columns .*double quotes"),
        ("sample,source\n\na,a.h5ad\nb\n", "line 4: 1 fields, but 2 columns"),
        ("sample,source\na,a.h5ad\na,c.h5ad\n", "line 3: sample a is in line 2 too"),
        ("sample,source\n,a.h5ad\n", "line 2: the sample has no name"),
        ("sample,source\na/b,a.h5ad\n", "line 2: sample 'a/b': a name has letters"),
        ("sample,source\n../x,a.h5ad\n", "line 2: sample '../x': a name has letters"),
        ("sample,source\na b,a.h5ad\n", "line 2: sample 'a b': a name has letters"),
        (f"sample,source\n{'a' * 40},a.h5ad\n", "a name has letters"),
        ("sample,source\na,\n", "line 2: sample a has no source"),
        ("sample,source,sha256\na,a.h5ad,12\n", "line 2: sha256 of sample a is '12'; a SHA-256"),
        ("sample,source,SHA-256\na,a.h5ad,12\n", "the digest of a source is named sha256"),
        ("sample,source,x\na,a.h5ad,\n", "column x has no value in any line"),
        ('sample,source\na,"a.h5ad\n', "cannot be read as CSV"),
        *(
            (f"sample,source,{owned}\na,a.h5ad,1\n", f"workflow itself writes a column '{owned}'")
            for owned in "leiden leiden_0.5 total_counts pct_counts_mt keep phase _index".split()
        ),
        ("sample,source,a/b\na,a.h5ad,1\n", "column 'a/b': a name has no slash"),
    ],
)
def test_a_wrong_sheet_is_refused_with_its_line(sheet, text, said):
    with pytest.raises(UserError, match=said) as error:
        samples.read_sheet(sheet(text))
    assert "samples.csv" in str(error.value)


def test_all_wrong_lines_are_said_at_once(sheet):
    with pytest.raises(UserError) as error:
        samples.read_sheet(sheet("sample,source\na/b,a.h5ad\nc,\n"))
    assert "line 2" in str(error.value)
    assert "line 3" in str(error.value)


def test_bytes_that_are_no_text_are_refused(sheet):
    path = sheet("")
    path.write_bytes(b"sample,source\n\xff\xfe,a\n")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        samples.read_sheet(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,gone.h5ad", r"line 2, sample a: source is 'gone.h5ad', but there is no such file"),
        ("a,s3://x/a.h5ad", "line 2, sample a: source is .*a source is a path"),
        ("a,$NO_SUCH/a.h5ad", "environment variable NO_SUCH is not set"),
        ("a,.", "a folder without the three files of 10x"),
        ("a,a.h5ad\nb,./sub/../a.h5ad", "line 3: sample b has the same source as sample a"),
        ("a,link.h5ad\nb,a.h5ad", "line 3: sample b has the same source as sample a"),
        ("a,https://h/a.h5\nb,https://h/a.h5", "line 3: sample b has the same source as sample a"),
    ],
)
def test_wrong_sources_are_refused_with_their_line(sheet, tmp_path, rows, said):
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "a.h5ad")
    with pytest.raises(UserError, match=said):
        files(sheet(f"sample,source\n{rows}\n"))


def test_all_missing_files_are_said_at_once(sheet):
    with pytest.raises(UserError) as error:
        files(sheet("sample,source\na,x.h5ad\nb,y.h5ad\n"))
    assert str(error.value).count("no such file") == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone.csv", "datasets.lab.samples is 'gone.csv', but there is no such file in /"),
        (".", "which is no file; name a table of samples"),
        ("a.h5ad", "a table of text that ends in .csv"),
        ("$NO_SUCH/a.csv", "environment variable NO_SUCH is not set"),
    ],
)
def test_a_path_that_is_no_sheet_is_refused(sheet, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        samples.read_sheets({"lab": {"samples": given}})


# --------------------------------------------------------------------------------- in the config


def dataset(**given):
    return complete({"run": "lab", "datasets": {"lab": given}})["datasets"]["lab"]


def test_samples_are_the_batches_unless_told_otherwise(sheet):
    path = str(sheet(GOOD))

    def batch_key(**given):
        datasets = {"lab": dataset(samples=path, **given)}
        return samples.with_sheets(datasets, samples.read_sheets(datasets))["lab"]["batch_key"]

    assert batch_key() == "sample"
    assert batch_key(batch_key="donor") == "donor"
    assert batch_key(batch_key=None) is None
    assert dataset(source="x.h5ad")["batch_key"] is None
    path = str(sheet("sample,source\na,a.h5ad\n"))
    assert batch_key() is None  # one batch cannot be integrated


def test_what_results_depend_on_does_not_know_the_order_of_columns(sheet):
    one = samples.read_sheet(sheet("sample,source,x,y\na,a.h5ad,1,\nb,c.h5ad,2,u\n")).plain()
    other = samples.read_sheet(sheet("y,sample,x,source\n,a,1,a.h5ad\nu,b,2,c.h5ad\n")).plain()
    assert one == other
    assert list(one["columns"]) == list(other["columns"]) == ["x", "y"]
    assert one["columns"]["y"] == {"a": None, "b": "u"}
    assert os.sep not in str(one)  # where the files lie is no result
