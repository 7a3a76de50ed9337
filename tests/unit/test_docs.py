"""What the README shows is what the workflow does."""

import re
from pathlib import Path

import pytest
import yaml

from docs import rulegraph
from scrna import config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_picture_is_that_of_the_rules():
    assert rulegraph.picture() in README, "write it anew: python docs/rulegraph.py"


def test_the_example_is_a_valid_config():
    example = yaml.safe_load(re.search(r"```yaml\n(run: mine.*?)```", README, re.DOTALL)[1])
    full = config.complete(example)
    config.check(full | {"backend": "cpu"})
    assert full["datasets"]["mine"]["batch_key"] == "sample"


@pytest.mark.parametrize("name", re.findall(r"`([a-z]+\.[a-z0-9_]+)(?:: \w+)?`", README))
def test_settings_that_the_readme_names_exist(name):
    section, key = name.split(".")
    if section in config.SECTIONS and key not in ("zarr", "csv"):
        assert key in config.schema()["$defs"][section]["properties"]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
