"""Check the config files for errors that Snakemake accepts or reports without file and line.

Of two equal keys Snakemake silently uses the last, and its errors name neither file nor line.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scrna.errors import UserError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file, YAML or JSON, as strictly as a person would.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    What it says.

    Raises
    ------
    UserError
        If it cannot be read, is empty or no mapping, or has a key twice; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the config file {path} cannot be read: {error}"
        raise UserError(msg) from None
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(_not_yaml(path, error, text)) from None
    if node is None or not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else f"holds a {_KINDS[type(node)]} (line 1)"
        msg = f"the config file {path} {found}; expected keys with values, e.g. run: demo"
        raise UserError(msg)
    twice = list(_repeats(node, (), set()))
    if twice:
        msg = "\n".join([f"the config file {path} has keys twice:", *twice])
        raise UserError(msg)
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none
        raise UserError(_not_yaml(path, error, text)) from None


def overruled(
    files: Sequence[tuple[str, Mapping[str, Any]]], datasets: Mapping[str, Any], sections: list[str]
) -> list[str]:
    """Find settings at the top of a file that a dataset overrides.

    Parameters
    ----------
    files
        Name and content of each config file, each laid over those before it.
    datasets
        The datasets that run, by name.
    sections
        The sections that a dataset may have of its own.

    Returns
    -------
    A sentence for each setting and dataset. A dataset's value in the same file or a later one is
    meant to be the one, and an equal value makes no difference.
    """
    said = []
    for number, (file, content) in enumerate(files):
        for section in sections:
            for key, value in _mapping(content.get(section)).items():
                for name in datasets:
                    own = [
                        (place, given[key])
                        for place, (_, each) in enumerate(files)
                        if key in (given := _own(each, name, section))
                    ]
                    again = any(
                        key in _mapping(each.get(section)) for _, each in files[number + 1 :]
                    )
                    if not again and own and own[-1][0] < number and own[-1][1] != value:
                        said.append(
                            f"{section}.{key} at the top level of {file} has no effect on {name}, "
                            f"which has its own: {own[-1][1]!r} (in {files[own[-1][0]][0]}); set "
                            f"datasets.{name}.{section}.{key} to change it"
                        )
    return said


def _own(content: Mapping[str, Any], name: str, section: str) -> Mapping[str, Any]:
    """Return a dataset's own section in a file; empty where it has none."""
    return _mapping(_mapping(_mapping(content.get("datasets")).get(name)).get(section))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


_KINDS = {yaml.ScalarNode: "single value", yaml.SequenceNode: "list"}


def _not_yaml(path: Path, error: Exception, text: str) -> str:
    """Describe where and why a file is not valid YAML."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    why = getattr(error, "problem", None) or str(error)
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line]:
        why += "; the line has a tab, and YAML is indented by spaces"
    return f"the config file {path}{where} is not valid YAML: {why}"


def _repeats(node: yaml.Node, above: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """Find keys that occur twice in a mapping or in those within it."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _repeats(item, (*above, str(number)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Hashable, int] = {}
    for key, value in node.value:
        known = _key(key)
        line = key.start_mark.line + 1
        place = (*above, str(getattr(key, "value", "")))
        if known in lines:
            yield f"  - {'.'.join(place)} in line {lines[known]} and again in line {line}"
        lines.setdefault(known, line)
        yield from _repeats(value, place, seen)


def _key(node: yaml.Node) -> Hashable:
    """Return what makes two keys the same: their value, whatever the quotes."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":merge"):
        return id(node)
    return yaml.constructor.SafeConstructor().construct_object(node)
