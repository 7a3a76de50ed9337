"""The steps of the analysis, a row each: what the workflow must know of a step beside its script.

A new step gets a row here, a script, a rule and a section in the config's schema:
docs/development.md shows it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """A step, which is a rule of the same name.

    Parameters
    ----------
    uses
        What its parameters hold beside its section of the config: ``backend`` (the step is done by
        scanpy or rapids-singlecell, in the worker where there is one), ``seed``, and the settings
        ``label_key``, ``label_missing``, ``batch_key`` and ``annotations`` of a dataset.
    section
        Its section of the config; None: the one of its own name.
    result
        Where its step file lies, for a step whose slots become part of ``final.zarr``: ``dataset``
        for ``results/{dataset}``, ``rep`` for a folder of each representation.
    asked_by
        The keys of its section that ask for it: it is made where one of them is neither false nor
        empty nor ``none``. Without any it is always made.
    is_clustering
        Whether its result is a clustering: a column of obs with the step's name, and one with
        the resolution for each of several.
    matrix
        How it holds the count matrix: ``either`` in memory or in blocks, as sizes decide; always in
        ``blocks``; None: it does not.
    light_on
        Backends on which it imports little (NumPy or CuPy, or cuGraph's own library), so that it
        does not wait for a worker that has only begun to start.
    """

    uses: tuple[str, ...] = ()
    section: str | None = None
    result: str | None = None
    asked_by: tuple[str, ...] = ()
    is_clustering: bool = False
    matrix: str | None = None
    light_on: tuple[str, ...] = ()


_ON_GPU = ("backend", "seed")
_ENABLED = ("enabled",)
#: In the order in which a run comes to them.
STEPS = {
    "simulate": Step(uses=("seed",)),
    "qc": Step(uses=("backend",), result="dataset", matrix="blocks", light_on=("cpu", "gpu")),
    "doublets": Step(uses=_ON_GPU, result="dataset", asked_by=("method",)),
    "filter": Step(),
    "normalize": Step(uses=("backend",), matrix="blocks", light_on=("cpu", "gpu")),
    "hvg": Step(uses=("backend",), result="dataset", matrix="either"),
    "scores": Step(
        uses=_ON_GPU, result="dataset", asked_by=("sets", "cell_cycle"), matrix="either"
    ),
    "pca": Step(uses=_ON_GPU, matrix="either"),
    "harmony": Step(uses=(*_ON_GPU, "batch_key")),
    "integration_scores": Step(
        uses=("seed", "label_key", "label_missing", "batch_key"), section="integration"
    ),
    "integration": Step(asked_by=_ENABLED),
    "neighbors": Step(uses=_ON_GPU, result="rep"),
    "leiden": Step(uses=_ON_GPU, result="rep", is_clustering=True, light_on=("gpu",)),
    "louvain": Step(
        uses=_ON_GPU, result="rep", asked_by=_ENABLED, is_clustering=True, light_on=("gpu",)
    ),
    "umap": Step(uses=_ON_GPU, result="rep"),
    "tsne": Step(uses=_ON_GPU, result="rep", asked_by=_ENABLED),
    "markers": Step(uses=("backend",), result="rep", asked_by=_ENABLED, matrix="either"),
    "cell_type_names": Step(section="cell_types", result="rep", asked_by=("markers",)),
    "trajectory": Step(uses=(*_ON_GPU, "label_key"), result="rep", asked_by=_ENABLED),
    "matrix": Step(section="final", matrix="blocks"),
    "final": Step(uses=("annotations",), matrix="blocks"),
    "qc_figures": Step(uses=("batch_key",), section="figures"),
    "figures": Step(uses=("label_key", "batch_key", "annotations"), asked_by=_ENABLED),
    "marker_figures": Step(section="figures"),
    "report": Step(
        uses=("seed", "label_key", "label_missing", "batch_key", "annotations"), asked_by=_ENABLED
    ),
}
#: The sections of the config that a dataset may override; that of the simulator is a dataset's own.
SECTIONS = tuple(dict.fromkeys(row.section or name for name, row in STEPS.items()))[1:]
CLUSTERINGS = tuple(name for name, step in STEPS.items() if step.is_clustering)
#: The steps that can hold their matrix in memory or go through it in blocks.
MATRIX_STEPS = tuple(name for name, step in STEPS.items() if step.matrix == "either")
#: The steps that always go through the matrix in blocks.
BLOCK_STEPS = tuple(name for name, step in STEPS.items() if step.matrix == "blocks")


def using(what: str) -> list[str]:
    """List the steps whose parameters hold something beside their section, in a run's order."""
    return [name for name, step in STEPS.items() if what in step.uses]


def section_of(step: str) -> str:
    """Return the section of the config that a step has its settings from."""
    return STEPS[step].section or step


def is_made(dataset: Mapping[str, Any], step: str) -> bool:
    """Return whether the settings of a dataset ask for a step."""
    section = dataset[section_of(step)]
    asked = [section[key] for key in STEPS[step].asked_by]
    return not asked or any(value and value != "none" for value in asked)


def results(level: str) -> list[str]:
    """List the steps whose slots become part of ``final.zarr``, of a ``dataset`` or a ``rep``."""
    return [name for name, step in STEPS.items() if step.result == level]


def is_light(step: str, backend: str) -> bool:
    """Return whether a step imports so little that it need not wait for a worker to start."""
    row = STEPS.get(step)
    return row is not None and backend in row.light_on


def is_clustering(groupby: str) -> bool:
    """Return whether cells are grouped by a clustering of ours, not by a column of the source."""
    return re.fullmatch(rf"({'|'.join(CLUSTERINGS)})(_[0-9.]+)?", groupby) is not None


def clustering_of(groupby: str) -> str:
    """Return the step that makes a clustering: leiden for leiden_0.6."""
    return groupby.split("_")[0]
