"""How the tests of sources read one and compare matrices."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scrna.sources import open_source


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
