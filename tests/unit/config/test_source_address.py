"""Addresses without their credentials, schemes, and what else a source can name."""

import os

import pytest

from scrna.config.datasets import sources
from scrna.config.settings import complete
from scrna.config.source_address import (
    censored,
    full_address,
    set_credentials_aside,
    without_credentials,
)
from scrna.errors import UserError

SECRETS = [
    "token",
    "access_token",
    "accessToken",
    "sig",
    "Signature",
    "key",
    "api_key",
    "password",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "AWSAccessKeyId",
    "x-goog-signature",
    "X-Plex-Token",
    "private_link",
    "client_secret",
    "%74oken",
]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("SCRNA_ADDRESSES", "{}")


@pytest.mark.parametrize("name", SECRETS)
def test_secret_parameters_are_cut(name):
    url = f"https://x.org/a.h5ad?format=file&{name}=hunter2&acc=GSE1"
    assert without_credentials(url) == "https://x.org/a.h5ad?format=file&acc=GSE1"
    assert without_credentials(f"https://x.org/a.h5ad?{name}=hunter2") == "https://x.org/a.h5ad"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://x.org/a.h5ad?acc=GSE1&author=me#here", "https://x.org/a.h5ad?acc=GSE1&author=me"),
        ("HTTP://me:hunter2@x.org:8080/a.h5ad", "HTTP://x.org:8080/a.h5ad"),
        ("http://me@x.org/a.h5ad", "http://x.org/a.h5ad"),
        ("http://me:hunt@er2@x.org/a.h5ad", "http://x.org/a.h5ad"),
        ("http://me:hunter2@[::1]:80/a.h5ad", "http://[::1]:80/a.h5ad"),
        ("http://me:hunter2@$HOST:$PORT/a.h5ad", "http://$HOST:$PORT/a.h5ad"),
        ("s3://KEY:hunter2@bucket/a.h5ad", "s3://bucket/a.h5ad"),
        ("http://me:hunt/er2@x.org/a.h5ad", "http://…"),
        ("http://me:hunt#er2@x.org/a.h5ad", "http://…"),
        ("http://me:1?2@x.org/a.h5ad", "http://…"),
        ("/data/token=1/me@home.h5ad", "/data/token=1/me@home.h5ad"),
        ("$DATA/a.h5ad", "$DATA/a.h5ad"),
    ],
)
def test_logins_are_cut_and_the_rest_stays(address, shown):
    assert without_credentials(address) == shown
    assert without_credentials(shown) == shown


def test_a_librarys_message_is_censored():
    url = "http://me:hunt%40er2@x.org/data/a.h5ad?token=t0k%2Fen"
    said = f"Failed: {url}; /data/a.h5ad?token=t0k%2Fen with hunt@er2 and t0k/en"
    found = censored(said, url, "http://x.org/data/a.h5ad")
    assert not any(word in found for word in ("hunt", "t0k"))
    hidden = censored("no /webhook-1234/a.h5ad", "http://x.org/webhook-1234/a.h5ad", "http://$URL")
    assert "1234" not in hidden


def dataset(source: str) -> dict:
    given = {"datasets": {"d": {"kind": "auto", "source": source}}, "run": "d"}
    return set_credentials_aside(complete(given)["datasets"])


def source_of(source: str):
    return sources(dataset(source))["d"]


def test_credentials_are_found_again_by_the_download_alone(monkeypatch):
    for name, value in {"ME": "me", "PASSWORD": "hunter2", "TOKEN": "t0ken-9"}.items():
        monkeypatch.setenv(name, value)
    given = "https://$ME:${PASSWORD}@x.org/a.h5ad?v=1&token=$TOKEN"
    assert dataset(given)["d"]["source"] == "https://x.org/a.h5ad?v=1"
    found = source_of(given)
    assert found.address() == {"url": "https://x.org/a.h5ad?v=1"}
    assert full_address("d", found.url) == "https://me:hunter2@x.org/a.h5ad?v=1&token=t0ken-9"


def test_another_value_of_a_variable_is_another_address(monkeypatch):
    asked = []
    for value in ("https://me:hunter2@x.org/a", "https://me:other@x.org/a", "https://x.org/b"):
        monkeypatch.setenv("PLACE", value)
        found = source_of("$PLACE/cells.h5ad")
        assert (found.url, found.files) == ("$PLACE/cells.h5ad", ["resources/d.h5ad"])
        assert full_address("d", found.url) == f"{value}/cells.h5ad"
        asked.append(found.address())
    assert asked[0] == asked[1]  # another password
    assert asked[1] != asked[2]
    assert "hunter2" not in str(asked)


def test_a_missing_variable_is_named_before_anything_runs(monkeypatch):
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(UserError, match="environment variable NO_TOKEN is not set"):
        source_of("https://x.org/a.h5ad?token=$NO_TOKEN")
    with pytest.raises(UserError, match="variable in its login or query is not set") as caught:
        source_of("https://me:hunter$two@x.org/a.h5ad")
    assert "two" not in str(caught.value)


def test_a_login_that_cannot_be_told_from_the_host_is_not_shown():
    with pytest.raises(UserError, match="whose host cannot be separated from its login") as caught:
        source_of("https://me:hunt/er2@x.org/a.h5ad")
    assert "hunt" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["HTTP", "Https", "https"])
def test_schemes_in_capitals(scheme):
    assert source_of(f"{scheme}://x.org/a.h5ad").url == f"{scheme}://x.org/a.h5ad"


@pytest.mark.parametrize("start", ["file://", "FILE://", "file://localhost"])
def test_file_urls_are_paths(tmp_path, start):
    path = tmp_path / "my cells.h5ad"
    path.touch()
    found = source_of(start + str(path).replace(" ", "%20"))
    assert (found.url, found.files) == (None, [str(path)])


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("s3://me:hunter2@bucket/a.h5ad", "aws s3 cp"),
        ("gs://bucket/a.h5ad", "gcloud storage"),
        ("ftp://x.org/a.h5ad", "over https://"),
        ("scp://x.org/a.h5ad", "copy the file here"),
        ("file://server/a.h5ad", "copy the file here"),
    ],
)
def test_other_schemes_are_refused_with_what_there_is(source, advice):
    with pytest.raises(UserError, match=r"a source is a path, file:///path, http://") as caught:
        source_of(source)
    assert advice in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.h5ad")
    with pytest.raises(UserError, match=r"a\.h5ad', a named pipe \(FIFO\), not a file"):
        source_of(str(tmp_path / "a.h5ad"))
    with pytest.raises(UserError, match="a device or a socket, not a file"):
        source_of("/dev/null")


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["zarr.json"], "a zarr store; in Python: anndata.read_zarr"),
        (["cells_x_genes.mtx", "cells_x_genes.barcodes.txt"], "kb count --h5ad"),
        (["quants_mat.mtx", "quants_mat_rows.txt"], "alevin-fry's"),
        (
            ["filtered/matrix.mtx", "raw/matrix.mtx.gz"],
            r"name one of its folders: .*/filtered, .*/raw",
        ),
    ],
)
def test_folders_of_other_programs(tmp_path, names, advice):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=advice):
        source_of(str(tmp_path))


def test_a_folder_of_geo_has_a_name_before_its_names(tmp_path):
    names = [f"GSM1_{name}" for name in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz")]
    for name in [*names, "GSM1_matrix.mtx.gz.md5"]:
        (tmp_path / name).touch()
    assert source_of(str(tmp_path)).files == [str(tmp_path / name) for name in names]
