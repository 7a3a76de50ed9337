"""Results that Snakemake has no record of, compared with the present config.

Snakemake keeps the parameters of each result in ``.snakemake/metadata``. Where results were moved
without that folder, or it was lost, it takes every file for current. Step files, counts and
simulated data say themselves how they were made, and are compared with what would be made now. Of
what says nothing, or something else, a record is written that fits nothing: Snakemake then makes
it again, when it is asked for.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scrna.config.converted import another_source
from scrna.damage import DamagedError, whole_summary
from scrna.errors import UserError
from scrna.file_list import check_there
from scrna.provenance import plain
from scrna.workflow.snakemake_internals import Place, Records, open_records
from scrna.workflow.stale import places

#: Rules whose output a person may put in place by hand.
DOWNLOADS = ("download", "download_sample")
_ADVICE = (
    "If these results were moved, bring .snakemake/metadata along from where they were made; "
    "snakemake --touch takes all that is there for results of the present config"
)


def mark_unknown(workflow: Any, datasets: Iterable[str]) -> list[str]:
    """Have Snakemake make again what is not known to follow from the present config.

    Parameters
    ----------
    workflow
        Snakemake's object, its rules read.
    datasets
        The datasets of the run.

    Returns
    -------
    Lines that say what and why.

    Raises
    ------
    UserError
        If that cannot be written down.
    """
    there = places(workflow, datasets)
    if not there:
        return []
    records = open_records(workflow)
    kept, again, is_any_unknown = [], defaultdict(list), False
    for place in there:
        files = [file for file in place.outputs if Path(file).exists()]
        unknown = [file for file in files if records.read(file) is None]
        why = _changed_source(place) or _lost_file(files) or _lost_input(records, files)
        if unknown and not why:
            if place.rule in DOWNLOADS:  # a person may have put the file there
                kept += unknown
                continue
            why = difference(place)
            is_any_unknown |= bool(why)
        # all of them, so no generator: any() would stop at the first
        written = [_mark(records, place, file, why) for file in files if why]
        if any(written):
            again[place.wildcards["dataset"], why].append(place.rule)
    lines = [f"{file}: nothing says where it came from; it is used as it is" for file in kept]
    for (name, why), rules in again.items():
        lines.append(f"{name}: {', '.join(sorted(rules))}: {why}; made again when asked for")
    if again and is_any_unknown:
        lines.append(_ADVICE)
    return lines


def difference(place: Place) -> str | None:
    """Compare what a result says of itself with what would be made now.

    Parameters
    ----------
    place
        The rule and its place.

    Returns
    -------
    What differs; None where nothing does.
    """
    made = _provenance(place)
    if made is None:
        return "no record says how it was made"
    params = place.params
    if not params:  # a Snakemake that does not say them
        return None
    wildcards = SimpleNamespace(**place.wildcards)
    settings = params["settings"](wildcards)
    was = made.get("parameters", {}) | {"backend": made.get("backend")}
    for key, value in settings.items():
        value = json.loads(json.dumps(plain(value)))
        if key != "threads" and was.get(key) != value:
            return f"made with {key} {_short(was.get(key))}, not {_short(value)}"
    if made.get("code") != params.get("code"):
        return "made by other code"
    for name, files in place.inputs().items():
        if other := _other_input(made, name, files):
            return f"made from another {other}"
    return None


def _lost_input(records: Records, files: Iterable[str]) -> str | None:
    """Find a result that files were made from and that is gone, with its record.

    Snakemake removes both where a step fails. A file that a person removed keeps its record.
    """
    for file in files:
        record = records.read(file)
        for name in (record and record.input) or []:
            is_result = name.startswith("results/")
            if is_result and not Path(name).exists() and records.read(name) is None:
                return f"made from {name}, which a later run could not make again"
    return None


def _mark(records: Records, place: Place, file: str, why: str) -> bool:
    """Have Snakemake make a file again; return whether it was not marked so before.

    Its record gets parameters like none. Where this Snakemake writes its records in another way,
    the file is made older than what it was made from, which Snakemake sees as well.
    """
    params = [f"unknown ({why})"]
    record = records.read(file)
    if record is not None and record.params == params:
        return False
    try:
        records.write(place.rule, file, params)
    except (OSError, AttributeError, ImportError, TypeError) as error:
        if isinstance(error, OSError) or not _make_older(place, file):
            msg = (
                f"{file}: {why}, and that cannot be written into .snakemake/metadata ({error}). "
                "Remove the file, or bring the folder .snakemake from where it was made"
            )
            raise UserError(msg) from error
    return True


def _make_older(place: Place, file: str) -> bool:
    """Make a file older than its inputs; return whether it has any, so that this has an effect."""
    inputs = [path for path in map(Path, place.inputs()) if path.exists()]
    if not inputs:
        return False
    time = min(path.stat().st_mtime for path in inputs) - 10
    for path in (Path(file), Path(file, ".snakemake_timestamp")):
        if path.exists():
            os.utime(path, (time, time))
    return True


def _provenance(place: Place) -> dict[str, Any] | None:
    """Read how a result was made; None where it does not say, or cannot be read."""
    import h5py

    from scrna.data import step_files

    for path in map(Path, place.outputs):
        try:
            if place.rule == "simulate":  # an h5ad with an attribute of its own
                with h5py.File(path, "r") as file:
                    return json.loads(file.attrs["provenance"])
            if path.suffix == ".h5":
                return step_files.provenance_of(path)
            if path.suffix == ".json":
                return json.loads(path.read_text())["provenance"]
        except (OSError, KeyError, ValueError):
            return None
    return None


def _other_input(made: dict[str, Any], name: str, files: Any) -> str | None:
    """Name an input that is there and not the one that a result was made from."""
    from scrna.data import step_files

    was = made.get("inputs", {}).get(name)
    paths = [Path(files)] if isinstance(files, str) else [Path(file) for file in files]
    if was is None or not all(path.exists() for path in paths):
        return None
    found = [digest for path in paths if (digest := step_files.digest_of(path))]
    return None if found == ([was] if isinstance(was, str) else was) else name


def _changed_source(place: Place) -> str | None:
    """Find counts whose source was replaced, or whose summary is damaged: nothing says of what."""
    summary = Path(place.outputs[-1])
    files = [str(file) for file in place.inputs()]  # none of a sample that left the sheet
    if place.rule not in ("convert", "convert_sample") or not files or not summary.exists():
        return None
    if (facts := whole_summary(summary)) is None:
        return f"{summary} is damaged"
    return another_source(facts, files)


def _lost_file(outputs: Iterable[str]) -> str | None:
    """Find a picture that is missing from its folder, into which Snakemake does not look."""
    for folder in map(Path, outputs):
        if folder.is_dir() and folder.suffix != ".zarr":
            try:
                check_there(folder)
            except DamagedError as error:
                return error.found
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]} …"
