"""The config: checked against its schema, defaults filled in, a dataset's overrides merged.

The schema, ``config/schemas/config.schema.yaml``, is the one place for keys, types, bounds,
defaults and descriptions. ``python scripts/scrna/config.py`` writes the settings in
``config/config.yaml`` from it anew.
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jsonschema
import yaml

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from scrna.errors import UserError

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"
#: The steps that a dataset may override, as the schema names their sections.
SECTIONS = "qc filter normalize hvg pca harmony neighbors umap tsne leiden louvain".split()
SECTIONS += "markers trajectory final".split()
MARK = "# ---- every setting of every step, with its default (written from the schema) ----"
#: The PCA solvers of each backend, by what they are given: see scanpy.pp.pca and rsc.pp.pca.
SOLVERS = {
    ("cpu", "sparse"): ["auto", "arpack", "covariance_eigh"],
    ("cpu", "dense"): ["auto", "arpack", "covariance_eigh", "randomized", "full"],
    ("gpu", "sparse"): ["auto", "covariance_eigh", "lanczos", "randomized"],
    ("gpu", "dense"): ["auto", "full"],
}
#: The files of a 10x folder, as they begin.
MTX_FILES = ["matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv"]
#: Columns that qc adds to obs, which regress_out and markers may name.
QC_COLUMNS = re.compile(r"(log1p_)?(total_counts|n_genes_by_counts)(_\w+)?|pct_counts_\w+")


@cache
def schema() -> dict[str, Any]:
    """Read the schema of the config."""
    return yaml.safe_load(SCHEMA.read_text())


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a config and fill in what it leaves out.

    Parameters
    ----------
    config
        The config as Snakemake merged it from its files.

    Returns
    -------
    The config with every default; `run` is a list, and every dataset that runs has every section
    of `SECTIONS`, its own overrides laid over the config's.

    Raises
    ------
    UserError
        For every wrong key or value at once: its name, what was found, what was expected.
    """
    problems = [_explain(error) for error in _errors(config)]
    if problems:
        raise UserError(_listed(problems))
    full = _with_defaults(config, schema())
    full["run"] = [full["run"]] if isinstance(full["run"], str) else list(full["run"])
    for name in full["run"]:
        if name not in full["datasets"]:
            known = list(full["datasets"])
            msg = f"run names {name!r}, which datasets does not define; {_nearest(name, known)}"
            raise UserError(msg)
        full["datasets"][name] = _dataset(full, name)
    return full


def check(config: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other, or that the backend does not have.

    Parameters
    ----------
    config
        A `complete` config, its backend resolved to gpu or cpu.

    Raises
    ------
    UserError
        For every such setting at once, with what to take instead.
    """
    problems = [
        f"datasets.{name}: {problem}"
        for name in config["run"]
        for problem in _problems(config["datasets"][name], config["backend"])
    ]
    if problems:
        raise UserError(_listed(problems))


def required_obs(dataset: Mapping[str, Any], name: str) -> dict[str, str]:
    """List the obs columns that a dataset's settings name.

    Parameters
    ----------
    dataset
        A dataset of a `complete` config.
    name
        Its name.

    Returns
    -------
    Column → the config key that names it.
    """
    where = f"datasets.{name}"
    wanted = dict.fromkeys(batch_keys(dataset), f"{where}.batch_key")
    if dataset["label_key"]:
        wanted[dataset["label_key"]] = f"{where}.label_key"
    if dataset["hvg"]["batch_key"] not in (None, "auto"):
        wanted[dataset["hvg"]["batch_key"]] = "hvg.batch_key"
    for key in dataset["pca"]["regress_out"]:
        if not QC_COLUMNS.fullmatch(key):
            wanted[key] = "pca.regress_out"
    groupby = dataset["markers"]["groupby"]
    if dataset["markers"]["enabled"] and not is_clustering(groupby):
        wanted[groupby] = "markers.groupby"
    return wanted


def batch_keys(dataset: Mapping[str, Any]) -> list[str]:
    """List a dataset's batch columns; none means no integration."""
    keys = dataset["batch_key"] or []
    return [keys] if isinstance(keys, str) else list(keys)


def is_clustering(groupby: str) -> bool:
    """Tell whether cells are grouped by a clustering of ours rather than by a column of obs."""
    return re.fullmatch(r"(leiden|louvain)(_[0-9.]+)?", groupby) is not None


class Source(NamedTuple):
    """Where a dataset's counts come from: a URL to download, and the files that hold them."""

    url: str | None
    files: list[str]


def sources(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Find the files of every dataset.

    Parameters
    ----------
    datasets
        Datasets of a `complete` config.

    Returns
    -------
    Dataset → its source; what is downloaded or simulated lies in ``resources/``.

    Raises
    ------
    UserError
        If a path's variable is not set, a folder is no 10x folder, or a URL's file has no suffix
        that tells what it is.
    """
    return {name: _source(name, dataset) for name, dataset in datasets.items()}


def _source(name: str, dataset: Mapping[str, Any]) -> Source:
    if dataset["kind"] == "simulate":
        return Source(None, [f"resources/{name}.h5ad"])
    key, given = f"datasets.{name}.source", dataset["source"]
    path = os.path.expanduser(os.path.expandvars(given))
    if missing := re.search(r"\$\{?(\w+)", path):
        msg = (
            f"{key} is {given!r}, but the environment variable {missing[1]} is not set; "
            "set it, or write the path out"
        )
        raise UserError(msg)
    if re.match(r"https?://", path):
        suffix = Path(urlsplit(path).path).suffix
        if suffix not in (".h5ad", ".h5"):
            msg = f"{key} is {given!r}; a URL has to end in .h5ad or .h5 (10x)"
            raise UserError(msg)
        return Source(path, [f"resources/{name}{suffix}"])
    if Path(path).is_dir():
        files = [str(file) for stem in MTX_FILES for file in sorted(Path(path).glob(f"{stem}*"))]
        if len(files) != 3:
            msg = (
                f"{key} is {given!r}, a folder without the three files of 10x (matrix.mtx, "
                "barcodes.tsv, features.tsv or genes.tsv, each maybe .gz); "
                f"found {', '.join(files) or 'none'}"
            )
            raise UserError(msg)
        return Source(None, files)
    return Source(None, [path])


def check_columns(datasets: Mapping[str, Mapping[str, Any]], results: str) -> None:
    """Refuse columns that converted counts do not have, before anything runs.

    Parameters
    ----------
    datasets
        Datasets of a `complete` config.
    results
        The folder with a folder for each dataset.

    Raises
    ------
    UserError
        For the first such column: the config key, and what columns there are.
    """
    for name, dataset in datasets.items():
        summary = Path(results, name, "counts.json")
        if not summary.exists():
            continue
        columns = list(json.loads(summary.read_text())["obs_columns"])
        for column, key in required_obs(dataset, name).items():
            if column not in columns:
                msg = f"{key} names {column!r}, which obs of {name} does not have; " + _nearest(
                    column, columns
                )
                raise UserError(msg)


# ---------------------------------------------------------------------------------------- checks


def _errors(config: Mapping[str, Any]) -> Iterator[jsonschema.ValidationError]:
    validator = jsonschema.Draft202012Validator(schema())
    return iter(sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.path))))


def _explain(error: jsonschema.ValidationError) -> str:
    """Say what is wrong with a config key in a sentence."""
    where = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))
        full = [f"{where}.{key}" if where else key for key in unknown]
        return "; ".join(
            f"{path} is not a key; {_nearest(key, known)}"
            for path, key in zip(full, unknown, strict=True)
        )
    if error.validator == "required":
        return f"{where or 'the config'}: {error.message}"
    expected = _expected(error.schema)
    hint = ""
    if isinstance(error.instance, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e\d+", error.instance):
        hint = f" (YAML reads this as text; write {float(error.instance):.10g})"
    about = error.schema.get("description", "")
    return f"{where} is {error.instance!r}{hint}; expected {expected}. {about}".strip()


def _expected(rule: Mapping[str, Any]) -> str:
    if "enum" in rule:
        return "one of " + ", ".join(map(str, rule["enum"]))
    if "anyOf" in rule:
        return " or ".join(_expected(option) for option in rule["anyOf"])
    if "const" in rule:
        return repr(rule["const"])
    kinds = rule.get("type", "another value")
    text = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "pattern": "like",
    }
    said = [f"{word} {rule[key]}" for key, word in bounds.items() if key in rule]
    return ", ".join([text, *said])


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def _listed(problems: list[str]) -> str:
    return "\n".join(["The config has errors:", *(f"  - {problem}" for problem in problems)])


def _problems(dataset: Mapping[str, Any], backend: str) -> Iterator[str]:
    """Say what in a dataset's settings cannot be done."""
    if dataset["kind"] != "simulate" and not dataset["source"]:
        yield "source is missing: the URL or path of the counts"
    bounds = dataset["filter"]
    for low, high in (("min_counts", "max_counts"), ("min_genes", "max_genes")):
        if None not in (bounds[low], bounds[high]) and bounds[low] > bounds[high]:
            yield f"filter.{low} is {bounds[low]}, above filter.{high}, {bounds[high]}"
    root = dataset["trajectory"]["root"] or {}
    if "label" in root and not dataset["label_key"]:
        yield "trajectory.root names a label, but label_key is not set"
    if backend == "cpu" and dataset["markers"]["method"] == "wilcoxon_binned":
        yield "markers.method wilcoxon_binned is the GPU's; on the CPU take wilcoxon"
    if batch_keys(dataset):
        yield from _harmony_problems(dataset["harmony"], len(batch_keys(dataset)), backend)
    yield from _solver_problems(dataset["pca"], backend)
    yield from _clustering_problems(dataset)


def _harmony_problems(harmony: Mapping[str, Any], n_keys: int, backend: str) -> Iterator[str]:
    if harmony["ridge_lambda"] is not None and harmony["flavor"] == "harmony2":
        yield (
            f"harmony.ridge_lambda is {harmony['ridge_lambda']}, but flavor harmony2 estimates it; "
            "leave it null or take flavor harmony1"
        )
    if isinstance(harmony["theta"], list) and len(harmony["theta"]) != n_keys:
        yield f"harmony.theta has {len(harmony['theta'])} values for {n_keys} batch columns"
    if harmony["flavor"] == "harmony1" and backend == "cpu":
        yield "harmony.flavor harmony1 is the GPU's; on the CPU take harmony2"


def _solver_problems(pca: Mapping[str, Any], backend: str) -> Iterator[str]:
    dense = bool(pca["scale"] or pca["regress_out"])
    solvers = SOLVERS[backend, "dense" if dense else "sparse"]
    if pca["solver"] not in solvers:
        kind = "the dense matrix of scale or regress_out" if dense else "a sparse matrix"
        yield (
            f"pca.solver {pca['solver']} does not do {kind} on the {backend.upper()}; "
            f"there are {', '.join(solvers)}"
        )


def _clustering_problems(dataset: Mapping[str, Any]) -> Iterator[str]:
    groupby = dataset["markers"]["groupby"]
    if not is_clustering(groupby):
        return
    method, _, asked = groupby.partition("_")
    if method == "louvain" and not dataset["louvain"]["enabled"]:
        yield f"markers.groupby is {groupby}, but louvain.enabled is false"
    resolutions = dataset[method]["resolution"]
    names = [f"{method}_{r:g}" for r in resolutions] if isinstance(resolutions, list) else []
    if asked and groupby not in names:
        have = ", ".join([method, *names])
        yield f"markers.groupby is {groupby}, but {method}.resolution gives {have}"


# -------------------------------------------------------------------------------------- defaults


def _resolve(rule: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in rule:
        target = schema()["$defs"][rule["$ref"].rsplit("/", 1)[1]]
        return {**_resolve(target), **{k: v for k, v in rule.items() if k != "$ref"}}
    return dict(rule)


def _with_defaults(given: Any, rule: Mapping[str, Any]) -> Any:
    """Lay a value over the defaults of its rule, as deep as the rule names keys."""
    rule = _resolve(rule)
    if rule.get("type") != "object" or "properties" not in rule:
        return given
    full = dict(given or {})
    for key, child in rule["properties"].items():
        child = _resolve(child)
        if key in full or child.get("type") == "object":
            full[key] = _with_defaults(full.get(key, child.get("default", {})), child)
        elif "default" in child:
            full[key] = child["default"]
    return full


def _dataset(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give a dataset its sections: the config's, overridden by its own."""
    given = config["datasets"][name]
    rule = _resolve(schema()["$defs"]["dataset"])
    own = {key: rule["properties"][key] for key in rule["properties"] if key not in SECTIONS}
    full = _with_defaults(
        {key: value for key, value in given.items() if key not in SECTIONS},
        {"type": "object", "properties": own},
    )
    for section in SECTIONS:
        full[section] = {**config[section], **given.get(section, {})}
    return full


# -------------------------------------------------------------------------- config.yaml, generated


def render_settings() -> str:
    """Write the settings of every step with their defaults and descriptions, as YAML."""
    lines = [MARK, ""]
    for key, rule in schema()["properties"].items():
        if key in ("datasets", "run"):
            continue
        rule = _resolve(rule)
        lines.append(f"# {rule['description']}")
        if rule.get("type") == "object":
            lines.append(f"{key}:")
            for name, child in rule["properties"].items():
                child = _resolve(child)
                lines += [f"  # {child['description']}", f"  {name}: {_yaml(child['default'])}"]
        else:
            lines.append(f"{key}: {_yaml(rule['default'])}")
        lines.append("")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def main() -> None:
    """Write the generated part of config/config.yaml anew."""
    path = SCHEMA.parents[1] / "config.yaml"
    written_by_hand = path.read_text().split(MARK)[0]
    path.write_text(written_by_hand + render_settings())


if __name__ == "__main__":
    main()
