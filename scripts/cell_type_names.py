"""Name clusters by the marker genes of cell types.

Purpose
    A first name for each cluster, from a table of known marker genes, to be checked by a person.
    It never replaces the names in ``annotations`` (obs ``cell_type``).

Method
    For each marker gene, the z-score of its mean log-normalised expression in a cluster, over all
    clusters; for each cell type, the mean z-score of its positive genes minus half of the mean
    z-score of its negative genes. The best type names the cluster if its score is at least
    ``min_margin`` above that of the next type and above 0; else the cluster is ``unsure``. Symbols
    are compared without regard to case. Genes that the filter removed have z-score 0; genes that
    are not in the data are left out, with a warning.

Settings
    Section ``cell_types``.

Inputs
    ``counts.zarr``, filter, normalize, and leiden or louvain unless ``by`` is a column of obs.

Outputs
    A step file: obs ``cell_type_auto``; uns ``cell_type_names``, with the scores of all types.

    ``cell_type_names.csv``: group, n_cells, cell_type, best, score, second, second_score, margin.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrna.atomic import replacing
from scrna.config.gene_sets import UNSURE
from scrna.data import expression, step_files
from scrna.data.counts import Counts, kept
from scrna.data.gene_lists import find_known, listed
from scrna.data.groups import groups_of
from scrna.data.spreadsheet import escape_table
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.marker_names import best_types, type_scores, z_scores
from scrna.step import step
from scrna.workflow.rule import run

if TYPE_CHECKING:
    import pandas as pd


@step
def cell_type_names(
    counts: Path,
    filtered: Path,
    normalized: Path,
    clusters: Path | list[Path],
    out: Path,
    table: Path,
    *,
    markers: dict[str, dict[str, list[str]]],
    by: str,
    min_margin: float,
) -> None:
    """Name clusters by the cell type whose markers they have.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    clusters
        The step file of the clustering; an empty list where ``by`` is a column of obs.
    out
        The step file: obs cell_type_auto (kept cells), uns cell_type_names: ``table``, and the
        ``scores`` of all ``types`` in all ``groups``.
    table
        CSV, a row a group: n_cells, cell_type, the best and the second type with their scores, and
        the margin.
    markers
        Cell type → ``positive`` and ``negative`` genes, by symbol or id.
    by
        The clustering, or a column of obs.
    min_margin
        The least distance of the best score from the next one, and from 0.

    Raises
    ------
    UserError
        If none of the markers is in the data.
    """
    groups = groups_of(counts, filtered, clusters, by)
    if len(groups.categories) == 1:
        log.warning("%s has one group: there is nothing to compare it with, it is %s", by, UNSURE)
    places, types = _markers_there(counts, markers)
    means = _means(counts, filtered, normalized, groups, places)
    scores = type_scores(z_scores(means), types)
    found = best_types(scores, list(types), min_margin=min_margin, unsure=UNSURE)
    sizes = groups.value_counts()
    found.insert(0, "n_cells", [int(sizes[group]) for group in groups.categories])
    found.index = list(groups.categories)
    found.index.name = "group"
    _write(out, table, found, scores, list(types), groups, {"by": by, "min_margin": min_margin})
    for group, row in found.iterrows():
        log.info(
            "%s %s: %s (%s %.2f, %s %.2f)",
            *(by, group, row["cell_type"], row["best"], row["score"]),
            *(row["second"] or "no other", row["second_score"]),
        )


def _markers_there(
    counts: Path, markers: dict[str, dict[str, list[str]]]
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Find the markers among all genes.

    Returns
    -------
    Places of the genes that some type has, each once, and type → which of these are its positive
    and its negative genes. Types without a positive gene are left out.
    """
    store = Counts(counts)
    symbols, missing, own = store.genes(), {}, {}
    for name, signs in markers.items():
        of_sign = []
        for sign in ("positive", "negative"):
            found, not_there = find_known(signs[sign], symbols, store.gene_ids, ignore_case=True)
            of_sign.append(list(found.values()))
            missing |= dict.fromkeys(not_there)
        if of_sign[0]:
            own[name] = of_sign
    if not own:  # the conversion has refused it, where the workflow runs the steps
        msg = f"cell_types.markers: none of the markers of {listed(list(markers))} is in the data"
        raise UserError(msg)
    if missing:
        log.warning("markers that are not in the data are left out: %s", listed(list(missing)))
    if without := [name for name in markers if name not in own]:
        log.warning("types without a marker in the data are left out: %s", listed(without))
    places = np.unique(np.concatenate([np.array(p + n, dtype=np.int64) for p, n in own.values()]))
    columns = {
        name: tuple(np.searchsorted(places, np.array(part, dtype=np.int64)) for part in parts)
        for name, parts in own.items()
    }
    return places, columns


def _means(
    counts: Path,
    filtered: Path,
    normalized: Path,
    groups: "pd.Categorical",
    places: np.ndarray,
) -> np.ndarray:
    """Average genes over groups; 0 in all of them for a gene that the filter removed."""
    stays = kept(filtered)[1][places]
    means = np.zeros((len(groups.categories), len(places)))
    sums = expression.GroupSums(groups, int(stays.sum()))
    for part in expression.parts(counts, filtered, normalized, places[stays]):
        sums.add(part)
    means[:, stays] = sums.result()[0]
    return means


def _write(
    out: Path,
    table: Path,
    found: "pd.DataFrame",
    scores: np.ndarray,
    types: list[str],
    groups: "pd.Categorical",
    settings: dict,
) -> None:
    """Write the step file and the table beside it."""
    names = [name for name in [*types, UNSURE] if (found["cell_type"] == name).any()]
    of_group = np.array([names.index(name) for name in found["cell_type"]])
    codes = np.where(groups.codes < 0, -1, of_group[groups.codes])

    def write_table() -> Path:
        with replacing(table) as temporary:
            escape_table(found.reset_index()).to_csv(temporary, index=False, float_format="%.4f")
        return table

    slots = {
        "obs/cell_type_auto": step_files.Categories(codes, names),
        "uns/cell_type_names": {
            "table": found,
            "scores": scores,
            "groups": np.array(groups.categories, dtype=object),
            "types": np.array(types, dtype=object),
            "params": settings,
        },
    }
    step_files.write(out, slots, table=write_table)


if __name__ == "__main__":
    run(cell_type_names, snakemake)
