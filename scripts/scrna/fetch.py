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
from urllib.parse import urlsplit

import requests
import urllib3

from scrna.errors import UserError
from scrna.log import log
from scrna.progress import Progress

_BLOCK = 2**20  # bytes
_TIMEOUT = (15, 60)  # seconds to connect, and without a byte
_PAUSES = (1, 2, 4, 8, 16)  # seconds before each try that follows one which brought nothing
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
    """What the server said of the file when it came to `.part`."""

    url: str
    etag: str | None
    modified: str | None
    size: int | None


def fetch(
    url: str, out: Path, *, sha256: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Download a file over http or https; it gets its name once it is whole and right.

    Parameters
    ----------
    url
        Where it lies.
    out
        Where it goes. ``out.part`` stays when the transfer breaks, and the next call resumes it.
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
    if urlsplit(url).scheme not in {"http", "https"}:
        msg = f"cannot download {url!r}: the address must start with http:// or https://"
        raise UserError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    _receive_all(url, part, sleep)
    try:
        _check(part, out, url, sha256)
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


def _receive_all(url: str, part: Path, sleep: Callable[[float], None]) -> None:
    """Try until the part is whole; one that brought bytes is no failure."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _receive(url, part)
            return
        except (_Broken, *_BROKEN_LINE) as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > len(_PAUSES):
                msg = (
                    f"{_shown(url)}: gave up after {failures} tries without progress: "
                    f"{_reason(error)}. What came so far, {_size(part) / 1e6:,.1f} MB, is kept in "
                    f"{part}: run again to go on"
                )
                raise UserError(msg) from error
            pause = _PAUSES[failures - 1]
            log.warning("%s: %s; again in %d s", _shown(url), _reason(error), pause)
            sleep(pause)
        except requests.RequestException as error:  # not a matter of the line: a malformed address
            msg = f"cannot download {_shown(url)}: {error}"
            raise UserError(msg) from error


def _receive(url: str, part: Path) -> None:
    """Ask for the file, or for what is missing of it, and write what comes."""
    known = _remembered(part, url)
    have = _size(part) if known else 0
    if known and have and have == known.size:
        return
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, which ranges count in
    if have and (validator := known.etag or known.modified):
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        _check_status(response, url)
        remote = _described(response, url)
        resumes = response.status_code == 206 and remote == known and _starts_at(response, have)
        if response.status_code != 200 and not resumes:
            _discard(part)
            msg = "the server's file is another one now, or its ranges are wrong: starting over"
            raise _Broken(msg)
        if resumes:
            log.info("%s: goes on after %.1f MB", _shown(url), have / 1e6)
        elif have:
            log.info("%s: starts over, the server sends the whole file", _shown(url))
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


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in {200, 206, 416}:
        return
    said = f"{status} {response.reason}"
    if status >= 500 or status in _PASSING_STATUS:
        msg = f"the server said {said}"
        raise _Broken(msg)
    advice = {
        401: "it asks for a login",
        403: "it refuses access; an address with a time limit may have expired",
        404: "there is no such file; check the address",
        410: "the file was taken away; look for a new address",
    }.get(status, "check the address")
    msg = f"{_shown(url)}: the server said {said}: {advice}"
    raise UserError(msg)


def _described(response: requests.Response, url: str) -> _Remote:
    """Read what a response says of the whole file."""
    length = response.headers.get("Content-Length")
    if response.status_code == 206:
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
    etag = response.headers.get("ETag", "")
    return _Remote(
        url=url,
        etag=etag if etag and not etag.startswith("W/") else None,  # a weak one fits no range
        modified=response.headers.get("Last-Modified"),
        size=int(length) if (length or "").isdigit() else None,
    )


def _starts_at(response: requests.Response, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _remembered(part: Path, url: str) -> _Remote | None:
    """Read what is known of the part, if it came from the same address."""
    try:
        remote = _Remote(**json.loads(part.with_name(f"{part.name}.json").read_text()))
    except (OSError, ValueError, TypeError):  # none there, or cut off by a kill
        return None
    fits = remote.size is None or _size(part) <= remote.size
    return remote if remote.url == url and fits else None


def _check_space(part: Path, size: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - start > free:
        msg = (
            f"{(size - start) / 1e9:,.1f} GB are to come, and {part.parent.resolve()} has "
            f"{free / 1e9:,.1f} GB free: make room, then run again"
        )
        raise UserError(msg)


def _check(part: Path, out: Path, url: str, sha256: str | None) -> None:
    """Refuse a file that is not what was asked for."""
    with part.open("rb") as file:
        head = file.read(512)
    if sha256 is not None:
        log.info("%s: checking its SHA-256", out.name)
        found = file_sha256(part)
        if found != sha256.lower():
            msg = (
                f"{_shown(url)}: the file is not the expected one: its SHA-256 is {found}, the "
                f"config asks for {sha256.lower()}. It was removed. If the file was replaced on "
                "purpose, put the new digest into the config"
            )
            raise UserError(msg)
        return
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        msg = (
            f"{_shown(url)} sent a web page, not a file: open it in a browser and take the address "
            "of the file itself"
        )
        raise UserError(msg)
    if out.suffix == ".gz" and not head.startswith(b"\x1f\x8b"):
        msg = f"{_shown(url)}: {out.name} is not a gzip file"
        raise UserError(msg)
    if out.suffix in _HDF5_SUFFIXES:
        _check_hdf5(part, out, url)


def _check_hdf5(part: Path, out: Path, url: str) -> None:
    import h5py

    try:
        with h5py.File(part, "r"):
            pass
    except OSError as error:
        msg = f"{_shown(url)}: {out.name} does not open as HDF5, it is damaged or cut off: {error}"
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


def _shown(url: str) -> str:
    """Show an address without a login or a signature in it."""
    pieces = urlsplit(url)
    return f"{pieces.scheme}://{pieces.netloc.rpartition('@')[2]}{pieces.path}"
