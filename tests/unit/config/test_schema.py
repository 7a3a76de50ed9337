import re

import pytest
import yaml

from scrna.config import reference
from scrna.config import settings as checks
from scrna.config.schema import SCHEMA, resolve, schema
from scrna.config.settings import check, complete
from scrna.errors import UserError

CONFIG = SCHEMA.parents[1] / "config.yaml"
SIMULATED = {"kind": "simulate"}


def complaints(text="", **dataset):
    """What is said of a config of one dataset `d`, line by line."""
    given = {"run": "d", "datasets": {"d": SIMULATED | dataset}} | yaml.safe_load(text)
    with pytest.raises(UserError) as refusal:
        complete(given)
    head, *lines = str(refusal.value).split("\n")
    assert head == "The config has errors:"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


# ------------------------------------------------------------------------------------- the schema


def keys(rule, path=()):
    """Every key of the schema with its rule, as deep as the schema names keys."""
    for name, child in resolve(rule).get("properties", {}).items():
        yield (*path, name), resolve(child)
        yield from keys(child, (*path, name))


def all_keys():
    yield from keys(schema())
    yield from keys(schema()["$defs"]["dataset"], ("datasets", "d"))


def test_every_key_says_what_it_is():
    found = dict(all_keys())
    assert {("hvg", "span"), ("gpu", "pool_gb"), ("datasets", "d", "simulate", "n_obs")} <= {*found}
    for path, rule in found.items():
        name = ".".join(path)
        assert rule["description"].endswith("."), name
        assert {"type", "enum", "anyOf"} & set(rule), f"{name} has no type"
        is_section = rule.get("type") == "object"
        is_root = "root" in path[:-1]  # one of its keys is given
        assert is_section or is_root or "default" in rule, f"{name} has no default"
        assert not is_section or "additionalProperties" in rule, f"{name} takes any key"


def test_every_number_has_bounds():
    for path, rule in all_keys():
        for option in [rule, *rule.get("anyOf", []), rule.get("items", {})]:
            kinds = option.get("type", [])
            if {"integer", "number"} & set([kinds] if isinstance(kinds, str) else kinds):
                is_bounded = {"minimum", "exclusiveMinimum"} & set(option)
                is_key_or_value = "root" in path or "keep_obs" in path  # a name, a value of obs
                assert is_bounded or is_key_or_value, f"{'.'.join(path)} has no bound"


def test_every_default_is_one_that_the_schema_allows():
    full = complete({"datasets": {"demo": SIMULATED}})
    assert complete(full) == full


def test_every_step_is_a_section_that_datasets_override():
    dataset = schema()["$defs"]["dataset"]["properties"]
    top = "datasets run backend execution worker worker_keep_minutes gpus".split()
    top += "seed gpu memory dask".split()
    assert sorted(schema()["properties"]) == sorted([*top, *checks.SECTIONS])
    assert {*checks.SECTIONS} <= {*dataset}
    for step in checks.SECTIONS:
        assert dataset[step] == schema()["properties"][step]


@pytest.mark.parametrize(
    ("file", "mark", "render"),
    [
        ("config.yaml", reference.MARK, reference.render_settings),
        ("README.md", reference.PAGE_MARK, reference.render_page),
    ],
)
def test_what_is_written_from_the_schema_is_in_step(file, mark, render):
    written = CONFIG.with_name(file).read_text()
    assert written.count(mark) == 1
    assert mark + written.split(mark)[1] == render(), "run make config"


def test_the_page_has_every_key_with_its_default():
    page = CONFIG.with_name("README.md").read_text()
    sections = dict(
        re.findall(r"^## `?([\w.]+)`?\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    )
    defs = schema()["$defs"]
    for section in [*checks.SECTIONS, "gpu", "memory", "dask"]:
        rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", sections[section], re.MULTILINE))
        assert rows.keys() == defs[section]["properties"].keys()
        full = complete({"datasets": {"demo": SIMULATED}})[section]
        assert {key: yaml.safe_load(text) for key, text in rows.items()} == full
    keys = re.findall(r"^\| `(\w+)` \|", sections["datasets.NAME"], re.MULTILINE)
    assert set(keys) == set(defs["dataset"]["properties"]) - set(checks.SECTIONS)


def test_config_yaml_as_it_is_shipped_is_complete():
    given = yaml.safe_load(CONFIG.read_text())
    for name in given["datasets"]:
        full = complete(given | {"run": name})
        check(full | {"backend": "gpu"})
        if name not in ("brain_1m", "cell_atlas"):  # so many cells are for a GPU
            check(full | {"backend": "cpu"})
    assert set(given["datasets"]) == {"demo", "dli_census", "brain_1m", "cell_atlas"}
    shipped = {key: value for key, value in given.items() if key not in ("run", "datasets")}
    defaults = complete({"datasets": {"demo": SIMULATED}})
    assert shipped == {key: defaults[key] for key in shipped}
    assert set(shipped) == set(defaults) - {"run", "datasets"}


def test_the_settings_are_written_again_below_what_is_written_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    page = CONFIG.with_name("README.md").read_text()
    (tmp_path / "README.md").write_text(page.replace("`min_dist`", "`min_distance`"))
    expected = CONFIG.read_text().replace("run: demo", "run: mine")
    (tmp_path / "config.yaml").write_text(expected.replace("min_dist: 0.5", "min_dist: 9"))
    reference.main()
    assert (tmp_path / "config.yaml").read_text() == expected
    assert (tmp_path / "README.md").read_text() == page


# ----------------------------------------------------------------------------- what is not a key


def objects(rule=None, path=()):
    """Every mapping of the schema that names its keys."""
    rule = resolve(rule or schema())
    if rule.get("additionalProperties") is False:
        yield path, list(rule["properties"])
    for name, child in rule.get("properties", {}).items():
        yield from objects(child, (*path, name))
    if not path:
        yield from objects(schema()["$defs"]["dataset"], ("datasets", "d"))


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def said_of(path, key):
    given = {"datasets": {"d": {}}} | nested((*path, key), 1)
    with pytest.raises(UserError) as refusal:
        complete(given)
    return str(refusal.value).split("\n")[1]


@pytest.mark.parametrize("path", [path for path, _ in objects()], ids=".".join)
def test_an_unknown_key_is_named_at_every_level(path):
    known = dict(objects())[path]
    full = ".".join((*path, "qqqqq"))
    assert said_of(path, "qqqqq") == f"  - {full} is not a key; there are {', '.join(known)}"


def test_the_nearest_key_is_told_at_every_level():
    for path, known in objects():
        for key in known:
            if len(key) > 3:
                wrong = key[:2] + key[3:]
                full = ".".join((*path, wrong))
                expected = f"  - {full} is not a key; did you mean {key}?"
                assert said_of(path, wrong) == expected


def test_keys_that_are_no_text_are_told_like_others():
    said = complaints("1: 2\numap: {3: 4, min_dst: 5}")
    assert said[0].startswith("1 is not a key; there are datasets, run, ")
    assert said[1].startswith("umap.3 is not a key; there are min_dist, ")
    assert said[2] == "umap.min_dst is not a key; did you mean min_dist?"


# --------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("seed: -1", "seed is -1", "integer, at least 0, at most 4294967295. Seed of all steps"),
        ("seed: true", "seed is True", "integer, at least 0"),
        ("seed: 1.0", "seed is 1.0 (write 1)", "integer, at least 0"),
        ("backend: gpus", "backend is 'gpus'", "one of auto, gpu, cpu. auto: the GPU if"),
        ("umap:", "umap is empty (null)", "mapping. UMAP embedding."),
        ("leiden: 0.6", "leiden is 0.6", "mapping. Leiden clustering."),
        ("hvg: {span: 0}", "hvg.span is 0", "number, above 0, at most 1. Share of the genes"),
        ("filter: {max_pct_mt: 101}", "filter.max_pct_mt is 101", "number or null, at least 0, at"),
        ("filter: {max_counts: .nan}", "filter.max_counts is nan", "number or null, at least 0."),
        ("filter: {max_counts: .inf}", "filter.max_counts is inf", "number or null, at least 0."),
        (
            "normalize: {target_sum: x}",
            "normalize.target_sum is 'x'",
            "number, above 0 or median",
        ),
        ("leiden: {resolution: []}", "leiden.resolution is []", "at least one value. One resolu"),
        ("leiden: {resolution: [1, 1]}", "leiden.resolution is [1, 1]", "no value twice. One res"),
        ("leiden: {resolution: [1, -1]}", "leiden.resolution.1 is -1", "number, above 0."),
        ("qc: {mt: [MT-ND1, 5]}", "qc.mt.1 is 5", "text."),
        ("qc: {mt: ''}", "qc.mt is ''", "at least one letter."),
        (
            "trajectory: {root: {cell: a, gene: b}}",
            "trajectory.root is {'cell': 'a', 'gene': 'b'}",
            "one key alone. Start of the pseudotime",
        ),
        ("trajectory: {root: {}}", "trajectory.root is {}", "at least one key. Start of the"),
        ("run: []", "run is []", "at least one value. Dataset to analyse"),
        ("datasets: {}", "datasets is {}", "at least one key. Datasets by name"),
        ("datasets: {d: }", "datasets.d is empty (null)", "mapping. One dataset: where its counts"),
        ("datasets: {d: {kind: mtx}}", "datasets.d.kind is 'mtx'", "one of auto, h5ad, 10x_h5, "),
        (
            "datasets: {d: {sha256: abc}}",
            "datasets.d.sha256 is 'abc'",
            "text or null, like ^[0-9a-f]{64}$. SHA-256",
        ),
        ("datasets: {d: {keep_obs: {a: b}}}", "datasets.d.keep_obs.a is 'b'", "list."),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(text, found, expected):
    (said,) = complaints(text)
    assert said.startswith(f"{found}; expected {expected}")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("normalize: {target_sum: 1e4}", "10000"),
        ("filter: {max_counts: 1E4}", "10000"),
        ("filter: {max_genes: 5e3}", "5000"),
        ("hvg: {span: 3e-1}", "0.3"),
        ("umap: {min_dist: 1e-5}", "1.0e-05"),
        ("leiden: {resolution: '0.8'}", "0.8"),
    ],
)
def test_a_number_that_yaml_reads_as_text_is_told_as_yaml_reads_it(text, written):
    (said,) = complaints(text)
    assert f" (YAML reads this as text; write {written}); expected " in said
    assert yaml.safe_load(written) == float(re.search(r"is '(\S+)'", said)[1])


def test_a_text_that_looks_like_a_number_has_no_hint_where_text_is_right():
    (said,) = complaints("datasets: {d: {sha256: '1234'}}")
    assert "write" not in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 200, f"{'a' * 60}…: a dataset's name has at most 100 characters, this one 200"),
        ("ab" * 150, f"{'ab' * 30}…: a dataset's name has at most 100 characters, this one 300"),
        ("a" * 20, f"{'a' * 20}: a dataset's name must not end in 20 repeats"),
        ("x" + "abc" * 20, "…: a dataset's name must not end in 20 repeats"),
    ],
)
def test_a_datasets_name_that_breaks_a_run_is_refused(name, expected):
    with pytest.raises(UserError) as refusal:
        complete({"run": name, "datasets": {name: SIMULATED}})
    assert expected in str(refusal.value)


@pytest.mark.parametrize("name", ["a" * 19, "pca", "harmony", "all", "x..y-_.", "sample_" * 14])
def test_a_datasets_name_that_is_odd_and_works(name):
    assert list(complete({"run": name, "datasets": {name: SIMULATED}})["datasets"]) == [name]


@pytest.mark.parametrize("name", ["a b", "-a", ".a", "a/b", "", "ä", "{x}", "$x", "a\n"])
def test_a_datasets_name_that_cannot_be_one_is_told(name):
    with pytest.raises(UserError) as refusal:
        complete({"run": "a", "datasets": {"a": SIMULATED, name: SIMULATED}})
    written = name.replace("\n", "\\n")
    assert str(refusal.value).split("\n")[1] == (
        f"  - datasets.{written}: a dataset's name is text of letters, digits, _, . and -, "
        "and begins with a letter or digit"
    )


def test_a_datasets_name_that_yaml_reads_as_a_number_is_told():
    with pytest.raises(UserError, match=r"2024: .*YAML reads 2024 as a number; write '2024'"):
        complete({"run": "2024", "datasets": {2024: SIMULATED}})


@pytest.mark.parametrize("name", ["pbmc3k", "1M-brain.v2", "A_b"])
def test_names_that_datasets_have(name):
    assert complete({"run": name, "datasets": {name: SIMULATED}})["run"] == [name]


def test_datasets_that_are_not_there_are_all_told():
    with pytest.raises(UserError) as refusal:
        complete({"run": ["pbmc", "x", "pbmc3k"], "datasets": {"pbmc3k": SIMULATED}})
    assert str(refusal.value).split("\n")[1:] == [
        "  - run names 'pbmc', which datasets does not define; did you mean pbmc3k?",
        "  - run names 'x', which datasets does not define; there are pbmc3k",
    ]


def test_a_config_without_datasets_is_told():
    with pytest.raises(UserError, match="the config: 'datasets' is a required property"):
        complete({})


def test_all_errors_are_told_at_once():
    said = complaints(
        "seed: x\nfilter: {max_gens: 3, max_counts: -1}\numap: {init: pca}\nfoo: 1",
        filter={"max_genes": 0},
        umap={"sprad": 1},
    )
    assert [line.split()[0] for line in said] == [
        "foo", "datasets.d.filter.max_genes", "datasets.d.umap.sprad", "filter.max_gens",
        "filter.max_counts", "seed", "umap.init",
    ]  # fmt: skip
