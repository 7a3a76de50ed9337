"""The table of the samples in a report."""

from typing import Any

from scrna.data import step_files
from scrna.report.results import Results

#: How a threshold was found → what the table says.
_FOUND_BY = {"minimum": "minimum of the scores", "expected_rate": "expected rate"}


def sample_rows(results: Results) -> list[dict[str, Any]]:
    """Describe the samples, where the filter or the search for doublets goes by samples.

    Returns
    -------
    name, n_cells; n_kept and kept (a share), where the filter goes by samples; n_doublets,
    doublets (a share) and found_by, where doublets are looked for. What is not known is None.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, found in results.filter_rows.samples.items():
        n_cells, n_kept = (int(found[which]["cells"]) for which in ("all", "kept"))
        rows[name] = {"n_cells": n_cells, "n_kept": n_kept, "kept": n_kept / n_cells}
    if path := results.files.get(("", "doublets")):
        found = step_files.read(path, "uns/doublets")
        for place, name in enumerate(found["sample"]):
            n_cells, n = int(found["n_cells"][place]), int(found["n_doublets"][place])
            row = rows.setdefault(name, {"n_cells": n_cells})
            how = str(found["found_by"][place])
            row |= {"n_doublets": n, "doublets": n / n_cells, "found_by": _FOUND_BY.get(how, how)}
    columns = ("n_kept", "kept", "n_doublets", "doublets", "found_by")
    return [{"name": name} | dict.fromkeys(columns) | row for name, row in rows.items()]
