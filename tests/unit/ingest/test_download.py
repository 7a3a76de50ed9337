import base64
import gzip
import hashlib
import io
import logging
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest

from scripts.download import download
from scrna.config.source_address import full_address, set_credentials_aside
from scrna.errors import UserError
from scrna.ingest.download import fetch

BODY = np.random.default_rng(0).bytes(3_000_000)


class Site:
    """A server on the loopback that behaves as a test tells it."""

    def __init__(self):
        self.body = BODY
        self.headers = {"ETag": '"one"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        self.has_ranges = True
        self.statuses = []  # answers before the first good one
        self.breaks = []  # bytes to send before each break
        self.requests = []
        self.paths = []
        self.leads_to = None  # a redirect of the first request

    def answer(self, handler):
        self.requests.append(dict(handler.headers))
        self.paths.append(handler.path)
        if self.leads_to:
            handler.send_response(302)
            handler.send_header("Location", self.leads_to)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            self.leads_to = None
            return
        if self.statuses:
            handler.send_response(self.statuses.pop(0))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        asked = handler.headers.get("Range")
        is_same = handler.headers.get("If-Range") in self.headers.values()
        if asked and self.has_ranges and is_same:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            handler.send_response(206)
            span = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
            handler.send_header("Content-Range", span)
        else:
            handler.send_response(200)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(self.body) - start))
        handler.end_headers()
        stop = start + self.breaks.pop(0) if self.breaks else len(self.body)
        handler.wfile.write(self.body[start:stop])
        handler.wfile.flush()
        handler.close_connection = True


@pytest.fixture
def site():
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            site.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/data/cells.bin"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "downloads" / "cells.bin"


@pytest.fixture
def pauses():
    return []


def files(out):
    return sorted(path.name for path in out.parent.iterdir())


def test_a_file_comes_whole(site, out, caplog):
    caplog.set_level(logging.INFO, logger="scrna")
    download(out, url=site.url, sha256=hashlib.sha256(BODY).hexdigest())
    assert out.read_bytes() == BODY
    assert files(out) == ["cells.bin"]
    assert "cells.bin: 3.0 MB, SHA-256 is correct" in caplog.messages


def test_breaks_are_resumed(site, out, pauses):
    site.breaks = [1_000_000, 500_000]
    assert fetch(site.url, out, sleep=pauses.append) == 3_000_000
    assert out.read_bytes() == BODY
    assert [request.get("Range") for request in site.requests] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
    ]
    assert site.requests[1]["If-Range"] == '"one"'
    assert pauses == [1, 1]
    assert files(out) == ["cells.bin"]


def test_a_later_run_resumes(site, out, pauses):
    site.breaks = [2_000_000] + [0] * 7
    with pytest.raises(UserError, match=r"2.0 MB, is kept in .*cells.bin.part: run again"):
        fetch(site.url, out, sleep=pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert files(out) == ["cells.bin.part", "cells.bin.part.json"]
    site.requests.clear()
    fetch(site.url, out)
    assert [request["Range"] for request in site.requests] == ["bytes=2000000-"]
    assert out.read_bytes() == BODY


def test_a_whole_part_needs_no_request(site, out):
    """As a kill between the last byte and the new name leaves it."""
    site.breaks = [2_000_000] + [0] * 7
    with pytest.raises(UserError):
        fetch(site.url, out, sleep=lambda _: None)
    out.with_name("cells.bin.part").write_bytes(BODY)
    site.requests.clear()
    fetch(site.url, out, sha256=hashlib.sha256(BODY).hexdigest())
    assert site.requests == []
    assert out.read_bytes() == BODY


@pytest.mark.parametrize("known", ["", "{", '{"url": "http://other/file"}', None])
def test_a_part_of_unknown_origin_is_not_used(site, out, known):
    out.parent.mkdir()
    out.with_name("cells.bin.part").write_bytes(b"x" * 5_000_000)
    if known is not None:
        out.with_name("cells.bin.part.json").write_text(known)
    fetch(site.url, out)
    assert "Range" not in site.requests[0]
    assert out.read_bytes() == BODY


def test_a_server_without_ranges_starts_over(site, out, pauses):
    site.has_ranges = False
    site.breaks = [1_000_000]
    fetch(site.url, out, sleep=pauses.append)
    assert out.read_bytes() == BODY


def test_a_file_that_changed_starts_over(site, out, caplog):
    caplog.set_level(logging.INFO, logger="scrna")
    site.breaks = [1_000_000]
    new = BODY[::-1]

    def change(_):
        site.body, site.headers = new, {"ETag": '"two"'}

    fetch(site.url, out, sleep=change)
    assert out.read_bytes() == new
    assert any("starts over" in message for message in caplog.messages)


def test_a_range_of_another_file_is_not_glued_on(site, out):
    """A server that ignores If-Range."""
    site.breaks = [1_000_000]
    new = BODY[::-1]

    def change(_):
        site.body, site.headers = new, {"ETag": '"two"', "Old": '"one"'}

    fetch(site.url, out, sleep=change)
    assert out.read_bytes() == new


def test_last_modified_serves_where_the_etag_is_weak(site, out):
    site.headers["ETag"] = 'W/"one"'
    site.breaks = [1_000_000]
    fetch(site.url, out, sleep=lambda _: None)
    assert site.requests[1]["If-Range"] == "Mon, 01 Jan 2024 00:00:00 GMT"
    assert out.read_bytes() == BODY


def test_nothing_to_tell_versions_apart_starts_over(site, out):
    site.headers = {}
    site.breaks = [1_000_000]
    fetch(site.url, out, sleep=lambda _: None)
    assert [request.get("Range") for request in site.requests] == [None, None]
    assert out.read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_again(site, out):
    site.statuses = [404]
    with pytest.raises(UserError, match=r"cells\.bin: the server said 404 .*check the address"):
        fetch(site.url + "?token=secret", out)
    assert len(site.requests) == 1
    assert files(out) == []


def test_a_secret_in_the_address_is_not_shown(site, out):
    site.statuses = [403]
    url = site.url.replace("http://", "http://me:password@") + "?token=secret"
    with pytest.raises(UserError) as caught:
        fetch(url, out)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_secret_is_nowhere_stored(site, out, caplog, monkeypatch):
    """Neither in the part that a break leaves, nor in logs and messages."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PASSWORD", "hunter2")
    monkeypatch.setenv("SCRNA_ADDRESSES", "{}")
    url = site.url.replace("http://", "http://me:$PASSWORD@") + "?token=s3cret"
    site.breaks = [2_000_000] + [0] * 7
    datasets = set_credentials_aside({"d": {"source": url}})
    shown = datasets["d"]["source"]
    assert shown == site.url
    with pytest.raises(UserError, match=r"is kept in") as caught:
        fetch(full_address("d", shown), out, shown=shown, sleep=lambda _: None)
    expected = "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert {request["Authorization"] for request in site.requests} == {expected}
    assert site.paths[-1].endswith("?token=s3cret")
    own = [record.getMessage() for record in caplog.records if record.name == "scrna"]
    texts = [str(caught.value), *own, "".join(traceback.format_exception(caught.value))]
    known = out.with_name("cells.bin.part.json").read_text()
    assert not [text for text in (*texts, known) if "hunter2" in text or "s3cret" in text]
    download(out, url=shown, dataset="d")
    assert "Range" in site.requests[-1]  # it goes on


def test_the_login_of_netrc_is_used(site, out, tmp_path, monkeypatch):
    (tmp_path / "logins").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "logins"))
    fetch(site.url, out)
    expected = "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert site.requests[0]["Authorization"] == expected


def test_what_came_of_another_address_is_not_gone_on_with(site, out):
    site.breaks = [2_000_000] + [0] * 7
    with pytest.raises(UserError, match="is kept in"):
        fetch(site.url, out, shown="$PLACE/cells.bin", sleep=lambda _: None)
    site.requests.clear()
    fetch(site.url + "?v=2", out, shown="$PLACE/cells.bin")
    assert "Range" not in site.requests[0]


def test_a_redirect_within_the_server_is_followed(site, out):
    site.leads_to = "/elsewhere/cells.bin"
    fetch(site.url.replace("http://", "http://me:hunter2@"), out)
    assert out.read_bytes() == BODY
    assert site.paths == ["/data/cells.bin", "/elsewhere/cells.bin"]


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:9/private?token=s3cret",  # another port
        "http://localhost:80/private",  # another host
        "ftp://127.0.0.1/private",
        "file:///etc/hostname",
        "//localhost/private",
    ],
)
def test_a_redirect_of_plain_http_elsewhere_is_refused(site, out, to):
    site.leads_to = to
    match = r"cells\.bin: the server sends on to \S+\. A redirect is followed to https://"
    with pytest.raises(UserError, match=match) as caught:
        fetch(site.url, out, sleep=lambda _: None)
    assert len(site.requests) == 1
    assert "s3cret" not in str(caught.value)
    assert files(out) == []


def test_a_folder_that_cannot_be_written(site, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(UserError, match=r"downloads is not writable: change its permissions"):
            fetch(site.url, out)
    assert site.requests == []
    out.parent.rmdir()
    out.parent.touch()
    with pytest.raises(UserError, match=r"downloads cannot be made: File exists"):
        fetch(site.url, out)


def test_a_disk_that_fills_up(site, out, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scrna.ingest.download._copy", fails)
    with pytest.raises(UserError, match=r"cells\.bin\.part cannot be written: No space left"):
        fetch(site.url, out)


def test_a_server_that_is_down_is_asked_again(site, out, pauses):
    site.statuses = [503, 429, 500]
    fetch(site.url, out, sleep=pauses.append)
    assert out.read_bytes() == BODY
    assert pauses == [1, 2, 4]


def test_a_server_that_stays_down(site, out):
    site.statuses = [503] * 8
    with pytest.raises(UserError, match=r"gave up after 8 tries .*503 Service Unavailable"):
        fetch(site.url, out, sleep=lambda _: None)


def test_nobody_there(out):
    match = r"gave up .*refused\. Nothing has come; check the address, and run again$"
    with pytest.raises(UserError, match=match):
        fetch("http://127.0.0.1:9/cells.bin", out, sleep=lambda _: None)


@pytest.mark.parametrize("url", ["s3://bucket/cells.h5ad", "cells.h5ad", "ftp://host/x"])
def test_other_kinds_of_address_are_refused(out, url):
    with pytest.raises(UserError, match="must start with http:// or https://"):
        fetch(url, out)


def test_a_malformed_address(out):
    with pytest.raises(UserError, match="cannot download"):
        fetch("http://", out)


def test_a_wrong_digest_shows_both_and_keeps_nothing(site, out):
    digest = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(UserError, match=f"is {digest}, the config asks for {'0' * 64}"):
        fetch(site.url, out, sha256="0" * 64)
    assert files(out) == []


def test_a_digest_in_capitals(site, out):
    fetch(site.url, out, sha256=hashlib.sha256(BODY).hexdigest().upper())
    assert out.exists()


def test_a_web_page_is_refused(site, out):
    site.body = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
    with pytest.raises(UserError, match="sent a web page, not a file"):
        fetch(site.url, out)
    assert files(out) == []


def hdf5():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["X"] = np.arange(10_000)
    return memory.getvalue()


def test_hdf5_must_open(site, tmp_path):
    out = tmp_path / "cells.h5ad"
    site.body = hdf5()
    fetch(site.url, out)
    with h5py.File(out) as file:
        assert file["X"][-1] == 9999


@pytest.mark.parametrize("body", [hdf5()[:-2000], b"cells", b""])
def test_damaged_hdf5_is_refused(site, tmp_path, body):
    site.body = body
    with pytest.raises(UserError, match=r"cells\.h5ad does not open as HDF5, it is damaged or cut"):
        fetch(site.url, tmp_path / "cells.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_gzip_comes_as_it_is(site, tmp_path):
    out = tmp_path / "matrix.mtx.gz"
    site.body = gzip.compress(b"%%MatrixMarket")
    site.headers["Content-Encoding"] = "gzip"  # as servers wrongly say of such files
    fetch(site.url, out)
    assert gzip.decompress(out.read_bytes()) == b"%%MatrixMarket"
    site.body = b"plain text"
    with pytest.raises(UserError, match=r"matrix\.mtx\.gz is not a gzip file"):
        fetch(site.url, out)


def test_a_full_disk_is_told_before(site, out, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2_000_000}))
    with pytest.raises(UserError, match=r"0\.0 GB are to come.*make room"):
        fetch(site.url, out)
