"""The sample sheet: a table of samples, each with its source and what is known about it.

``datasets.NAME.samples`` names a ``.csv`` or ``.tsv`` file with the columns ``sample`` and
``source``, optionally ``sha256``, and any others, which become columns of obs. A dataset that has
been read holds its sheet as ``sheet``: plain values, as JSON has them.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scrna.config.datasets import QC_COLUMNS, Source, locate
from scrna.config.schema import nearest
from scrna.config.source_address import check_variables, without_credentials
from scrna.errors import UserError

#: The columns with a meaning of their own; all others are metadata.
REQUIRED = ("sample", "source")
OPTIONAL = ("sha256",)
#: Columns of obs that steps write: a sheet cannot have them.
OWNED = re.compile(
    r"_index|index|keep|filter_reason|size_factor|dpt_pseudotime|(leiden|louvain)(_.*)?"
    r"|doublet_score|predicted_doublet|S_score|G2M_score|phase|cell_type_auto"
    r"|pct_counts_in_top_\d+_genes"
)
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
_WORDS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_MISSING = {"", "na", "n/a", "nan", "null"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_REPEATS = re.compile(r"(.+)\1{19}$")  # which Snakemake takes for an endless recursion
_INTEGER, _NUMBER = (
    re.compile(r"[+-]?(0|[1-9]\d{0,14})"),
    re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"),
)
_BOOLEAN = {"true": True, "false": False}


class Sample(NamedTuple):
    """A row of a sheet."""

    row: int
    """The number of its line in the file."""
    name: str
    source: str
    """As it is written there; a login or token in it included."""
    sha256: str | None


class Sheet(NamedTuple):
    """A sample sheet."""

    path: Path
    samples: list[Sample]
    columns: dict[str, list[Any]]
    """The metadata: column → a value a sample, None where there is none. All values of a column
    are of one type: int, float, bool or str."""

    def plain(self) -> dict[str, Any]:
        """Return what results depend on: the samples in their order, and the metadata by name."""
        names = [sample.name for sample in self.samples]
        return {
            "samples": names,
            "columns": {
                column: dict(zip(names, self.columns[column], strict=True))
                for column in sorted(self.columns)
            },
        }


# ------------------------------------------------------------------------------- for the Snakefile


def read_sheets(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Sheet]:
    """Read the sheets of datasets.

    Parameters
    ----------
    datasets
        Datasets of a `scrna.config.settings.complete` config.

    Returns
    -------
    Dataset → its sheet, for those that have one.

    Raises
    ------
    UserError
        As `read_sheet`.
    """
    return {
        name: read_sheet(sheet_path(name, dataset["samples"]), f"datasets.{name}.samples")
        for name, dataset in datasets.items()
        if dataset.get("samples")
    }


def with_sheets(
    datasets: Mapping[str, Mapping[str, Any]], sheets: Mapping[str, Sheet]
) -> dict[str, dict[str, Any]]:
    """Put the content of the sheets into the datasets, as ``sheet``.

    A sheet of one sample leaves nothing to integrate: the default ``batch_key`` is none there.
    """
    found = {name: dict(dataset) for name, dataset in datasets.items()}
    for name, sheet in sheets.items():
        found[name]["sheet"] = sheet.plain()
        if len(sheet.samples) == 1 and found[name]["batch_key"] == "sample":
            found[name]["batch_key"] = None
    return found


def addresses(sheets: Mapping[str, Sheet]) -> dict[str, dict[str, str]]:
    """List the sources of all samples by `identifier`, as `set_credentials_aside` takes them."""
    return {
        identifier(name, sample.name): {"source": sample.source}
        for name, sheet in sheets.items()
        for sample in sheet.samples
    }


def identifier(dataset: str, sample: str) -> str:
    """Return the name under which the address of a sample is kept: ``dataset/sample``."""
    return f"{dataset}/{sample}"


def sample_sources(sheets: Mapping[str, Sheet]) -> dict[str, dict[str, Source]]:
    """Find the files of every sample.

    Parameters
    ----------
    sheets
        Of `read_sheets`.

    Returns
    -------
    Dataset → sample → its source; what is downloaded lies in ``resources/DATASET/``.

    Raises
    ------
    UserError
        With every row whose source is not there or is none, and with rows of the same source.
    """
    return {name: _sources(name, sheet) for name, sheet in sheets.items()}


def together(of_samples: Mapping[str, Source]) -> Source:
    """Make one source of those of a dataset's samples: all their files."""
    return Source(None, [file for name in sorted(of_samples) for file in of_samples[name].files])


def _sources(dataset: str, sheet: Sheet) -> dict[str, Source]:
    found, problems, seen = {}, [], {}
    for sample in sheet.samples:
        where = f"{sheet.path}, line {sample.row}, sample {sample.name}: source"
        who = identifier(dataset, sample.name)
        try:
            source = locate(
                where, who, sample.source, target=f"resources/{who}", beside=sheet.path.parent
            )
        except UserError as error:
            problems.append(str(error))
            continue
        found[sample.name] = source
        if sample.sha256 and len(source.files) > 1:
            problems.append(
                f"{sheet.path}, line {sample.row}, sample {sample.name}: sha256 is the digest of "
                "one file, and the source is a folder of three; leave it empty"
            )
        same = source.url or str(sorted(map(os.path.realpath, source.files)))
        if source.version:
            same += source.version
        if (other := seen.setdefault(same, sample.name)) != sample.name:
            problems.append(
                f"{sheet.path}, line {sample.row}: sample {sample.name} has the same source as "
                f"sample {other} ({without_credentials(sample.source)}); give it its own, or "
                "remove the row"
            )
    if problems:
        raise UserError("\n".join(problems))
    return found


# ------------------------------------------------------------------------------------- the reading


def sheet_path(dataset: str, given: str) -> Path:
    """Fill in the variables in the path of a sheet, and refuse one that is not there."""
    key = f"datasets.{dataset}.samples"
    is_literal = os.path.exists(given)  # its name may have a $ or ~
    path = Path(given if is_literal else check_variables(key, dataset, given))
    if not path.exists():
        where = "" if path.is_absolute() else f" in {os.getcwd()}"
        msg = f"{key} is {given!r}, but there is no such file{where}"
        raise UserError(msg)
    if not path.is_file():
        msg = f"{key} is {given!r}, which is no file; name a table of samples, .csv or .tsv"
        raise UserError(msg)
    if path.suffix.lower() not in DELIMITERS:
        msg = (
            f"{key} is {given!r}; a sample sheet is a table of text that ends in .csv (with "
            "commas) or .tsv (with tabs): save it as such"
        )
        raise UserError(msg)
    return path


def read_sheet(path: Path, key: str = "samples") -> Sheet:
    """Read a sample sheet.

    Parameters
    ----------
    path
        A ``.csv`` file with commas, or a ``.tsv`` file with tabs; the first line names the columns.
    key
        The config key, for messages.

    Returns
    -------
    The sheet, its values typed: a column of whole numbers is int, of numbers float, of true and
    false bool, any other str. An empty field, NA, N/A, NaN or null is a missing value.

    Raises
    ------
    UserError
        With every line that is wrong, and what to do.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    header, rows = _lines(path, delimiter, key)
    problems = [*_header_problems(header, path, delimiter)]
    if problems:
        raise UserError("\n".join(problems))
    if not rows:
        msg = f"{path} ({key}) has no samples: write a line for each below the names of the columns"
        raise UserError(msg)
    records = []
    for line, fields in rows:
        if len(fields) != len(header):
            problems.append(
                f"{path}, line {line}: {len(fields)} fields, but {len(header)} columns are named "
                f"({', '.join(header)}); a field with a {_WORDS[delimiter][:-1]} in it has to be "
                "put in double quotes"
            )
        else:
            records.append((line, dict(zip(header, fields, strict=True))))
    problems += _row_problems(records, path)
    if problems:
        raise UserError("\n".join(problems))
    samples = [
        Sample(line, row["sample"], row["source"], row.get("sha256", "").lower() or None)
        for line, row in records
    ]
    columns = {}
    for column in header:
        if column not in REQUIRED + OPTIONAL:
            values = typed([row[column] for _, row in records])
            if all(value is None for value in values):
                msg = (
                    f"{path}: column {column} has no value in any line; fill it in, or remove the "
                    "column"
                )
                raise UserError(msg)
            columns[column] = values
    return Sheet(path, samples, columns)


def typed(texts: list[str]) -> list[Any]:
    """Give the values of a column the type that all of them have; None is a missing one."""
    given = [text for text in texts if text.casefold() not in _MISSING]
    if all(map(_INTEGER.fullmatch, given)):
        convert = int
    elif all(_NUMBER.fullmatch(text) and not _is_code(text) for text in given):
        convert = float
    elif all(text.casefold() in _BOOLEAN for text in given):

        def convert(text: str) -> bool:
            return _BOOLEAN[text.casefold()]
    else:
        convert = str
    return [None if text.casefold() in _MISSING else convert(text) for text in texts]


def _is_code(text: str) -> bool:
    """Return whether digits are a name, not a number: 007, or too many for one."""
    return re.fullmatch(r"[+-]?(0\d+|\d{16,})", text) is not None


def _lines(path: Path, delimiter: str, key: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Split a sheet into the names of its columns and its rows, each with its line number."""
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for fields in reader:
                fields = [field.strip() for field in fields]
                if any(fields):
                    found.append((reader.line_num, fields))
    except UnicodeDecodeError as error:
        msg = f"{path} ({key}) is no text in UTF-8 ({error}): save it as CSV in UTF-8"
        raise UserError(msg) from error
    except csv.Error as error:
        msg = f"{path}, line {reader.line_num} ({key}) cannot be read as CSV: {error}"
        raise UserError(msg) from error
    if not found:
        msg = f"{path} ({key}) is empty; its first line names the columns: sample, source, …"
        raise UserError(msg)
    return found[0][1], found[1:]


def _header_problems(header: list[str], path: Path, delimiter: str) -> Iterator[str]:
    if len(header) == 1:
        for other, word in _WORDS.items():
            if other != delimiter and other in header[0]:
                yield (
                    f"{path} has {word} between its columns; a {path.suffix} file has "
                    f"{_WORDS[delimiter]}. Save it with these"
                    + (", or name it .tsv" if other == "\t" else "")
                    + (", or name it .csv" if other == "," else "")
                )
                return
    if "" in header:
        yield f"{path}, line 1: column {header.index('') + 1} has no name; name or remove it"
    for column in sorted({name for name in header if name and header.count(name) > 1}):
        yield f"{path}, line 1: there are two columns {column!r}; rename or remove one"
    for column in REQUIRED:
        if column not in header:
            yield f"{path}, line 1: there is no column {column!r}; {nearest(column, header)}"
    for column in header:
        if column in REQUIRED + OPTIONAL or not column:
            continue
        if OWNED.fullmatch(column) or QC_COLUMNS.fullmatch(column):
            yield (
                f"{path}, line 1: the workflow itself writes a column {column!r}; give the "
                f"sheet's another name, e.g. {column.strip('_')}_sheet"
            )
        elif "/" in column or not column.isprintable():
            yield f"{path}, line 1: column {column!r}: a name has no slash and no special character"
        elif re.sub("[^a-z0-9]", "", column.casefold()) in ("sha256", "sha256sum"):
            yield f"{path}, line 1: column {column!r}: the digest of a source is named sha256"


def _row_problems(records: list[tuple[int, dict[str, str]]], path: Path) -> Iterator[str]:
    first: dict[str, int] = {}
    for line, row in records:
        name, where = row["sample"], f"{path}, line {line}"
        if not name:
            yield f"{where}: the sample has no name"
        elif not _NAME.fullmatch(name) or _REPEATS.search(name):
            yield (
                f"{where}: sample {name[:60]!r}: a name has letters, digits, _, . and -, begins "
                "with a letter or digit, and has at most 100 of them; rename it"
            )
        elif (before := first.setdefault(name, line)) != line:
            yield (
                f"{where}: sample {name} is in line {before} too; each sample has a line and a "
                "name of its own"
            )
        if not row["source"]:
            yield f"{where}: sample {name} has no source; name its file, folder or URL"
        digest = row.get("sha256", "")
        if digest and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            yield (
                f"{where}: sha256 of sample {name} is {digest[:70]!r}; a SHA-256 has 64 digits "
                "from 0 to 9 and a to f (sha256sum FILE prints it)"
            )
