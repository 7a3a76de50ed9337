"""A job of a run, without Snakemake's own objects."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What a rule makes at one place.

    Parameters
    ----------
    rule
        The rule's name.
    place
        Its wildcards: dataset, and representation where there is one.
    outputs, inputs
        Paths as Snakemake has them, relative to the working directory.
    log, benchmark
        Its files; None for a rule without.
    """

    rule: str
    place: tuple[str, ...] = ()
    outputs: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    log: Path | None = field(default=None, compare=False)
    benchmark: Path | None = field(default=None, compare=False)

    @property
    def dataset(self) -> str | None:
        """The dataset that it belongs to."""
        return self.place[0] if self.place else None

    @property
    def label(self) -> str:
        """The rule and what it was for: ``umap pbmc3k/pca``."""
        return f"{self.rule} {place_in_words(self.place)}".strip()


def place_in_words(wildcards: Iterable[str]) -> str:
    """Join the values of wildcards: ``pbmc3k/pca``; one may be empty, or begin with ``_``."""
    return "/".join(filter(None, (str(value).lstrip("_") for value in wildcards)))
