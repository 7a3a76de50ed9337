"""Warnings and notes at the top of the report."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scrna.data import step_files
from scrna.report.results import Results

#: Share of the cells that the filter may remove without a warning.
_SHARE_TAKEN = 0.5
#: Fraction of doublets above which a cluster is named in a warning.
_DOUBLETS = 0.5
#: Warnings of the conversion about names only, which change no result.
_OF_NAMES = re.compile(
    "occur more than once|have no symbol|is named|other features are left out"
    "|joined on their Ensembl ids|Cells are named|go by another symbol|^Columns of (obs|var)"
)


@dataclass(frozen=True)
class Finding:
    """A warning or a note.

    Parameters
    ----------
    kind
        ``warning``: it may change what the results mean; ``note``: background.
    step
        The step that found it, with its representations: ``neighbors (pca, harmony)``.
    text
        A sentence or two.
    """

    kind: str
    step: str
    text: str


def findings(
    results: Results, *, kind: str, unlabelled: tuple[str, int] | None = None
) -> list[Finding]:
    """Collect the warnings of the steps, and what their results show.

    Parameters
    ----------
    results
        The results.
    kind
        The kind of the dataset in the config.
    unlabelled
        The label column and how many kept cells have no label, where there is one.

    Returns
    -------
    Warnings first.
    """
    found = [*_of_filter(results), *_recorded(results), *_of_doublets(results)]
    found += _of_integration(results)
    found += [
        Finding("warning", step, f"The figure {name} could not be drawn and is left out: {why}")
        for step, name, why in results.not_drawn
    ]
    found += _notes(results, kind)
    if unlabelled and unlabelled[1]:
        (label_key, n), n_obs = unlabelled, int(results.keep.sum())
        text = (
            f"{n:,} of {n_obs:,} cells ({100 * n / n_obs:.1f} %) have no label in {label_key}; "
            "the label scores of the integration leave them out."
        )
        found.append(Finding("note", "label_key", text))
    return sorted(found, key=lambda finding: finding.kind != "warning")


def _recorded(results: Results) -> Iterator[Finding]:
    """Yield the warnings of the steps; one entry where both representations have the same."""
    said: dict[tuple[str, str], list[str]] = {}
    for (rep, step), record in results.records.items():
        warned = list(record.get("warnings", []))
        if step == "convert":
            warned = list(dict.fromkeys([*results.source.get("warnings", []), *warned]))
        for text in warned:
            said.setdefault((step, text), []).extend([rep] if rep else [])
    for (step, text), reps in said.items():
        is_own = reps == [step]  # pca/pca.h5
        of = f" ({', '.join(reps)})" if reps and not is_own else ""
        is_harmless = step == "convert" and _OF_NAMES.search(text)
        yield Finding("note" if is_harmless else "warning", step + of, text)


def _of_filter(results: Results) -> Iterator[Finding]:
    n_obs, n_kept = len(results.keep), int(results.keep.sum())
    if n_kept < (1 - _SHARE_TAKEN) * n_obs:
        share = 100 * (1 - n_kept / n_obs)
        text = (
            f"The filter removed {n_obs - n_kept:,} of {n_obs:,} cells ({share:.0f} %). Check its "
            "bounds in the figures under Quality control."
        )
        yield Finding("warning", "filter", text)


def _of_doublets(results: Results) -> Iterator[Finding]:
    """Name the clusters that are mostly doublets."""
    if results.doublets is None:
        return
    for rep in results.reps:
        clusters = step_files.read(results.files[rep, "leiden"], "obs/leiden")
        shares = {name: results.doublets[clusters == name].mean() for name in clusters.categories}
        if named := [f"{name} ({100 * s:.0f} %)" for name, s in shares.items() if s > _DOUBLETS]:
            text = (
                "Over half of the cells of these Leiden clusters are predicted doublets, so that "
                f"they may be no cell type: {', '.join(named)}. filter.remove_doublets takes "
                "doublets out."
            )
            yield Finding("warning", f"doublets ({rep})", text)


def _of_integration(results: Results) -> Iterator[Finding]:
    scores = results.integration
    if scores is None:
        return
    is_bad = scores["mixing"] in ("separate", "partly mixed") or scores["biology"] == "blurred"
    if is_bad or scores["overall"] == "worse":
        yield Finding("warning", "integration", scores["verdict"])


def _notes(results: Results, kind: str) -> Iterator[Finding]:
    if kind == "simulate":
        text = "The counts are simulated, so the results have no biological meaning."
        yield Finding("note", "simulate", text)
    source = results.source
    if source["n_obs_source"] > source["n_obs"]:
        n, n_source = source["n_obs"], source["n_obs_source"]
        text = f"keep_obs selects {n:,} of {n_source:,} cells of the source."
        yield Finding("note", "convert", text)
    if results.reps == ["pca"]:
        text = (
            "There is no integration, because the dataset has no batch_key. Batches, if there "
            "are any, are not corrected for."
        )
        yield Finding("note", "harmony", text)
    for rep in results.reps:
        if recall := results.records[rep, "neighbors"].get("recall"):
            text = (
                f"The neighbor search was approximate ({recall['algorithm']}): it found "
                f"{100 * recall['recall']:.1f} % of the true neighbors of a sample of cells."
            )
            yield Finding("note", f"neighbors ({rep})", text)
    if results.has("trajectory", "uns/paga") and not results.parameters("trajectory")["root"]:
        text = "There is no pseudotime, because trajectory.root is not set."
        yield Finding("note", "trajectory", text)
