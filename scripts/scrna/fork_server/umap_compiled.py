"""UMAP as `scrna.compiled` imports it, for the fork server, whose path that is not on."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "compiled.py"))["import_umap"]()
