"""The schema of the config: read it, check a config against it, fill in defaults.

``config/schemas/config.schema.yaml`` is a JSON schema. Messages about wrong values are written
here, as sentences, because those of jsonschema print the schema.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from scrna.errors import did_you_mean

SCHEMA = Path(__file__).parents[3] / "config/schemas/config.schema.yaml"
#: Messages for the size of a list or mapping.
SIZES = {
    "minItems": "at least one value",
    "minLength": "at least one letter",
    "minProperties": "at least one key",
    "maxProperties": "one key alone",
    "uniqueItems": "no value twice",
}
#: The types of JSON in the words of YAML.
KINDS = {"array": "list", "object": "mapping", "string": "text", "boolean": "true or false"}


@cache
def schema() -> dict[str, Any]:
    """Read the schema of the config."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: 8 ms where Python takes 46
    return yaml.load(SCHEMA.read_text(), loader)


def errors_in(config: Mapping[str, Any]) -> list[str]:
    """Check a config against the schema.

    Parameters
    ----------
    config
        The config.

    Returns
    -------
    A sentence for every wrong key or value: its name, what was found, what was expected.
    """
    strict = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            ),
        }
    )
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=strict)
    errors = validator(schema()).iter_errors(config)
    errors = sorted(errors, key=lambda error: list(map(str, error.path)))
    return [sentence for error in errors for sentence in _explain(error)]


def _explain(error: jsonschema.ValidationError) -> Iterator[str]:
    """Describe what is wrong with a config key, in a sentence for each unknown one."""
    where = ".".join(map(str, error.absolute_path)) or "the config"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        prefix = f"{where}." if error.absolute_path else ""
        for key in sorted(map(str, set(error.instance) - set(known))):
            yield f"{prefix}{key} is not a key; {nearest(key, known)}"
    elif error.validator == "required":
        yield f"{where}: {error.message}"
    elif "propertyNames" in error.absolute_schema_path:
        yield f"{where}.{_on_a_line(error.instance)}: a dataset's name {_wrong_name(error)}"
    else:
        wanted = SIZES.get(error.validator) or expected(error.schema)
        found = "empty (null)" if error.instance is None else repr(error.instance)
        about = error.schema.get("description", "")
        yield f"{where} is {found}{_as_number(error)}; expected {wanted}. {about}".strip()


def _as_number(error: jsonschema.ValidationError) -> str:
    """Describe how to write a number that YAML reads as something else."""
    if error.validator not in ("type", "anyOf") or not isinstance(error.instance, str | float):
        return ""
    try:
        number = float(error.instance)
    except ValueError:
        return ""
    if not isfinite(number):
        return ""
    if number.is_integer():
        number = int(number)
    if isinstance(error.instance, str):
        return f" (YAML reads this as text; write {as_yaml(number)})"
    return f" (write {number})" if isinstance(number, int) else ""


def _wrong_name(error: jsonschema.ValidationError) -> str:
    if error.validator == "maxLength":
        return f"has at most {error.validator_value} characters, this one {len(error.instance)}"
    if error.validator == "not":
        return "must not end in 20 repeats, which Snakemake takes for an endless recursion"
    return "is text of letters, digits, _, . and -, and begins with a letter or digit" + _as_text(
        error.instance
    )


def _on_a_line(name: Any, most: int = 60) -> str:
    """Write a name on one line, cut where it is long."""
    text = str(name).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[:most]}…"


def _as_text(name: Any) -> str:
    return "" if isinstance(name, str) else f" (YAML reads {name} as a number; write '{name}')"


def expected(rule: Mapping[str, Any]) -> str:
    """Describe the values that a rule allows."""
    rule = resolve(rule)
    if "enum" in rule:
        return "one of " + ", ".join(as_yaml(value) for value in rule["enum"])
    if "anyOf" in rule:
        return " or ".join(expected(option) for option in rule["anyOf"])
    if "const" in rule:
        return as_yaml(rule["const"])
    kinds = rule.get("type", "another value")
    text = " or ".join(KINDS.get(k, k) for k in ([kinds] if isinstance(kinds, str) else kinds))
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "pattern": "like",
    }
    said = [f"{word} {rule[key]}" for key, word in bounds.items() if key in rule]
    return ", ".join([text, *said])


def nearest(word: str, known: list[str]) -> str:
    """Point to the nearest of the names that there are, or list them all."""
    return did_you_mean(word, known, most=1) or f"there are {', '.join(known)}"


def resolve(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Follow a rule's reference to `$defs`; what stands beside it goes before what is there."""
    if "$ref" in rule:
        target = schema()["$defs"][rule["$ref"].rsplit("/", 1)[1]]
        return {**resolve(target), **{k: v for k, v in rule.items() if k != "$ref"}}
    return dict(rule)


def with_defaults(given: Any, rule: Mapping[str, Any]) -> Any:
    """Fill in the defaults of a rule, at all levels for which it names keys."""
    rule = resolve(rule)
    if rule.get("type") != "object" or "properties" not in rule:
        return given
    full = dict(given or {})
    for key, child in rule["properties"].items():
        child = resolve(child)
        if key in full or child.get("type") == "object":
            full[key] = with_defaults(full.get(key, child.get("default", {})), child)
        elif "default" in child:
            full[key] = child["default"]
    return full


def as_yaml(value: Any) -> str:
    """Write a value as it stands in a YAML file."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
