"""UMAP's library: what numba compiles of it is kept for other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from scrna.methods import umap_compiled

SCRIPTS = Path(__file__).parents[3] / "scripts"
#: Imports UMAP as a worker's parent does, makes a graph and lays it out as a worker does; prints
#: how often numba found what functions of UMAP and pynndescent need, and which it compiled.
CODE = """
import json, sys
sys.path.append(sys.argv[1])
from scrna.methods.umap_compiled import import_umap
import_umap()
import anndata, numpy as np, scanpy
components = np.random.default_rng(0).normal(size=(512, 50)).astype(np.float32)
adata = anndata.AnnData(obsm={"X_pca": components})
scanpy.pp.neighbors(adata, n_neighbors=15, use_rep="X_pca", random_state=0)
scanpy.tl.umap(adata, maxiter=5, random_state=0)
from numba.core.dispatcher import Dispatcher
found, made = 0, set()
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("umap", "pynndescent"):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.__module__ == name:
                found += sum(function.stats.cache_hits.values())
                if not function.stats.cache_hits:
                    made |= {function.__name__ for _ in function.signatures}
print(json.dumps([found, sorted(made)]))
"""


@pytest.mark.slow  # where it has never been compiled before
def test_a_second_process_compiles_nothing_of_umap():
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", CODE, str(SCRIPTS)],
            env={**os.environ, "NUMBA_DISABLE_JIT": "0"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found, made = json.loads(ran.stdout)
    assert made == []
    assert found > 30


def doubled(x):
    return 2 * x


def test_of_what_has_no_signature_nothing_is_kept():
    with umap_compiled._keeping_what_has_a_signature():
        later, named = numba.njit(doubled), numba.njit(fastmath=True)(doubled)
        at_once = numba.njit("f8(f8)")(doubled)
        asked_not_to = numba.njit("f8(f8)", cache=False)(doubled)
    kept = [type(f._cache).__name__ for f in (later, named, at_once, asked_not_to)]
    assert kept == ["NullCache", "NullCache", "FunctionCache", "NullCache"]
    assert {f(2.0) for f in (later, named, at_once, asked_not_to)} == {4.0}
    assert type(numba.njit("f8(f8)")(doubled)._cache).__name__ == "NullCache"


def test_where_a_private_function_is_gone_umap_is_imported_all_the_same(monkeypatch):
    umap_compiled.import_umap()
    layouts = sys.modules["umap.layouts"]
    monkeypatch.delattr(layouts, "_nb_optimize_layout_euclidean_single_epoch")
    umap_compiled.import_umap()


def test_where_its_modules_lie_elsewhere_umap_is_imported_all_the_same(monkeypatch):
    umap_compiled.import_umap()
    for module in {module for module, _ in umap_compiled._COMPILED}:
        monkeypatch.delitem(sys.modules, module)
    umap_compiled.import_umap()
    assert all(module not in sys.modules for module, _ in umap_compiled._COMPILED)
