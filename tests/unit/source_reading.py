"""How the tests of sources read one and compare matrices."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scrna.ingest.formats import open_source


def counts(n_obs=60, n_vars=40, density=0.2, seed=0):
    """Counts as CSR, float32; some cells have none."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < density)
    dense[[5, -1]] = 0  # cells without a count
    dense[1, 0] = 1
    return sp.csr_matrix(dense.astype(np.float32))


def read(path, matrix="X", cells=None, **options):
    """All that a source gives: obs, var, the matrix of the cells asked for, number of blocks."""
    with open_source(path, **options) as source:
        table = source.cells()
        names = np.concatenate([np.empty(0, object), *table.names.pieces()])
        obs = pd.DataFrame({name: table[name] for name in table.columns}).set_axis(names)
        cells = np.ones(len(obs), bool) if cells is None else cells
        blocks = list(source.blocks(matrix, cells))
        numbers = np.concatenate([block.cells for block in blocks])
        np.testing.assert_array_equal(numbers, np.flatnonzero(cells))
        return obs, source.var(matrix), sp.vstack([b.counts for b in blocks], "csr"), len(blocks)


def assert_same(a, b):
    assert a.shape == b.shape
    assert (a != b).nnz == 0
