"""A run of Snakemake's: what happens before its first job and after its last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scrna.data.counts import sizes_of
from scrna.resources.admission import check_methods, configure


def before_run(config: Mapping[str, Any], backend: str, results: Path | str) -> list[str]:
    """Choose for every dataset of a run whose counts are converted.

    Parameters
    ----------
    config
        A `scrna.config.settings.complete` config.
    backend
        ``gpu`` or ``cpu``.
    results
        The folder with a folder for each dataset.

    Returns
    -------
    Lines for the terminal.

    Raises
    ------
    UserError
        As `plan_steps` does.
    """
    configure(**config["memory"], limit_gb=config["gpu"]["limit_gb"])
    lines = []
    for name in config["run"]:
        if sizes := sizes_of(Path(results, name)):
            choices = check_methods(name, config["datasets"][name], sizes, backend)
            lines += [f"{name}: {choice}" for choice in choices]
    return lines
