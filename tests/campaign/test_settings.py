"""Settings that cannot be: the tables of the unit tests, each through the whole workflow."""

import re

import pytest
import yaml

from tests.campaign.conftest import SHORT
from tests.unit.config import test_schema, test_settings, test_source_address, test_yaml_files
from tests.unit.data import test_data_checks
from tests.unit.data.test_data_checks import source
from tests.workflow.conftest import _calls

__all__ = ["source"]
pytestmark = [pytest.mark.campaign, pytest.mark.slow]


def table(test) -> list[tuple]:
    """Return the cases that a test is parametrized with."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    assert len(marks) == 1
    return [case if isinstance(case, tuple) else (case,) for case in marks[0].args[1]]


def config_of(settings: str, **dataset) -> str:
    """Write a config of one simulated dataset."""
    own = {"kind": "simulate"} | dataset
    whole = {"run": "d", "backend": "cpu", "datasets": {"d": own}}
    return yaml.safe_dump(whole | (yaml.safe_load(settings) or {}), sort_keys=False)


def contradictions():
    for text, dataset, expected in table(
        test_settings.test_settings_that_contradict_each_other_are_refused
    ):
        yield config_of(text, **dataset), re.escape(expected)
    for text, expected in test_settings.CLUSTERINGS.items():
        own = yaml.safe_load(text)
        more = {key: own.pop(key) for key in ("batch_key",) if key in own}
        yield config_of("", **own, **more), expected.removesuffix("$")


def of_the_schema():
    for text, found, expected in table(
        test_schema.test_a_wrong_value_is_told_with_what_was_expected
    ):
        if "{}" in text:
            continue  # laid over other settings, it changes none
        yield config_of(text), rf"(?s){re.escape(found)}.*{re.escape(expected)}"
    for name, expected in table(test_schema.test_a_datasets_name_that_breaks_a_run_is_refused):
        yield (
            yaml.safe_dump({"run": name, "datasets": {name: {"kind": "simulate"}}}),
            re.escape(expected),
        )
    for (name,) in table(test_schema.test_a_datasets_name_that_cannot_be_one_is_told):
        both = {"a": {"kind": "simulate"}, name: {"kind": "simulate"}}
        yield yaml.safe_dump({"run": "a", "datasets": both}), "a dataset's name is text of letters"


def addresses():
    for address, advice in table(
        test_source_address.test_other_schemes_are_refused_with_what_there_is
    ):
        yield config_of("", kind="auto", source=address), re.escape(advice)
    yield config_of("", kind="auto", source="nowhere.h5ad"), "there is no such file or folder"
    yield config_of("", kind="auto", source="$NO_SUCH/a.h5ad"), "variable NO_SUCH is not set"
    yield config_of("", kind="auto", source="https://x.org/a.tgz"), "a URL has to end in"


AREAS = {
    "settings that contradict": contradictions,
    "settings of the schema": of_the_schema,
    "addresses": addresses,
}


@pytest.mark.parametrize("area", [*list(AREAS)[:2], pytest.param("addresses", marks=SHORT)])
def test_settings_are_refused_before_any_job(fresh, tmp_path, subtests, area):
    cases = list(AREAS[area]())
    files = [tmp_path / f"{number}.yaml" for number in range(len(cases))]
    for file, (text, _) in zip(files, cases, strict=True):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    answers = _calls([fresh.over(str(file)) for file in files], (), "--dry-run")
    for (text, expected), (status, output) in zip(cases, answers, strict=True):
        with subtests.test(area, text=text):
            assert status == 1, output
            assert re.search(expected, output), output
            assert "Building DAG" not in output
            assert "Traceback" not in output
    assert [*fresh.folder.glob("results/*")] == []


def test_a_config_file_that_is_no_yaml(fresh, tmp_path, subtests):
    """As config/config.yaml; what --configfile names is read by Snakemake before the Snakefile."""
    clones = []
    for number, text in enumerate(test_yaml_files.BAD):
        clones.append(fresh.clone(tmp_path / f"code{number}"))
        file = clones[-1].code / "config/config.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    answers = _calls(clones, (), "--dry-run")
    for (text, expected), (status, output) in zip(
        test_yaml_files.BAD.items(), answers, strict=True
    ):
        with subtests.test("config files that are no YAML", text=text):
            assert status == 1
            assert re.search(expected.replace("my", "config"), output), output
            assert "config/config.yaml" in output
            assert "Traceback" not in output


def test_what_settings_name_in_the_data(fresh, source, subtests):
    """All in one run, a dataset each; whichever step knows first says so, and others go on."""
    cases = [("convert", *case) for case in test_data_checks.BY_CONVERSION.items()]
    cases += [("filter", *case) for case in test_data_checks.BY_FILTER.items()]
    cases += [(None, text, None) for text in test_data_checks.ACCEPTED]
    own = {"filter": {"min_genes": 5, "min_cells": 3}, "source": str(source)}
    names = [f"d{number}" for number in range(len(cases))]
    datasets = {
        name: own | (yaml.safe_load(text) or {})
        for name, (_, text, _) in zip(names, cases, strict=True)
    }
    config = {"run": names, "backend": "cpu", "worker": "none", "datasets": datasets}
    workflow = fresh.over(yaml.safe_dump(config))
    targets = [f"results/{name}/filter.h5" for name in names]
    output = workflow.run(*targets, fails=True, timeout=900)
    for name, (step, text, expected) in zip(names, cases, strict=True):
        with subtests.test("settings and the data", text=text, step=step):
            said = "\n".join(re.findall(rf"^\[\w+ {name}\] (.*)", output, re.MULTILINE))
            result = workflow.folder / f"results/{name}/filter.h5"
            assert result.exists() == (step is None), said
            if step:
                of_this = re.sub(r"\btoy\b", name, expected)
                assert re.search(of_this, said, re.MULTILINE), said
                assert f"[{step} {name}]" in output
                made = {path.name for path in result.parent.glob("*")}
                assert ("counts.zarr" in made) == (step == "filter")
    assert "Traceback" not in output
