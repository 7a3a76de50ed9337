"""What a reader of the report has to know before reading on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scrna.report.results import Results

#: Share of the cells that the filter may take without a word.
_SHARE_TAKEN = 0.5
#: What a conversion tells of names alone, and changes no result.
_OF_NAMES = re.compile("occur more than once|have no symbol|is named|other features are left out")


@dataclass(frozen=True)
class Finding:
    """Something to know.

    Parameters
    ----------
    kind
        ``warning``: it may change what the results mean; ``note``: it is good to know.
    step
        The step that found it, with its representations: ``neighbors (pca, harmony)``.
    text
        What there is to know, a sentence or two.
    """

    kind: str
    step: str
    text: str


def findings(
    results: Results, *, kind: str, unlabelled: tuple[str, int] | None = None
) -> list[Finding]:
    """Collect what the steps have warned of, and what their results say by themselves.

    Parameters
    ----------
    results
        The results.
    kind
        The dataset's kind, as the config has it.
    unlabelled
        The label column and how many kept cells have no label, where there is one.

    Returns
    -------
    Warnings first.
    """
    found = [*_of_filter(results), *_recorded(results), *_of_integration(results)]
    found += [
        Finding("warning", step, f"The picture {name} is left out, it cannot be drawn: {why}")
        for step, name, why in results.not_drawn
    ]
    found += _notes(results, kind)
    if unlabelled and unlabelled[1]:
        (label_key, n), n_obs = unlabelled, int(results.keep.sum())
        text = (
            f"{n:,} of {n_obs:,} cells ({100 * n / n_obs:.1f} %) have no label in {label_key}; "
            "scores of labels leave them out."
        )
        found.append(Finding("note", "label_key", text))
    return sorted(found, key=lambda finding: finding.kind != "warning")


def _recorded(results: Results) -> Iterator[Finding]:
    """Give what steps have warned of while they ran; once where representations agree."""
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
            f"The filter took {n_obs - n_kept:,} of {n_obs:,} cells ({share:.0f} %): look at its "
            "bounds, which the figures of quality show."
        )
        yield Finding("warning", "filter", text)


def _of_integration(results: Results) -> Iterator[Finding]:
    scores = results.integration
    if scores is None:
        return
    is_bad = scores["mixing"] in ("separate", "partly mixed") or scores["biology"] == "blurred"
    if is_bad or scores["overall"] == "worse":
        yield Finding("warning", "integration", scores["verdict"])


def _notes(results: Results, kind: str) -> Iterator[Finding]:
    if kind == "simulate":
        yield Finding("note", "simulate", "The cells are simulated: no biology is to be learnt.")
    source = results.source
    if source["n_obs_source"] > source["n_obs"]:
        text = (
            f"keep_obs takes {source['n_obs']:,} of the source's {source['n_obs_source']:,} cells."
        )
        yield Finding("note", "convert", text)
    if results.reps == ["pca"]:
        text = (
            "Nothing is integrated, since the dataset names no batch_key: there is one "
            "representation, pca, and batches, should there be any, count as one."
        )
        yield Finding("note", "harmony", text)
    for rep in results.reps:
        if recall := results.records[rep, "neighbors"].get("recall"):
            text = (
                f"Neighbors were searched for approximately ({recall['algorithm']}): "
                f"{100 * recall['recall']:.1f} % of a sample's true neighbors are found."
            )
            yield Finding("note", f"neighbors ({rep})", text)
    if results.has("trajectory", "uns/paga") and not results.parameters("trajectory")["root"]:
        text = "There is no pseudotime, since trajectory.root names no start."
        yield Finding("note", "trajectory", text)
