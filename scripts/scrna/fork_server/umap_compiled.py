"""UMAP, imported as `scrna.compiled` does: by its file, since the path here has no `scrna`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "compiled.py"))["import_umap"]()
