"""A Snakemake in which none of the parts that are not documented is where it was."""

import pytest

from tests.workflow.test_interrupts import assert_same

CHANGE = "run: plain\ndatasets: {plain: {leiden: {resolution: 0.7}}}"


@pytest.mark.long
def test_a_run_goes_on_without_snakemakes_own_parts(done, tmp_path):
    """It removes what no longer holds, makes the same results, and says what it does without."""
    expected = done.at(tmp_path / "usual").over(CHANGE)
    usual = expected.run()
    workflow = done.at(tmp_path / "work").clone(tmp_path / "code").over(CHANGE)
    module = workflow.code / "scripts/scrna/workflow/snakemake_internals.py"
    text, call = module.read_text(), "return function(*args, **kwargs)"
    assert text.count(call) == 1
    module.write_text(text.replace(call, "raise AttributeError(f'no {function.__name__}')"))
    said = workflow.run()
    removed = [line for line in usual.splitlines() if "were removed, so that none" in line]
    assert len(removed) == 1
    assert removed[0].partition(";")[0] in said
    for loss in (
        "what is due is asked of snakemake --detailed-summary",
        "the run ends up to 1 s later",
    ):
        assert said.count(loss) == 1
    assert_same(*(w.folder / "results/plain/final.zarr" for w in (workflow, expected)))
