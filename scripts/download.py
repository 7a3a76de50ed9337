"""Download a dataset's file.

Purpose
    Fetch the file that ``datasets.NAME.source`` names, over http or https. The transfer shows its
    rate and the time left, resumes after a break (that of a killed run too), and retries a server
    that is down for a while. A file that is cut off or not the right one never gets its name.

Settings
    ===========  ====================================================================
    ``url``      the address, its credentials cut out and its variables not filled in
    ``version``  digest of the address with its variables filled in, where it has any
    ``dataset``  whose address it is: the credentials are in this process's environment
    ``sha256``   the file's SHA-256 digest; without one, a file named ``.h5ad``,
                 ``.h5`` or ``.gz`` must at least open as that
    ===========  ====================================================================

Output
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
    checked = "its SHA-256 is right" if sha256 else "no SHA-256 to check it by"
    log.info("%s: %s MB, %s", Path(out).name, f"{size / 1e6:,.1f}", checked)


if __name__ == "__main__":
    run(download, snakemake)
