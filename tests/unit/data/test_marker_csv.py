"""A large table as CSV: to the letter as pandas and Python write it."""

import io

import numpy as np
import pandas as pd
import pytest

from scrna.data.marker_csv import as_csv


def test_the_table_is_csv_whatever_is_in_it():
    names = ["plain", "with, comma", 'with "quotes"', "two\nlines", ""]
    scores = np.array([1.5, np.nan, -1e-30, 123456.789, np.inf], dtype=np.float32)
    found = pd.DataFrame({"group": list("aabbb"), "names": names, "scores": scores})
    found["pvals"] = [0.1, 1e-300, 0, 1, 1 / 3]
    text = b"".join(as_csv(found)).decode()
    again = pd.read_csv(
        io.StringIO(text, newline=""), keep_default_na=False, na_values={"scores": [""]}
    )
    assert again["names"].tolist() == names
    np.testing.assert_allclose(again["scores"], scores, rtol=1e-5)
    np.testing.assert_allclose(again["pvals"], found["pvals"], rtol=1e-5)
    assert text.splitlines()[1] == "a,plain,1.5,0.1"
    assert text.splitlines()[2] == 'a,"with, comma",,1e-300'


@pytest.mark.parametrize("n", [0, 1, 8191, 8192, 8193, 20_000])
def test_a_long_table_is_written_as_pandas_does(n):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=n).astype(np.float32)
    table = {"group": pd.Categorical(rng.choice(["100 %s", "a,b", "β"], n)), "scores": scores}
    table["names"] = rng.choice(["CD4", "%d", '"', ""], n)
    table["pvals"] = 10 ** rng.uniform(-320, 0, n)
    table["rounded"] = np.where(rng.random(n) < 0.1, np.nan, (scores * 1000).round())
    found = pd.DataFrame(table)
    expected = found.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    assert b"".join(as_csv(found)).decode() == expected.replace(',"",', ",,")


RNG = np.random.default_rng(0)
ANY = np.concatenate(
    [
        RNG.integers(0, 2**64, 100_000, dtype=np.uint64).view(float),  # of every size, also NaN
        10 ** RNG.uniform(-12, 12, 100_000),
        RNG.integers(-(2**20), 2**20, 100_000) / 1000,
        np.arange(1025) / 1024,  # fractions that are the middle between two texts
    ]
)
EDGES = np.outer(10.0 ** np.arange(-307, 308), [1, 0.9999994, 0.9999996, 9.999995, 1.2, 1.00001])
EDGES = np.concatenate([EDGES.ravel(), [0.0, 5e-324, 2.2e-308, 1.7e308, np.inf, np.nan, 1234565]])


@pytest.mark.parametrize("values", [ANY, ANY[100_000:].astype("f4"), EDGES, np.nextafter(EDGES, 0)])
def test_numbers_are_written_to_the_letter(values):
    values = np.concatenate([values, -values])
    found = b"".join(as_csv(pd.DataFrame({"scores": values}))).decode().splitlines()
    expected = ["" if np.isnan(value) else f"{value:.6g}" for value in values.tolist()]
    assert found == ["scores", *expected]
