"""Escape text in CSV files that a spreadsheet would read as a formula.

A gene, cluster or sample named ``=1+1`` is a formula to Excel and LibreOffice, and may start a
program. Such a text gets an apostrophe in front, as OWASP advises against CSV injection; so does
one that has apostrophes before such a start, and so the apostrophe can be taken away again.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def escaped(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula; numbers stay."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unescaped(text: str) -> str:
    """Return the text that `escaped` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def escape_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """Escape the columns of text and of categories; the others are left as they are."""
    import pandas as pd

    columns = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            texts = [escaped(str(value)) for value in column.cat.categories]
            column = column.cat.rename_categories(texts)
        elif not pd.api.types.is_numeric_dtype(column.dtype):
            column = column.map(escaped, na_action="ignore")
        columns[escaped(str(name))] = column
    return pd.DataFrame(columns)
