"""Photograph the top of a report for the README: python docs/report_picture.py [REPORT].

Writes docs/report.png from ``results/demo/report.html``, the report of ``make run``, in the
Chromium of the system, driven by Playwright. Both are needed for this script and for tests/browser
only.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
OUT = HERE / "report.png"
#: Size of the window in pixels, and of the picture.
WIDTH, HEIGHT = 1100, 1160
#: WebGL on the CPU; no sandbox, so that it also runs as root in a container.
ARGS = ["--no-sandbox", "--enable-unsafe-swiftshader"]
#: Colours of the picture: enough for a report, and a third of the bytes.
COLOURS = 128


def photograph(report: Path, out: Path) -> None:
    """Save a picture of the top of a report, once its map of the cells is drawn."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("#cell-map[data-state=drawn]")
        page.screenshot(path=out)
        chromium.close()
    with Image.open(out) as picture:
        picture.convert("RGB").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo/report.html"), OUT)
