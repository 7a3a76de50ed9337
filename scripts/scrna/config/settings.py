"""Check the config, fill in defaults and merge the overrides of each dataset.

The schema, ``config/schemas/config.schema.yaml``, is the one place for keys, types, bounds,
defaults and descriptions.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scrna.config.clustering_checks import clustering_problems
from scrna.config.gene_sets import gene_set_problems
from scrna.config.schema import (
    errors_in,
    nearest,
    resolve,
    schema,
    with_defaults,
)
from scrna.errors import UserError
from scrna.resources.plan import blocks_problems
from scrna.steps import MATRIX_STEPS, SECTIONS, is_made

#: `run: auto`: bytes of GPU memory from which a dataset is taken.
PICKS = [(96e9, "cell_atlas"), (24e9, "brain_1m")]
#: PCA solvers by backend and kind of matrix: see scanpy.pp.pca and rsc.pp.pca.
SOLVERS = {
    ("cpu", "a sparse matrix"): ["auto", "arpack", "covariance_eigh"],
    ("cpu", "a dense matrix"): ["auto", "arpack", "covariance_eigh", "randomized", "full"],
    ("cpu", "zero_center false"): ["auto", "arpack", "randomized"],
    ("gpu", "a sparse matrix"): ["auto", "covariance_eigh", "lanczos", "randomized"],
    ("gpu", "a dense matrix"): ["auto", "full"],
}


def pick_run(
    config: Mapping[str, Any], gpu_memory: Callable[[], int | None]
) -> tuple[dict[str, Any], str | None]:
    """Replace ``run: auto`` by the largest dataset that the GPU can hold.

    Parameters
    ----------
    config
        The config as Snakemake merged it from its files.
    gpu_memory
        Tells the bytes of the first GPU's memory, the host's where they share it; None without a
        GPU. Asked for `auto` alone.

    Returns
    -------
    The config, and the line for the terminal that says what was picked and why; None where `run`
    names datasets itself, one called auto among them.

    Raises
    ------
    UserError
        If there is no GPU, its memory is too small, or the dataset is not defined.
    """
    datasets = config.get("datasets") or {}
    if config.get("run") != "auto" or "auto" in datasets:
        return dict(config), None
    total = gpu_memory()
    names = [name for least, name in PICKS if total is not None and total >= least]
    advice = "name a dataset yourself, e.g. run: demo"
    if total is None:
        msg = f"run: auto picks a dataset by the GPU's memory, and there is no GPU here; {advice}"
        raise UserError(msg)
    if not names:
        least, smallest = PICKS[-1]
        msg = (
            f"run: auto picks no dataset for a GPU with {total / 1e9:.1f} GB of memory: "
            f"{smallest}, the smaller one, is for {least / 1e9:.0f} GB and more; {advice}"
        )
        raise UserError(msg)
    if names[0] not in datasets:
        msg = f"run: auto picks {names[0]}, which datasets does not define; define it, or {advice}"
        raise UserError(msg)
    return {**config, "run": names[0]}, f"run: {names[0]} (auto: the GPU has {total / 1e9:.1f} GB)"


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a config and fill in what it leaves out.

    Parameters
    ----------
    config
        The config as Snakemake merged it from its files.

    Returns
    -------
    The config with every default; `run` is a list, and every dataset that runs has `execution` and
    every section of `SECTIONS`, its own overrides laid over the config's.

    Raises
    ------
    UserError
        For every wrong key or value at once: its name, what was found, what was expected.
    """
    if problems := errors_in(config):
        raise UserError(_listed(problems))
    full = with_defaults(config, schema())
    full["run"] = [full["run"]] if isinstance(full["run"], str) else list(full["run"])
    known = list(full["datasets"])
    problems = [
        f"run names {name!r}, which datasets does not define; {nearest(name, known)}"
        for name in full["run"]
        if name not in known
    ]
    if problems:
        raise UserError(_listed(problems))
    full["datasets"] = full["datasets"] | {name: _dataset(full, name) for name in full["run"]}
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


def batch_keys(dataset: Mapping[str, Any]) -> list[str]:
    """List a dataset's batch columns; none means no integration."""
    keys = dataset["batch_key"] or []
    return [keys] if isinstance(keys, str) else list(keys)


def sample_key(dataset: Mapping[str, Any], asked: str = "auto") -> str | None:
    """Return the obs column with the sample of each cell.

    Parameters
    ----------
    dataset
        A dataset of a `complete` config.
    asked
        A setting ``by``: auto, none or a column. Auto is the ``sample`` of a sample sheet, else the
        first column of batch_key.

    Returns
    -------
    None where all cells count as one sample.
    """
    if asked != "auto":
        return None if asked == "none" else asked
    if dataset.get("samples"):
        return "sample"
    return next(iter(batch_keys(dataset)), None)


def annotations(dataset: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the cluster names of a dataset, with cluster numbers as text."""
    return {
        clustering: {str(cluster): name for cluster, name in names.items()}
        for clustering, names in dataset["annotations"].items()
    }


# ---------------------------------------------------------------------------------------- checks


def _listed(problems: list[str]) -> str:
    return "\n".join(["The config has errors:", *(f"  - {problem}" for problem in problems)])


def _problems(dataset: Mapping[str, Any], backend: str) -> Iterator[str]:
    """Find settings of a dataset that cannot be carried out."""
    if dataset["samples"]:
        yield from _sheet_problems(dataset)
    elif dataset["kind"] != "simulate" and not dataset["source"]:
        yield "source is missing: the URL or path of the counts (or samples: a sample sheet)"
    elif (dataset["join"], dataset["join_on"]) != ("inner", "auto"):
        yield "join and join_on are for a dataset of samples; this one has a single source"
    bounds = dataset["filter"]
    for low, high in (("min_counts", "max_counts"), ("min_genes", "max_genes")):
        if None not in (bounds[low], bounds[high]) and bounds[low] > bounds[high]:
            yield f"filter.{low} is {bounds[low]}, above filter.{high}, {bounds[high]}"
    if bounds["remove_doublets"] and not is_made(dataset, "doublets"):
        yield "filter.remove_doublets is true, but doublets.method is none; set it to scrublet"
    root = dataset["trajectory"]["root"] or {}
    if "label" in root and not dataset["label_key"]:
        yield "trajectory.root names a label, but label_key is not set"
    if backend == "cpu" and dataset["markers"]["method"] == "wilcoxon_binned":
        instead = "t-test" if dataset["execution"] == "blocks" else "wilcoxon"
        yield f"markers.method wilcoxon_binned needs the GPU; on the CPU use {instead}"
    if backend == "cpu" and dataset["tsne"]["method"] == "fft":
        yield "tsne.method fft needs the GPU; on the CPU use auto"
    yield from _search_problems(dataset["neighbors"], backend)
    if batch_keys(dataset):
        yield from _harmony_problems(dataset["harmony"], len(batch_keys(dataset)), backend)
    yield from _pattern_problems(dataset["qc"])
    yield from _solver_problems(dataset["pca"], backend)
    yield from clustering_problems(
        dataset, annotations(dataset), is_integrated=bool(batch_keys(dataset))
    )
    yield from gene_set_problems(dataset)
    if dataset["execution"] == "blocks":
        for step in MATRIX_STEPS:
            if is_made(dataset, step):
                for problem in blocks_problems(step, dataset[step], backend):
                    yield f"{problem} (execution: blocks)"


def _sheet_problems(dataset: Mapping[str, Any]) -> Iterator[str]:
    if dataset["source"]:
        yield "there are both source and samples; remove one, or make the source a row of the sheet"
    if dataset["kind"] == "simulate":
        yield "kind simulate has no samples; name the files of simulated data in the sheet"
    if dataset["sha256"]:
        yield "sha256 is that of a single source; write those of samples into the sheet's column"


def _search_problems(neighbors: Mapping[str, Any], backend: str) -> Iterator[str]:
    algorithm, metric = neighbors["algorithm"], neighbors["metric"]
    if backend == "cpu" and algorithm != "auto":
        yield f"neighbors.algorithm {algorithm} needs the GPU; on the CPU use auto"
    if (algorithm, metric) == ("cagra", "cosine"):
        yield "neighbors.algorithm cagra does not support metric cosine; use auto or nn_descent"


def _harmony_problems(harmony: Mapping[str, Any], n_keys: int, backend: str) -> Iterator[str]:
    if harmony["ridge_lambda"] is not None and harmony["flavor"] == "harmony2":
        yield (
            f"harmony.ridge_lambda is {harmony['ridge_lambda']}, but flavor harmony2 estimates it; "
            "leave it null or take flavor harmony1"
        )
    if isinstance(harmony["theta"], list) and len(harmony["theta"]) != n_keys:
        yield f"harmony.theta has {len(harmony['theta'])} values for {n_keys} batch columns"
    if harmony["flavor"] == "harmony1" and backend == "cpu":
        yield "harmony.flavor harmony1 needs the GPU; on the CPU use harmony2"


def _solver_problems(pca: Mapping[str, Any], backend: str) -> Iterator[str]:
    # without centring scale leaves the matrix sparse
    is_dense = bool(pca["regress_out"] or (pca["scale"] and pca["zero_center"]))
    kind = "a dense matrix" if is_dense else "a sparse matrix"
    if backend == "cpu" and not pca["zero_center"]:
        kind = "zero_center false"
    solvers = SOLVERS[backend, kind]
    if pca["solver"] not in solvers:
        why = " (scale or regress_out)" if kind == "a dense matrix" else ""
        yield (
            f"pca.solver {pca['solver']} does not do {kind}{why} on the {backend.upper()}; "
            f"there are {', '.join(solvers)}"
        )


def _pattern_problems(qc: Mapping[str, Any]) -> Iterator[str]:
    for name in ("mt", "ribo", "hb"):
        if isinstance(qc[name], str):
            try:
                re.compile(qc[name])
            except re.error as error:
                yield f"qc.{name} is {qc[name]!r}, which is not a valid regular expression: {error}"


def _dataset(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Complete a dataset with the sections of the config, overridden by its own."""
    given = config["datasets"][name]
    rule = resolve(schema()["$defs"]["dataset"])
    own = {key: rule["properties"][key] for key in rule["properties"] if key not in SECTIONS}
    full = with_defaults(
        {key: value for key, value in given.items() if key not in SECTIONS},
        {"type": "object", "properties": own},
    )
    full["execution"] = full["execution"] or config["execution"]
    if full["samples"] and "batch_key" not in given:
        full["batch_key"] = "sample"
    for section in SECTIONS:
        full[section] = {**config[section], **given.get(section, {})}
    return full
