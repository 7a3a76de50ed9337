"""Counts that are converted: what their summary says, and whether it is of the present source.

Snakemake compares a source's time with that of the results: it does not see a source that was
replaced by an older file. ``counts.json`` keeps what each file was like when it was read.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from scrna.damage import whole_summary

#: Keys of a dataset that say how its source is read.
READING = ["kind", "matrix", "gene_symbols", "keep_obs", "sha256"]
#: Bytes at a file's beginning and at its end that are compared. A format's header is in the first,
#: the checksum of a gzip file in the last.
_END = 2**18


def as_read(file: Path) -> dict[str, Any]:
    """Return what ``counts.json`` keeps of a source's file, to know it again: an entry of source.

    Parameters
    ----------
    file
        A file of the source.

    Returns
    -------
    path; bytes; mtime_ns, the time of its last change; ends, a digest of its beginning and end.
    """
    about = file.stat()
    return {
        "path": str(file),
        "bytes": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "ends": _ends(file, about.st_size, about.st_ctime_ns),
    }


def another_source(facts: Mapping[str, Any], files: Iterable[str | Path]) -> str | None:
    """Compare the files that counts were converted from with those of the source.

    Parameters
    ----------
    facts
        What ``counts.json`` says.
    files
        The files of the source; those that are not there are left out.

    Returns
    -------
    What differs; None where nothing does.
    """
    was = _by_name({Path(entry["path"]): entry for entry in facts["source"]})
    files = _by_name({Path(file): Path(file) for file in files})
    if files.keys() != was.keys():
        return f"made from {', '.join(was)}, not from {', '.join(files)}"
    begun = facts.get("provenance", {}).get("started")
    for name, file in files.items():
        if file.is_file() and (why := _difference(was[name], file, begun)):
            return f"{name} {why}"
    return None


def _by_name(files: Mapping[Path, Any]) -> dict[str, Any]:
    """Key files by their names, so that they may move; by their paths where samples share names."""
    names = [file.name for file in files]
    keys = names if len(set(names)) == len(names) else list(map(str, files))
    return dict(zip(keys, files.values(), strict=True))


def _difference(was: Mapping[str, Any], file: Path, begun: str | None) -> str | None:
    """Say in what a file is not the one that was read; None where it is."""
    now = file.stat()
    if now.st_size != was.get("bytes", now.st_size):
        return f"had {was['bytes']:,} bytes and has {now.st_size:,}"
    is_same_time = now.st_mtime_ns == was.get("mtime_ns", now.st_mtime_ns)
    # A later time is Snakemake's to see. `snakemake --touch` gives one to downloads and results.
    if not is_same_time and begun and now.st_mtime < datetime.fromisoformat(begun).timestamp():
        return "is another file of the same size: its time of change is another"
    if was.get("ends", "") not in ("", _ends(file, now.st_size, now.st_ctime_ns)):
        return "is another file of the same size"
    return None


@lru_cache(maxsize=4096)
def _ends(file: Path, n_bytes: int, ctime_ns: int) -> str:
    """Return the SHA-256 of a file's beginning and end, which are read once while it stays."""
    with file.open("rb") as opened:
        sha = hashlib.sha256(opened.read(_END))
        opened.seek(max(0, n_bytes - _END))
        sha.update(opened.read(_END))
    return sha.hexdigest()


def current_summary(
    summary: Path,
    files: Iterable[str],
    dataset: Mapping[str, Any],
    simulate: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Read ``counts.json``, if the counts follow from the present source and settings.

    Parameters
    ----------
    summary
        The file.
    files
        The source's.
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    simulate
        What simulated data are made from; None for others.

    Returns
    -------
    What it says; None where the counts are not there or will be converted again.
    """
    facts = whole_summary(summary)
    if facts is None or not summary.with_suffix(".zarr").exists() or another_source(facts, files):
        return None
    made = facts.get("provenance", {})
    if facts.get("sheet") != dataset.get("sheet"):
        return None
    read_as = facts.get("reading") or made.get("parameters", {})  # of a dataset of samples
    if any(key in read_as and read_as[key] != dataset[key] for key in READING):
        return None
    if simulate and (made.get("named") or {}).get("simulate") != simulate:
        return None
    newest = summary.stat().st_mtime
    there = [Path(file) for file in files if Path(file).exists()]
    return facts if all(file.stat().st_mtime <= newest for file in there) else None
