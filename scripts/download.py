"""Download the file of a dataset.

Purpose
    Fetch the file that ``datasets.NAME.source`` names. A file that is cut off or is the wrong one
    never gets its name.

Method
    http or https. The transfer shows its rate and the time left, resumes after a break, also that
    of a killed run, and retries if a server is down for a while.

Settings
    ===========  ======================================================================
    ``url``      the address, without credentials, variables not expanded
    ``version``  digest of the address with its variables expanded, if it has any
    ``dataset``  name by which the credentials are found in the environment
    ``sha256``   SHA-256 digest of the file; without one, a file named ``.h5ad``, ``.h5``
                 or ``.gz`` must at least open as such
    ===========  ======================================================================

Inputs
    None.

Outputs
    ``out``: the file as the server has it.
"""

from pathlib import Path

from scrna.config.source_address import full_address, without_credentials
from scrna.ingest.download import fetch
from scrna.log import log
from scrna.step import step
from scrna.workflow.rule import run


@step
def download(
    out: Path,
    *,
    url: str,
    dataset: str = "",
    version: str | None = None,
    sha256: str | None = None,
) -> None:
    """Download a file, checked.

    Parameters
    ----------
    out
        Where it goes.
    url
        Where it lies, http or https, without credentials.
    dataset
        Its name, by which the rest of its address is found.
    version
        Digest of the whole address: another one has the file fetched anew.
    sha256
        Its digest; None checks that it opens as what its suffix says.

    Raises
    ------
    UserError
        If it cannot be had, or is not the right file.
    """
    size = fetch(
        full_address(dataset, url), Path(out), shown=without_credentials(url), sha256=sha256
    )
    checked = "SHA-256 is correct" if sha256 else "not checked, as no sha256 is given"
    log.info("%s: %s MB, %s", Path(out).name, f"{size / 1e6:,.1f}", checked)


if __name__ == "__main__":
    run(download, snakemake)
