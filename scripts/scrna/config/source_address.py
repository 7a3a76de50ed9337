"""Addresses of sources: allowed schemes, and how credentials in them are kept secret.

A login or token in an address is needed only by the process that downloads. Everywhere else, in the
config as used, in params, logs, reports and comparisons, the address is written without it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

from scrna.errors import UserError

#: The environment variable with the addresses as given, for the processes of this run's jobs.
_VARIABLE = "SCRNA_ADDRESSES"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:@\s]*)(:(\d*|\$\w+|\$\{\w+\}))?")
_NAME = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
#: Names of query parameters that hold a secret or change with one, without case and punctuation.
_SECRET = re.compile(
    r".*(token|signature|passw(or)?d|passphrase|secret|credential|session|jwt).*"
    r"|.*key|(o?auth|authorization|sig|sas|pass|pwd|privatelink)"
    r"|(x(amz|goog|ms).*|awsaccesskeyid|googleaccessid|keypairid|policy|expires)"
)
_ADVICE = {
    "ftp": "many servers give the same path over https://",
    "sftp": "copy the file here, or mount the folder",
    "s3": "take an https:// address (aws s3 presign makes one), or copy the file here (aws s3 cp)",
    "gs": "take an https:// address (gcloud storage sign-url makes one), or copy the file here",
}


def scheme_of(address: str) -> str | None:
    """Return the scheme of an address in lower case; None for a path."""
    found = _SCHEME.match(address)
    return found[1].lower() if found else None


def without_credentials(address: str) -> str:
    """Cut logins and secret query parameters out of an address.

    Parameters
    ----------
    address
        A URL, in which variables may not be filled in yet, or a path, which stays as it is.

    Returns
    -------
    What may be shown, stored and compared. Of an address whose host cannot be
    separated from its login, only the scheme.
    """
    if not (scheme := _SCHEME.match(address)):
        return address
    rest = address[scheme.end() :].partition("#")[0]
    authority = re.match(r"[^/?]*", rest)[0]
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host) or "@" in rest[len(authority) :].partition("/")[0]:
        return f"{scheme[0]}…"
    path, _, query = rest[len(authority) :].partition("?")
    kept = "&".join(part for part in re.split("[&;]", query) if part and not _is_secret(part))
    return f"{scheme[0]}{host}{path}" + (f"?{kept}" if kept else "")


def censored(text: str, address: str, shown: str) -> str:
    """Cut an address and the secrets in it out of a library's message.

    Parameters
    ----------
    text
        The message.
    address
        The address as it was asked for.
    shown
        What stands for it.
    """
    rest = _SCHEME.sub("", address, count=1)
    login, _, tail = rest.rpartition("@")
    query = rest.partition("#")[0].partition("?")[2]
    secrets = [login, *login.split(":", 1)]
    secrets += [part.partition("=")[2] for part in re.split("[&;]", query) if _is_secret(part)]
    path = tail.partition("/")[2]
    secrets += [path, path.partition("?")[0]] if path.partition("?")[0] not in shown else []
    secrets += [decode(secret) for secret in secrets for decode in (unquote, unquote_plus)]
    text = text.replace(address, shown)
    for secret in sorted({one for one in secrets if len(one) > 2}, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def set_credentials_aside(
    datasets: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Remove the credentials from the sources of datasets; `full_address` finds them again.

    They go into this process's environment, which its jobs inherit and only this user may read.

    Parameters
    ----------
    datasets
        The datasets of a config.
    samples
        The sources of samples, by names that no dataset has.

    Returns
    -------
    The datasets, their sources without credentials.
    """
    found, given = {}, {}
    for name, dataset in {**datasets, **(samples or {})}.items():
        address = dataset.get("source")
        shown = without_credentials(address) if address else address
        if shown != address:
            given[name] = address
        found[name] = {**dataset, "source": shown} if "source" in dataset else dict(dataset)
    os.environ[_VARIABLE] = json.dumps(given)
    return {name: found[name] for name in datasets}


def check_variables(key: str, dataset: str, shown: str) -> str:
    """Fill in the variables of a source, those that `set_credentials_aside` took away included.

    Parameters
    ----------
    key
        The config key, for messages.
    dataset
        Its name.
    shown
        The source as it stands in the config, without credentials.

    Returns
    -------
    ``shown`` with its variables, and ``~``, filled in.

    Raises
    ------
    UserError
        If a variable is not set, or the address cannot be taken apart.
    """
    if shown.endswith("://…"):
        msg = (
            f"{key} is an address whose host cannot be separated from its login: write the login's "
            "special characters as %XX (/ as %2F, @ as %40, : as %3A, # as %23)"
        )
        raise UserError(msg)
    for one in _NAME.finditer(_as_given(dataset, shown)):
        name = one[1] or one[2]
        if name in os.environ:
            continue
        # else it may be part of a password: $ has to be written as %24 there
        is_name = one[0] in shown or name.isupper()
        what = f"variable {name}" if is_name else "variable in its login or query"
        msg = (
            f"{key} is {shown!r}, but the environment {what} is not set; "
            "set it, or write the path out"
        )
        raise UserError(msg)
    return os.path.expanduser(os.path.expandvars(shown))


def full_address(dataset: str, shown: str) -> str:
    """Return a dataset's address with variables and credentials, to download from and no more.

    Parameters
    ----------
    dataset
        Its name.
    shown
        Its address without credentials.
    """
    return os.path.expandvars(_as_given(dataset, shown))


def address_digest(address: str) -> str:
    """Digest an address, its credentials aside: to notice that a variable has another value."""
    return hashlib.sha256(without_credentials(address).encode()).hexdigest()[:16]


def local_path(key: str, address: str) -> str | None:
    """Return the path that a source names; None if it is to be downloaded.

    Parameters
    ----------
    key
        The config key, for messages.
    address
        The source, its variables filled in.

    Raises
    ------
    UserError
        For another scheme than http, https and file.
    """
    scheme = scheme_of(address)
    if scheme in {"http", "https"}:
        return None
    if scheme is None:
        return address
    if scheme == "file":
        pieces = urlsplit(address)
        if pieces.netloc.lower() in {"", "localhost"}:
            return unquote(pieces.path)
    advice = _ADVICE.get(scheme, "copy the file here")
    msg = (
        f"{key} is {without_credentials(address)!r}; a source is a path, file:///path, http:// "
        f"or https://: {advice}"
    )
    raise UserError(msg)


def check_file(key: str, path: str) -> None:
    """Refuse what is neither a file nor a folder, such as a pipe, which would wait forever."""
    place = Path(path)
    if not place.is_file() and not place.is_dir():
        kind = "a named pipe (FIFO)" if place.is_fifo() else "a device or a socket"
        msg = f"{key} is {path!r}, {kind}, not a file: write its content to a file and name that"
        raise UserError(msg)


def _as_given(dataset: str, shown: str) -> str:
    return json.loads(os.environ.get(_VARIABLE, "{}")).get(dataset, shown)


def _is_secret(part: str) -> bool:
    name = re.sub(r"[^a-z0-9]", "", unquote_plus(part.partition("=")[0]).lower())
    return _SECRET.fullmatch(name) is not None
