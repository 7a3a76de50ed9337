"""Downloads that survive a bad line: they resume, retry, and keep nothing but the right file.

While a file comes in, it is ``NAME.part``, with ``NAME.part.json`` beside it, which holds what the
server said of the file (RFC 9110: ETag, Last-Modified, length). The next try goes on from there if
the server still has the same file, and starts over if it does not.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from scrna.config import file_formats
from scrna.config.source_address import (
    address_digest,
    censored,
    scheme_of,
    without_credentials,
)
from scrna.errors import UserError
from scrna.log import log
from scrna.progress import Progress

_BLOCK = 2**20  # bytes
_TIMEOUT = (15, 60)  # seconds to connect, and without a byte
_PAUSES = (1, 2, 4, 8, 16, 30, 30)  # seconds before each try that follows one which brought nothing
_HDF5_SUFFIXES = {".h5", ".h5ad", ".hdf5"}
_PASSING_STATUS = {408, 425, 429}  # and 5xx
_BROKEN_LINE = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
)


class _Broken(Exception):  # noqa: N818 - a state of the line, not a fault
    """The transfer ended early, or the server asks to come back."""


class _Remote(NamedTuple):
    """What the server said of the file when it came to `.part`, and where it came from.

    The address is a digest of it, since only `address_digest` leaves its credentials out.
    """

    address: str
    etag: str | None
    modified: str | None
    size: int | None


class _Address(NamedTuple):
    """An address, and what stands for it in messages."""

    url: str
    shown: str


def fetch(
    url: str,
    out: Path,
    *,
    shown: str | None = None,
    sha256: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Download a file over http or https; it gets its name once it is whole and right.

    Parameters
    ----------
    url
        Where it lies. It may have a login in it; without one, requests takes that of ``~/.netrc``,
        or of the file that ``$NETRC`` names. A redirect is followed to https, and within the same
        host and port.
    out
        Where it goes. ``out.part`` stays when the transfer breaks, and the next call resumes it.
    shown
        The address in messages; None: ``url`` without credentials, which is nowhere stored.
    sha256
        Digest that the file must have, 64 hexadecimal digits. Without one, a file named as HDF5
        or gzip must at least open as what its name says, and a web page is refused.
    sleep
        Waits between tries; for tests.

    Returns
    -------
    Size in bytes.

    Raises
    ------
    UserError
        If the address is wrong, the server refuses or stays unreachable, the disk is too small, or
        the file is not the right one.
    """
    source = _Address(url, without_credentials(url) if shown is None else shown)
    if scheme_of(url) not in {"http", "https"}:
        msg = f"cannot download {source.shown!r}: the address must start with http:// or https://"
        raise UserError(msg)
    part = out.with_name(f"{out.name}.part")
    _check_folder(out.parent)
    _receive_all(source, part, sleep)
    try:
        _check(part, out, source.shown, sha256)
    except UserError:
        _discard(part)
        raise
    size = part.stat().st_size
    os.replace(part, out)
    _discard(part)
    return size


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    label, total = f"SHA-256 of {path.name.removesuffix('.part')}", path.stat().st_size / 1e6
    with path.open("rb") as file, Progress(label, total=total, unit="MB") as progress:
        while block := file.read(_BLOCK):
            sha.update(block)
            progress.update(len(block) / 1e6)
    return sha.hexdigest()


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the folder {folder.absolute()} cannot be made: {error.strerror}"
        raise UserError(msg) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = (
            f"the folder {folder.absolute()} is not writable: change its permissions, or run in "
            "another folder (snakemake --directory)"
        )
        raise UserError(msg)


def _receive_all(source: _Address, part: Path, sleep: Callable[[float], None]) -> None:
    """Try until the part is whole; one that brought bytes is no failure."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _receive(source, part)
            return
        except (_Broken, *_BROKEN_LINE) as error:
            failures = 1 if _size(part) > before else failures + 1
            reason = censored(_reason(error), *source)
            if failures > len(_PAUSES):
                msg = (
                    f"{source.shown}: gave up after {failures} tries without progress: {reason}. "
                    + _what_is_kept(part)
                )
                raise UserError(msg) from None  # the errors before it name the whole address
            pause = _PAUSES[failures - 1]
            log.warning("%s: %s; again in %d s", source.shown, reason, pause)
            sleep(pause)
        except requests.RequestException as error:  # not a matter of the line: a malformed address
            msg = f"cannot download {source.shown}: {censored(str(error), *source)}"
            raise UserError(msg) from None
        except OSError as error:  # of the disk: it is full, or may not be written to
            msg = f"{part} cannot be written: {error.strerror}"
            raise UserError(msg) from None


def _what_is_kept(part: Path) -> str:
    if not (size := _size(part)):
        return "Nothing has come; check the address, and run again"
    return f"What came so far, {size / 1e6:,.1f} MB, is kept in {part}: run again to go on"


def _check_redirect(response: requests.Response, source: _Address) -> None:
    """Refuse a redirect that anybody on the line may have made up, or that leads out of the web.

    requests sends no login to another host, nor from https to http.
    """
    if not response.is_redirect:
        return
    old = response.url
    new = urljoin(old, response.headers["location"])
    old_place, new_place = urlsplit(old), urlsplit(new)
    is_same = (old_place.scheme, old_place.hostname, old_place.port) == (
        new_place.scheme,
        new_place.hostname,
        new_place.port,
    )
    if not is_same and new_place.scheme != "https":
        response.close()
        msg = (
            f"{source.shown}: the server sends on to {without_credentials(new)}. A redirect is "
            "followed to https://, or within the same host and port; if you trust that address, "
            "put it into the config, with the file's sha256"
        )
        raise UserError(msg)


def _receive(source: _Address, part: Path) -> None:
    """Ask for the file, or for what is missing of it, and write what comes."""
    known = _remembered(part, source)
    have = _size(part) if known else 0
    if known and have and have == known.size:
        return
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, which ranges count in
    if have and (validator := known.etag or known.modified):
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}

    def check(response: requests.Response, **_) -> None:
        _check_redirect(response, source)

    options = {"stream": True, "timeout": _TIMEOUT, "hooks": {"response": check}}
    with requests.get(source.url, headers=headers, **options) as response:
        _check_status(response, source)
        remote = _described(response, source)
        resumes = response.status_code == 206 and remote == known and _starts_at(response, have)
        if response.status_code != 200 and not resumes:
            _discard(part)
            msg = "the server's file is another one now, or its ranges are wrong: starting over"
            raise _Broken(msg)
        if resumes:
            log.info("%s: goes on after %.1f MB", source.shown, have / 1e6)
        elif have:
            log.info("%s: starts over, the server sends the whole file", source.shown)
        start = have if resumes else 0
        with part.open("ab" if resumes else "wb") as file:
            part.with_name(f"{part.name}.json").write_text(json.dumps(remote._asdict()))
            _check_space(part, remote.size, start)
            _copy(response, file, remote.size, start)
    if remote.size is not None and _size(part) != remote.size:
        msg = f"broke off after {_size(part):,} of {remote.size:,} bytes"
        raise _Broken(msg)


def _copy(response: requests.Response, file, size: int | None, start: int) -> None:
    label = f"download {Path(file.name).name.removesuffix('.part')}"
    total = size / 1e6 if size is not None else None
    with Progress(label, total=total, unit="MB", done=start / 1e6) as progress:
        for block in response.raw.stream(_BLOCK, decode_content=False):
            file.write(block)
            progress.update(len(block) / 1e6)


def _check_status(response: requests.Response, source: _Address) -> None:
    status = response.status_code
    if status in {200, 206, 416}:
        return
    said = f"{status} {response.reason}"
    if status >= 500 or status in _PASSING_STATUS:
        msg = f"the server said {said}"
        raise _Broken(msg)
    advice = {
        401: "it asks for a login: put one into ~/.netrc, or $NAME:$PASSWORD@ before the host",
        403: "it refuses access; an address with a time limit may have expired",
        404: "there is no such file; check the address",
        410: "the file was taken away; look for a new address",
    }.get(status, "check the address")
    msg = f"{source.shown}: the server said {said}: {advice}"
    raise UserError(msg)


def _described(response: requests.Response, source: _Address) -> _Remote:
    """Read what a response says of the whole file."""
    length = response.headers.get("Content-Length")
    if response.status_code == 206:
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
    etag = response.headers.get("ETag", "")
    return _Remote(
        address=address_digest(source.url),
        etag=etag if etag and not etag.startswith("W/") else None,  # a weak one fits no range
        modified=response.headers.get("Last-Modified"),
        size=int(length) if (length or "").isdigit() else None,
    )


def _starts_at(response: requests.Response, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _remembered(part: Path, source: _Address) -> _Remote | None:
    """Read what is known of the part, if it came from the same address."""
    try:
        remote = _Remote(**json.loads(part.with_name(f"{part.name}.json").read_text()))
    except (OSError, ValueError, TypeError):  # none there, or cut off by a kill
        return None
    fits = remote.size is None or _size(part) <= remote.size
    return remote if remote.address == address_digest(source.url) and fits else None


def _check_space(part: Path, size: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - start > free:
        msg = (
            f"{(size - start) / 1e9:,.1f} GB are to come, and {part.parent.resolve()} has "
            f"{free / 1e9:,.1f} GB free: make room, then run again"
        )
        raise UserError(msg)


def _check(part: Path, out: Path, shown: str, sha256: str | None) -> None:
    """Refuse a file that is not what was asked for."""
    with part.open("rb") as file:
        head = file.read(file_formats.HEAD)
    if sha256 is not None:
        log.info("%s: checking its SHA-256", out.name)
        found = file_sha256(part)
        if found != sha256.lower():
            msg = (
                f"{shown}: the file is not the expected one: its SHA-256 is {found}, the "
                f"config asks for {sha256.lower()}. It was removed. If the file was replaced on "
                "purpose, put the new digest into the config"
            )
            raise UserError(msg)
        return
    if file_formats.is_web_page(head):
        msg = (
            f"{shown} sent a web page, not a file: open it in a browser and take the address "
            "of the file itself"
        )
        raise UserError(msg)
    if out.suffix == ".gz" and not head.startswith(file_formats.GZIP):
        msg = f"{shown}: {out.name} is not a gzip file"
        raise UserError(msg)
    if out.suffix in _HDF5_SUFFIXES:
        _check_hdf5(part, out, shown)


def _check_hdf5(part: Path, out: Path, shown: str) -> None:
    import h5py

    try:
        with h5py.File(part, "r"):
            pass
    except OSError as error:
        msg = f"{shown}: {out.name} does not open as HDF5, it is damaged or cut off: {error}"
        raise UserError(msg) from error


def _discard(part: Path) -> None:
    for path in (part, part.with_name(f"{part.name}.json")):
        path.unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: BaseException) -> str:
    """Take the innermost error: the outer ones repeat the address and name library classes."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)
