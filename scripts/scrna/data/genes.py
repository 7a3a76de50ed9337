"""Find genes by symbol or id."""

from collections.abc import Callable, Iterable, Sequence

from scrna.errors import UserError, did_you_mean

#: Genes that a message names.
_NAMED = 3


def find_genes(
    genes: Iterable[str], symbols: Sequence[str], ids: Callable[[], Sequence[str]], *, key: str
) -> list[int]:
    """Find genes by their symbols or ids.

    Parameters
    ----------
    genes
        Symbols or ids; a symbol goes first.
    symbols
        The symbols of all genes, unique.
    ids
        Called for the ids of all genes, where one is no symbol; may return none.
    key
        The config key that names the genes, for messages.

    Returns
    -------
    The place of each.

    Raises
    ------
    UserError
        If a gene is not there, with those of like names.
    """
    known = {name: place for place, name in enumerate(symbols)}
    by_id: dict[str, int] | None = None
    found = []
    for gene in genes:
        place = known.get(gene)
        if place is None:
            if by_id is None:
                by_id = {name: number for number, name in enumerate(ids())}
            place = by_id.get(gene)
        if place is None:
            msg = f"{key}: there is no gene {gene!r}; {_nearest(gene, known, by_id)}"
            raise UserError(msg)
        found.append(place)
    return found


def _nearest(gene: str, symbols: dict[str, int], ids: dict[str, int]) -> str:
    """Suggest genes with names like one that does not exist."""
    like_these = f"genes are named like {', '.join(list(symbols)[:_NAMED])}"
    return did_you_mean(gene, [*ids, *symbols], _NAMED) or like_these
