"""A job of a run, without Snakemake's own objects."""

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
        return f"{self.rule} {'/'.join(self.place)}".strip()
