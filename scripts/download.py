"""Download a dataset's file.

Purpose
    Fetch the file that ``datasets.NAME.url`` names, over http or https. The transfer shows its
    rate and the time left, resumes after a break (that of a killed run too), and retries a server
    that is down for a while. A file that is cut off or not the right one never gets its name.

Settings
    ===========  ====================================================================
    ``url``      the address
    ``sha256``   the file's SHA-256 digest; without one, a file named ``.h5ad``,
                 ``.h5`` or ``.gz`` must at least open as that
    ===========  ====================================================================

Output
    ``out``: the file as the server has it.
"""

from pathlib import Path

from scrna.fetch import fetch
from scrna.log import log
from scrna.step import run, step


@step
def download(out: Path, *, url: str, sha256: str | None = None) -> None:
    """Download a file, checked.

    Parameters
    ----------
    out
        Where it goes.
    url
        Where it lies, http or https.
    sha256
        Its digest; None checks that it opens as what its suffix says.

    Raises
    ------
    UserError
        If it cannot be had, or is not the right file.
    """
    size = fetch(url, Path(out), sha256=sha256)
    checked = "its SHA-256 is right" if sha256 else "no SHA-256 to check it by"
    log.info("%s: %s MB, %s", Path(out).name, f"{size / 1e6:,.1f}", checked)


if __name__ == "__main__":
    run(download, snakemake)
