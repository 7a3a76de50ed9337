"""Write what follows from the schema: the settings in config/config.yaml, and config/README.md.

``python scripts/scrna/config/reference.py``, or ``make config``, writes both again.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from scrna.config.schema import SCHEMA, as_yaml, expected, resolve, schema

FOLDER = SCHEMA.parents[1]
#: Where the generated part of config.yaml begins.
MARK = "# ---- every setting of every step, with its default (written from the schema) ----"
#: Where the generated part of the page begins.
PAGE_MARK = "<!-- from here on written by `make config` from config/schemas/config.schema.yaml -->"
#: Sections of a dataset that the page documents in full; the others override a step's section.
DATASET_ONLY = ("simulate",)


def render_settings() -> str:
    """Write the settings of every step with their defaults and descriptions, as YAML."""
    lines = [MARK, ""]
    for key, rule in schema()["properties"].items():
        if key in ("datasets", "run"):
            continue
        rule = resolve(rule)
        lines.append(f"# {rule['description']}")
        if rule.get("type") == "object":
            lines.append(f"{key}:")
            for name, child in rule["properties"].items():
                child = resolve(child)
                lines += [f"  # {child['description']}", f"  {name}: {as_yaml(child['default'])}"]
        else:
            lines.append(f"{key}: {as_yaml(rule['default'])}")
        lines.append("")
    return "\n".join(lines)


def render_page() -> str:
    """Write a table of keys for the run, for a dataset and for each step, as Markdown."""
    rules = {key: resolve(rule) for key, rule in schema()["properties"].items()}
    is_section = {key: rule.get("type") == "object" for key, rule in rules.items()}
    top = {key: rule for key, rule in rules.items() if not is_section[key]}
    dataset = resolve(schema()["$defs"]["dataset"])
    own = {key: rule for key, rule in dataset["properties"].items() if key not in rules}
    own |= {"execution": dataset["properties"]["execution"]}
    sections = {key: rule for key, rule in rules.items() if is_section[key] and key != "datasets"}
    parts = [
        _section("The run", "Keys at the top of the config.", top),
        _section("`datasets.NAME`", dataset["description"], own),
        *(
            _section(f"`datasets.NAME.{key}`", resolve(own[key])["description"], resolve(own[key]))
            for key in DATASET_ONLY
        ),
        *(_section(f"`{key}`", rule["description"], rule) for key, rule in sections.items()),
    ]
    return "\n".join([PAGE_MARK, "", *parts])


def _section(title: str, about: str, rules: Mapping[str, Any]) -> str:
    """Write a heading, a sentence and the table of its keys."""
    rules = rules.get("properties", rules) if rules.get("type") == "object" else rules
    table = ["| key | default | type | meaning |", "|---|---|---|---|", *_rows(rules)]
    return "\n".join([f"## {title}", "", about, "", *table, ""])


def _rows(rules: Mapping[str, Any]) -> Iterator[str]:
    for key, rule in rules.items():
        rule = resolve(rule)
        default = f"`{as_yaml(rule['default'])}`" if "default" in rule else "required"
        if rule.get("type") == "object" and "properties" in rule and "default" not in rule:
            default = "see below"
        kind = re.sub(r"like (\S+)", r"like `\1`", expected(rule))
        cells = [f"`{key}`", default, kind, rule["description"]]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Write the generated parts of config/config.yaml and config/README.md."""
    parts = (("config.yaml", MARK, render_settings()), ("README.md", PAGE_MARK, render_page()))
    for name, mark, text in parts:
        path = FOLDER / name
        written_by_hand = path.read_text().split(mark)[0]
        path.write_text(written_by_hand + text)


if __name__ == "__main__":
    main()
