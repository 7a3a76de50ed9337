"""Which values of a label column mean that a cell has no label."""

import numpy as np
import pandas as pd
import pytest

from scrna.config.settings import complete
from scrna.data.labels import numbered_labels


def defaults():
    config = complete({"run": "d", "datasets": {"d": {"kind": "simulate"}}})
    return config["datasets"]["d"]["label_missing"]


LABELS = ["T", "unknown", "B", None, "NA", "T", "Unlabelled", " nan ", "", "Unassigned", "None"]


@pytest.mark.parametrize("dtype", [object, "str", "category"])
def test_the_usual_words_for_nothing_are_no_label(dtype):
    found = numbered_labels(pd.Series(LABELS, dtype=dtype), defaults())
    assert (found >= 0).tolist() == [label in ("T", "B") for label in LABELS]
    assert found[0] == found[5] != found[2]


def test_words_that_only_contain_one_are_labels():
    labels = pd.Series(["Na+ transporter", "unknown T", "nano", "others"])
    assert (numbered_labels(labels, defaults()) >= 0).all()


def test_a_dataset_may_say_which_values_mean_none():
    labels = pd.Series(["T", "doublet", "unknown"])
    assert (numbered_labels(labels, ["Doublet"]) >= 0).tolist() == [True, False, True]
    assert (numbered_labels(labels, []) >= 0).all()


@pytest.mark.parametrize("values", [[-1, 0, 5, 0], [-1.0, 0, 5, 0], [np.nan, 0, 5, 0]])
def test_numbers_are_labels_too(values):
    found = numbered_labels(pd.Series(values), ["-1"])
    assert (found >= 0).tolist() == [False, True, True, True]
    assert found[1] == found[3] != found[2]


def test_no_cell_has_a_label():
    assert (numbered_labels(pd.Series([None, "nan"], dtype=object), defaults()) == -1).all()
    assert len(numbered_labels(pd.Series([], dtype=object), defaults())) == 0
