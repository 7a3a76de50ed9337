"""Config files that Snakemake takes in silence or refuses without a place."""

import pytest

from scrna.config.settings import SECTIONS
from scrna.config.yaml_files import overruled, read_config
from scrna.errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes):
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_config(path)

    return read


TWICE = """\
run: a
datasets:
  a: {kind: simulate}
  b:
    leiden: {resolution: 1, "resolution": 2}
  a: {kind: auto}
run: b
"""
BAD = {
    "": r"my\.yaml is empty; expected keys",
    "# nothing\n": "is empty",
    "hello": r"holds a single value \(line 1\)",
    "- a\n- b\n": r"holds a list \(line 1\)",
    "datasets:\n\ta: 1\n": "my.yaml, line 2 is not valid YAML: .*; the line has a tab, and YAML is "
    "indented by spaces",
    "a: [1, 2\nb: 3\n": "my.yaml, line 2 is not valid YAML",
    "a: 1\n  b: 2\n": "my.yaml, line 2 is not valid YAML",
    "a: 2020-13-45\n": "is not valid YAML: month must be in 1..12",
    "a: *b\n": "line 1 is not valid YAML: found undefined alias",
    b"\xff\xfe\x00": "cannot be read",
    '{"run": "a", "run": "b"}': "run in line 1 and again in line 1",
    "leiden:\n  0.6: a\n  0.60: b\n": r"leiden\.0\.60 in line 2 and again in line 3",
}


@pytest.mark.parametrize(("text", "expected"), BAD.items())
def test_a_file_that_is_no_config_is_refused_with_its_place(read, text, expected):
    with pytest.raises(UserError, match=expected):
        read(text)


def test_every_key_that_is_there_twice_is_named(read):
    with pytest.raises(UserError) as refusal:
        read(TWICE)
    first, *keys = str(refusal.value).splitlines()
    assert first.endswith("my.yaml has keys twice:")
    assert keys == [
        "  - datasets.b.leiden.resolution in line 5 and again in line 5",
        "  - datasets.a in line 3 and again in line 6",
        "  - run in line 1 and again in line 7",
    ]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read: .*No such file"):
        read_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leiden: {resolution: [0.6, 1]}\n", {"leiden": {"resolution": [0.6, 1]}}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}\n", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &x {b: 1}\ne: *x\n", {"a": {"b": 1}, "e": {"b": 1}}),
        ('{"run": "a"}', {"run": "a"}),
        ("a: {k: 1}\nb: {k: 1}\n", {"a": {"k": 1}, "b": {"k": 1}}),
        ("\ufeffrun: a\n", {"run": "a"}),
    ],
)  # fmt: skip
def test_what_is_right_is_read(read, text, expected):
    assert read(text) == expected


# ------------------------------------------------------- a dataset's own value over the top level

BASE = {"datasets": {"sim_1m": {"leiden": {"resolution": 1.0}, "filter": {"min_genes": 200}}}}


def said(*files, datasets=("sim_1m",)):
    named = [(f"file{number}.yaml", file) for number, file in enumerate(files)]
    return overruled(named, dict.fromkeys(datasets), SECTIONS)


def test_a_later_file_whose_setting_has_no_effect():
    (line,) = said(BASE, {"leiden": {"resolution": 0.6, "n_iterations": 2}, "seed": 1})
    assert line == (
        "leiden.resolution at the top level of file1.yaml has no effect on sim_1m, which has its "
        "own: 1.0 (in file0.yaml); set datasets.sim_1m.leiden.resolution to change it"
    )


@pytest.mark.parametrize(
    "files",
    [
        ({**BASE, "leiden": {"resolution": 0.6}},),  # both in one file
        ({"leiden": {"resolution": 0.6}}, BASE),  # the dataset's is the later one
        (BASE, {"leiden": {"resolution": 1.0}}),  # the same
        (BASE, {"leiden": {"n_iterations": 5}}),
        (BASE, {"leiden": {"resolution": 2}, "datasets": BASE["datasets"]}),
        (BASE, {"leiden": None, "datasets": None}),
    ],
)
def test_settings_that_are_meant_so(files):
    assert said(*files) == []


def test_it_is_said_once_and_of_datasets_that_run():
    later = {"leiden": {"resolution": 0.6}}
    assert len(said(BASE, later, later)) == 1
    assert said(BASE, later, datasets=("other",)) == []
