"""Pages in the system's Chromium, without a network, and what they have said by the end."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ARGS = "--no-sandbox --disable-quic --no-first-run --disable-background-networking"
ARGS += " --disable-component-update --disable-sync --enable-unsafe-swiftshader"  # WebGL on the CPU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable]:
    """Start Chromium, with further arguments; each is closed at the end."""
    chromium = shutil.which("chromium")
    if chromium is None:
        said = "there is no chromium on the PATH (apt-get install chromium)"
        if os.environ.get("SCRNA_TEST_BROWSER") == "1":
            pytest.fail(said)
        pytest.skip(said)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = []

        def start(*more: str):
            args = [*ARGS.split(), *more]
            started.append(playwright.chromium.launch(executable_path=chromium, args=args))
            return started[-1]

        yield start
        for browser in started:
            browser.close()


@pytest.fixture(scope="session")
def chromium(launch):
    """Return the Chromium that the tests share."""
    return launch()


class Visits:
    """Opens files, which may ask for nothing else and have no error.

    Parameters
    ----------
    chromium
        The browser.
    """

    def __init__(self, chromium):
        self.chromium = chromium
        self.wrong, self.contexts = [], []

    def __call__(self, path: Path, *, width=1100, height=900, browser=None, wait=True, **context):
        viewport = {"width": width, "height": height}
        self.contexts.append((browser or self.chromium).new_context(viewport=viewport, **context))
        page = self.contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", self._refuse)
        page.on("request", lambda request: self._check(request.url, path.as_uri()))
        page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url[:200]}"))
        page.goto(path.as_uri())
        if wait:
            page.wait_for_selector("#cell-map[data-state=drawn]")
        return page

    def close(self) -> None:
        """Close the pages, and fail where something was wrong."""
        for context in self.contexts:
            context.close()
        assert self.wrong == []

    def _hear(self, said) -> None:
        if said.type == "error":  # of warnings, SwiftShader has some of its own
            self.wrong.append(said.text)

    def _refuse(self, dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _check(self, url: str, own: str) -> None:
        if url.split("#")[0] != own and not url.startswith(("data:", "blob:")):
            self.wrong.append(f"asked for {url[:200]}")


@pytest.fixture
def show(chromium) -> Iterator[Visits]:
    """Open pages for one test."""
    visits = Visits(chromium)
    yield visits
    visits.close()


@pytest.fixture(scope="module")
def shared(chromium) -> Iterator[Visits]:
    """Open pages for all tests of a file."""
    visits = Visits(chromium)
    yield visits
    visits.close()


@pytest.fixture(scope="session")
def write_map(tmp_path_factory) -> Callable[..., Path]:
    """Write a page that is nothing but a map of so many cells."""

    def write(n: int, name: str = "B cells", *, max_cells: int = 10**6, n_genes: int = 5) -> Path:
        from scrna.report.cell_map import cell_map

        rng = np.random.default_rng(0)
        clusters = rng.integers(0, 4, n)
        xy = (np.array([[0, 0], [9, 0], [0, 9], [9, 9]])[clusters] + rng.normal(size=(n, 2))).T
        types = np.where(np.arange(n) % 10 == 0, -1, clusters % 2)
        made = cell_map(
            {"UMAP, pca": xy.T, "UMAP, harmony": xy.T * 2, "t-SNE, pca": xy.T[:, ::-1] - 50},
            {
                "leiden (pca)": pd.Categorical.from_codes(clusters, list("0123")),
                "cell_type": pd.Categorical.from_codes(types, [name, "T cells"]),
            },
            {"counts (log10)": np.where(np.arange(n) % 5 == 0, np.nan, rng.normal(3, 1, n))},
            lambda cells: {
                f"GENE{i}": np.where(clusters[cells] == i % 4, rng.gamma(2, 1, len(cells)), 0)
                for i in range(n_genes)
            },
            max_cells=max_cells,
            seed=5,
        )
        page = tmp_path_factory.mktemp("map") / "page.html"
        head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cells</title>'
        head += '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        page.write_text(f"{head}<body><h1>Cells</h1>{made.html}</body></html>")
        return page

    return write
