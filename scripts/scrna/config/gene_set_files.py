"""Files of genes: sets as .gmt or .csv, and markers of cell types as .csv."""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from scrna.errors import UserError

#: What ships with the workflow, in the repository's folder ``config``.
SHIPPED = Path(__file__).parents[3] / "config"
#: What a set may be called: its name is that of a column of obs.
_NAME = re.compile(r"[^\W_][\w .,:;+()&'-]*")
_LONGEST = 100
_SIGNS = {"+": "positive", "-": "negative", "": "positive"}


def check_name(name: str, what: str) -> None:
    """Refuse a name of a set that cannot be a column of obs.

    Parameters
    ----------
    name
        The name.
    what
        What it is and where it stands, for the message.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        msg = (
            f"{what} is named {name!r}: a name begins with a letter or digit, has letters, digits, "
            f"spaces and _ . , : ; + ( ) & ' - and at most {_LONGEST} characters"
        )
        raise UserError(msg)


def read_sets(given: str, key: str) -> dict[str, list[str]]:
    """Read the gene sets of a file.

    Parameters
    ----------
    given
        The path, as the config has it: ``.gmt`` (a line a set: name, description, genes, between
        tabs) or ``.csv`` (columns ``set`` and ``gene``).
    key
        The config key that names the file, for messages.

    Returns
    -------
    Set → its genes, each once.

    Raises
    ------
    UserError
        If the file is not there or not as described, with the line.
    """
    path = _existing(given, key)
    if path.suffix not in (".gmt", ".csv"):
        msg = f"{key} is {given!r}; a file of gene sets ends in .gmt or .csv"
        raise UserError(msg)
    found = _read_sets(path, key, *_state(path))
    return {name: list(genes) for name, genes in found.items()}


def read_markers(given: str, key: str) -> dict[str, dict[str, list[str]]]:
    """Read the marker genes of cell types.

    Parameters
    ----------
    given
        The name of a file that ships in ``config/markers`` (``pbmc``), or the path of a CSV file
        with the columns ``cell_type`` and ``gene``, and maybe ``sign`` (``+``, which is the
        default, for a gene that the type has; ``-`` for one that it does not have).
    key
        As in `read_sets`.

    Returns
    -------
    Cell type → ``positive`` and ``negative``: genes, each once.

    Raises
    ------
    UserError
        If the file is not there or not as described, with the line.
    """
    shipped = {path.stem: path for path in (SHIPPED / "markers").glob("*.csv")}
    path = shipped[given] if given in shipped else _existing(given, key, known=sorted(shipped))
    if path.suffix != ".csv":
        msg = f"{key} is {given!r}; a file of markers ends in .csv"
        raise UserError(msg)
    found = _read_markers(path, key, *_state(path))
    return {name: {sign: list(genes) for sign, genes in own.items()} for name, own in found.items()}


def read_cell_cycle(species: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read the genes of the phases S and G2M, which ship in ``config/gene_sets``.

    Parameters
    ----------
    species
        ``human`` or ``mouse``.

    Returns
    -------
    sets
        ``S`` and ``G2M`` → symbols.
    formerly
        Symbol → the one that it had before, for data with older names.
    """
    path = SHIPPED / f"gene_sets/cell_cycle_{species}.csv"
    rows = [row for _, row in _rows(path, "scores.cell_cycle", ("set", "gene", "formerly"))]
    sets = {phase: [row["gene"] for row in rows if row["set"] == phase] for phase in ("S", "G2M")}
    return sets, {row["gene"]: row["formerly"] for row in rows if row["formerly"]}


def _existing(given: str, key: str, known: list[str] | None = None) -> Path:
    """Return the path of a file that is there."""
    path = Path(os.path.expandvars(os.path.expanduser(given)))
    if not path.is_file():
        or_known = f"; there are also {', '.join(known)}, which ship with it" if known else ""
        where = "" if path.is_absolute() else f" in {os.getcwd()}"
        msg = f"{key} is {given!r}, but there is no such file{where}{or_known}"
        raise UserError(msg)
    return path


def _state(path: Path) -> tuple[int, int]:
    """Return what changes where a file changes."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _read_sets(path: Path, key: str, *_state: int) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    if path.suffix == ".csv":
        for line, row in _rows(path, key, ("set", "gene")):
            check_name(row["set"], f"{key}: the set in line {line} of {path}")
            found.setdefault(row["set"], {})[_gene(row, path, line, key)] = None
    else:
        for line, text in enumerate(_text(path, key).splitlines(), 1):
            if not text.strip():
                continue
            name, *rest = (cell.strip() for cell in text.split("\t"))
            genes = [gene for gene in rest[1:] if gene]
            if not genes:
                msg = (
                    f"{key}: line {line} of {path} has no genes; a line of a .gmt file is a name, "
                    "a description and genes, with tabs between them"
                )
                raise UserError(msg)
            check_name(name, f"{key}: the set in line {line} of {path}")
            if name in found:
                raise UserError(f"{key}: {path} has the set {name!r} again in line {line}")
            found[name] = dict.fromkeys(genes)
    if not found:
        raise UserError(f"{key}: {path} has no gene sets")
    return {name: tuple(genes) for name, genes in found.items()}


@lru_cache(maxsize=16)
def _read_markers(path: Path, key: str, *_state: int) -> Mapping[str, Mapping[str, tuple]]:
    found: dict[str, dict[str, str]] = {}
    for line, row in _rows(path, key, ("cell_type", "gene"), optional=("sign",)):
        name, gene = row["cell_type"], _gene(row, path, line, key)
        if not name or not name.isprintable() or len(name) > _LONGEST:
            msg = (
                f"{key}: the cell type in line {line} of {path} is {name!r}; expected text of at "
                f"most {_LONGEST} characters"
            )
            raise UserError(msg)
        if (sign := _SIGNS.get(row["sign"])) is None:
            msg = f"{key}: the sign in line {line} of {path} is {row['sign']!r}; expected + or -"
            raise UserError(msg)
        own = found.setdefault(name, {})
        if own.setdefault(gene.casefold(), (gene, sign))[1] != sign:
            msg = f"{key}: {path} has {gene} with both signs for {name} (line {line})"
            raise UserError(msg)
    if not found:
        raise UserError(f"{key}: {path} has no cell types")
    signed = {
        name: {
            wanted: tuple(gene for gene, sign in own.values() if sign == wanted)
            for wanted in ("positive", "negative")
        }
        for name, own in found.items()
    }
    if without := [name for name, own in signed.items() if not own["positive"]]:
        msg = f"{key}: {path} has no gene with the sign + for {', '.join(without)}"
        raise UserError(msg)
    return signed


def _gene(row: Mapping[str, str], path: Path, line: int, key: str) -> str:
    if not row["gene"]:
        raise UserError(f"{key}: line {line} of {path} names no gene")
    return row["gene"]


def _rows(
    path: Path, key: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with the numbers of their lines."""
    reader = csv.reader(_text(path, key).splitlines())
    columns = [name.strip() for name in next(reader, [])]
    if missing := [name for name in required if name not in columns]:
        msg = (
            f"{key}: {path} has no column {' and '.join(missing)}; its first line is "
            f"{','.join(columns)!r}, expected {','.join(required + optional)} with commas"
        )
        raise UserError(msg)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            msg = (
                f"{key}: line {reader.line_num} of {path} has {len(cells)} values, its first line "
                f"has {len(columns)} columns"
            )
            raise UserError(msg)
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        yield reader.line_num, {name: row.get(name, "") for name in (*required, *optional)}


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read as text (UTF-8): {error}") from None
