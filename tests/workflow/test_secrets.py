"""A login and a token in a source stand in no file of a run, and in nothing that it prints."""

import base64
import http.server
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.workflow.conftest import Workflow

PASSWORD, TOKEN = "hunter2-of-the-lab", "s3cret-of-the-portal"
LOGIN = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves files to whoever has the login and the token."""

    def do_GET(self):
        knows = self.headers["Authorization"] == LOGIN and f"token={TOKEN}" in self.path
        super().do_GET() if knows else self.send_error(403)

    def log_message(self, *_):
        pass


@pytest.fixture
def place(done):
    """A server on this machine that has the dataset's file: its host and the path."""
    handler = partial(Guarded, directory=done.folder / "resources")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}/plain.h5ad"
        server.shutdown()


def holding(folder: Path, *words: str) -> list[str]:
    """List the files below a folder, Snakemake's own too, that hold one of the words."""
    forms = [word.encode() for word in words]
    forms += [base64.urlsafe_b64encode(word)[:-4] for word in forms]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms)
    ]


def source(name: str, address: str) -> str:
    return f"run: {name}\ndatasets: {{{name}: {{kind: auto, source: '{address}'}}}}"


def check(workflow: Workflow, output: str) -> None:
    assert holding(workflow.folder, PASSWORD, TOKEN) == []
    assert PASSWORD not in output
    assert TOKEN not in output


@pytest.mark.parametrize("way", ["as it is", "variables"])
def test_a_download_keeps_no_secret(fresh, place, way, monkeypatch):
    monkeypatch.setenv("LAB_PASSWORD", PASSWORD)
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    login, token = (PASSWORD, TOKEN) if way == "as it is" else ("$LAB_PASSWORD", "${LAB_TOKEN}")
    workflow = fresh.over(source("web", f"http://me:{login}@{place}?token={token}"))
    target = "results/web/counts.json"
    check(workflow, workflow.run(target))
    assert workflow.due(target) == set()
    monkeypatch.setenv("LAB_TOKEN", "another")  # which is no other file
    assert workflow.due(target) == set()
    refused = fresh.over(source("other", f"http://me:{login}@{place}?token=no-{token}"))
    output = refused.run("results/other/counts.json", fails=True)
    assert output.count("the server said 403") == 2  # as it is said, and at the end of the run
    assert "is kept in" not in output
    check(refused, output)


def test_a_report_and_a_failed_download_show_no_secret(done, tmp_path, place):
    address = f"http://me:{PASSWORD}@{place}?token={TOKEN}"
    workflow = done.at(tmp_path / "work").over(source("plain", address))
    output = workflow.run(options=("--touch",))
    output += workflow.run("results/plain/report.html", options=("--force",))
    check(workflow, output)
    assert f"source: http://{place}" in (workflow.folder / "results/plain/report.html").read_text()

    wrong = workflow.over(source("new", address.replace("plain.h5ad", "none.h5ad")))
    output = wrong.run("results/new/counts.json", fails=True)
    assert "none.h5ad: the server said 404 File not found: there is no such file" in output
    check(wrong, output)
