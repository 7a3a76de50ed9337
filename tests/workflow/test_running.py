"""What a user types, and what the run shows and leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

RULES = "download simulate convert qc filter normalize hvg pca harmony neighbors umap tsne leiden"
RULES = [*RULES.split(), *"louvain markers trajectory integration_scores integration final".split()]
RULES += ["h5ad", "figures", "matrix", "qc_figures", "marker_figures", "report", "doublets"]
RULES += ["scores", "cell_type_names", "merge", "metadata", "download_sample", "convert_sample"]
#: Rules of a sample that do with its file what another rule does with a dataset's.
OF_SAMPLE = {"download_sample": "download", "convert_sample": "convert"}
#: Rules that the demo has no job of.
NOT_IN_DEMO = {"download", "louvain", "h5ad", "doublets", "scores", "cell_type_names"}
NOT_IN_DEMO |= {"merge", "metadata", *OF_SAMPLE}
PROFILES = ["cpu", "slurm", "spark", "workstation"]


def snakemake(*arguments, folder) -> subprocess.CompletedProcess:
    """Run Snakemake as it is typed, in a folder."""
    command = [sys.executable, "-m", "snakemake", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def job_table(output: str) -> dict[str, int]:
    """The table of a dry run: jobs by rule."""
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


def rule_texts(code: Path) -> dict[str, str]:
    """The text of each rule of rules/."""
    text = "\n".join(file.read_text() for file in sorted((code / "rules").glob("*.smk")))
    parts = re.split(r"^rule (\w+):\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


# ------------------------------------------------------------------------------------ before a run


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_by_its_name_in_a_fresh_clone(done, tmp_path, profile):
    clone = done.clone(tmp_path / "clone").code
    shown = snakemake("--profile", profile, "-n", folder=clone)
    assert shown.returncode == 0, shown.stderr
    twice = "neighbors umap tsne leiden markers trajectory marker_figures".split()
    once = "simulate convert qc filter normalize matrix hvg pca harmony integration final".split()
    once += ["integration_scores", "qc_figures", "report", "all"]
    wanted = dict.fromkeys(twice, 2) | dict.fromkeys(once, 1) | {"figures": 4, "total": 33}
    assert job_table(shown.stdout) == wanted
    assert re.search(r"^backend: (cpu|gpu) \(.+\)", shown.stdout, re.MULTILINE)


@pytest.mark.parametrize("kind", ["--rulegraph", "--dag"])
def test_a_graph_is_all_that_stdout_holds(fresh, kind):
    shown = snakemake("--profile", "cpu", kind, "--directory", fresh.folder, folder=fresh.code)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("digraph snakemake_dag {")
    assert shown.stdout.rstrip().endswith("}")
    assert shown.stdout.count("digraph") == 1
    labels = re.findall(r'label = "(\w+)', shown.stdout)
    assert {*labels} == {*RULES, "all"} - NOT_IN_DEMO


def test_rules_have_the_names_of_the_design(fresh):
    listed = snakemake("--list-rules", "--directory", fresh.folder, folder=fresh.code)
    names = re.findall(r"^\w+", listed.stdout, re.MULTILINE)  # each above its docstring
    assert {*names} == {*RULES, "all"}
    scripts = {path.stem for path in (fresh.code / "scripts").glob("*.py")}
    assert scripts == {*RULES} - {*OF_SAMPLE}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_says_all_that_a_rule_has_to_say(code, rule):
    text = rule_texts(code)[rule]
    keys = re.findall(r"^    (\w+):", text, re.MULTILINE)
    assert {*"output log benchmark conda threads resources params message script".split()} <= {
        *keys
    }
    assert re.search(r"^        mem_mb=", text, re.MULTILINE)
    script = OF_SAMPLE.get(rule, rule)
    assert f'"../scripts/{script}.py"' in text
    # a download's code is no reason to fetch a file again
    assert (f'code=code("{script}")' in text) == (script != "download")
    log = re.search(r'log:\s+"logs/(.+)\.log"', text)[1]
    assert re.search(r'benchmark:\s+"benchmarks/(.+)\.tsv"', text)[1] == log


def test_a_file_is_asked_for_by_its_name(fresh):
    asked = fresh.over("base.yaml").run("results/toy/pca/umap.h5", options=("-n",))
    steps = "simulate convert qc filter normalize hvg pca neighbors umap".split()
    assert job_table(asked) == dict.fromkeys(steps, 1) | {"total": 9}


def test_three_datasets(fresh):
    table = job_table(fresh.over("base.yaml", "three.yaml").run(options=("-n",)))
    assert table["final"] == table["simulate"] == 3
    assert table["harmony"] == 1
    assert table["umap"] == 4
    assert table["trajectory"] == 4
    assert "tsne" not in table


# ----------------------------------------------------------------------------------- after the run


def test_the_run_tells_its_backend_and_where_the_results_lie(done):
    assert done.output.count("backend: cpu (as the config asks)") == 1
    last = done.output.split("100%) done")[1]
    assert "toy: results/toy/report.html, results/toy/final.zarr (anndata" in last
    assert "plain: results/plain/final.zarr" in last
    assert "toy/harmony: Leiden clusters" in done.output  # a rule's message


def test_the_run_ends_with_a_table_of_its_steps(done):
    head, *steps = done.output.split("100%) done")[1].split("\n\n")[1].splitlines()
    assert head.split() == ["step", "time", "memory", "device"]
    assert re.match(r"sum, done in .* s", steps.pop())
    if "shorter steps" in steps[-1]:
        assert len(steps) == 37 + 1
    for line in steps[:37]:
        assert re.fullmatch(r"\w+ (toy|plain)(/\w+)? +[\d.]+ s +(\d+ MB|-) +CPU", line)
    labels = [" ".join(line.split()[:2]) for line in steps]
    order = "simulate toy, convert toy, qc toy, pca toy/pca, neighbors toy/pca, final toy"
    order = order.split(", ")
    shown = [label for label in labels if label in order]
    assert shown == [label for label in order if label in labels]  # one may be a shorter step
    assert {"convert toy", "final toy"} <= {*shown}


FAILS = {
    "umap": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "tsne": "raise OSError(28, 'No space left on device')",
    "leiden": "raise UserError('plain: set leiden.resolution to 1')",
}


def test_a_run_that_fails_says_why_and_what_to_do(done, tmp_path):
    workflow = done.at(tmp_path / "work").clone(tmp_path / "clone")
    for rule, fault in FAILS.items():
        script = workflow.code / f"scripts/{rule}.py"
        text = script.read_text().rpartition("if __name__")[0]
        fault = f"from scrna.errors import UserError\n    {fault}"
        text += f"@step\ndef broken(*, backend, **rest):\n    {fault}\n\n\n"
        script.write_text(f"{text}run(broken, snakemake)\n")
        (workflow.folder / f"results/plain/pca/{rule}.h5").unlink()
    (workflow.folder / "results/plain/pca/louvain.h5").unlink()
    output = workflow.over("run: plain").run(fails=True)
    assert "Logfile logs" not in output  # nor its traceback
    assert "Traceback" not in output
    said = output.split("Look above for error messages\n")[1]
    order = ["leiden", "tsne", "umap"]
    leiden, tsne, umap = (
        re.search(rf"^{rule} plain/pca failed:\n((?:  .*\n)+)", said, re.MULTILINE)[1]
        for rule in order
    )
    assert leiden == (
        "    plain: set leiden.resolution to 1\n  its log: logs/plain/pca/leiden.log\n"
    )
    assert "    OSError: [Errno 28] No space left on device\n  → The disk is full." in tsne
    assert "  → Most likely the computer ran out of memory" in umap
    assert re.search(r"^Left to do: .*final plain, h5ad plain", said, re.MULTILINE)
    assert re.search(r"^louvain plain/pca +[\d.]+ s .* CPU$", said, re.MULTILINE)
    assert "umap" not in said.split("device\n")[1].split("\n\n")[0]
    assert "anndata.read_zarr" not in said  # the result that is there is of a run before


def test_every_job_leaves_its_log_and_its_benchmark(done):
    logs = {
        path.relative_to(done.folder / "logs") for path in (done.folder / "logs").rglob("*.log")
    }
    assert len(logs) == done.output.count("Finished jobid") - 1  # all but `all`
    for log in logs:
        text = (done.folder / "logs" / log).read_text()
        assert re.search(r"INFO \w+ done in [\d.]+ s on the CPU$", text, re.MULTILINE), log
        assert "Traceback" not in text
        assert "ERROR" not in text
        benchmark = pd.read_csv(done.folder / "benchmarks" / log.with_suffix(".tsv"), sep="\t")
        assert 0 < benchmark["s"].item() < 60, log


def test_nothing_temporary_is_left(done):
    assert not list(done.folder.rglob("*.tmp-*"))


def test_steps_that_nobody_asked_for_are_not_done(done):
    files = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*")}
    assert not [file for file in files if re.search("plain/harmony|toy/.*(louvain|tsne)", file)]
    assert "results/toy/harmony/leiden.h5" in files
    assert "results/plain/pca/leiden.h5" in files


@pytest.mark.parametrize("rule", ["filter", "normalize"])
def test_steps_on_tables_take_no_time(done, rule):
    """1.5 s, the process's start included; twice that here, where other tests run meanwhile."""
    for dataset in ("toy", "plain"):
        log = (done.folder / f"logs/{dataset}/{rule}.log").read_text()
        assert float(re.search(r"([\d.]+) s since the process started", log)[1]) < 3


def test_the_result_opens_and_holds_every_step(done):
    adata = ad.read_zarr(done.folder / "results/toy/final.zarr")
    assert {*adata.obsm} == {
        *"X_pca X_pca_harmony X_umap X_umap_pca X_diffmap X_diffmap_pca".split()
    }
    assert {"leiden", "leiden_pca", "dpt_pseudotime", "total_counts", "cell_type"} <= {*adata.obs}
    counts = ad.read_h5ad(done.folder / "resources/toy.h5ad")[adata.obs_names, adata.var_names]
    assert (adata.layers["counts"] != counts.X).nnz == 0
    wanted = counts.X.toarray() / np.asarray(counts.X.sum(axis=1)).reshape(-1, 1) * 1e4
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(wanted), rtol=1e-4)
    plain = ad.read_zarr(done.folder / "results/plain/final.zarr")
    assert {*plain.obsm} == {"X_pca", "X_umap", "X_tsne", "X_diffmap"}
    for step in ("qc", "umap", "final"):
        assert json.loads(plain.uns["provenance"][step])["step"] == step


# ---------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_holds_only_what_snakemake_knows(code, profile):
    """Snakemake drops a map under a key that it does not know without a word."""
    from snakemake.cli import get_argument_parser

    known = {flag for action in get_argument_parser()._actions for flag in action.option_strings}
    keys = yaml.safe_load((code / f"profiles/{profile}/profile.yaml").read_text())
    assert {key for key in keys if f"--{key}" not in known} <= {"__use_yte__", "__definitions__"}


GPU_RULES = """
rule all:
    input: "a", "b", "e", "c"
rule gpu:
    output: "{name,[abe]}"
    resources: gpu=1, mem_mb=10
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}"
rule beside:
    output: "c"
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}"
"""


def test_the_spark_profile_starts_the_next_gpu_job_and_no_more_and_others_beside_it(code, tmp_path):
    """Which of the two computes, the worker and the GPU's lock decide."""
    (tmp_path / "Snakefile").write_text(GPU_RULES)
    ran = snakemake(
        "--profile", code / "profiles/spark", "--cores", "4", "--verbose", folder=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    *gpu, c = ([float(x) for x in (tmp_path / name).read_text().split()] for name in "abec")
    first, second, third = sorted(gpu)
    assert second[0] < first[1]
    assert third[0] >= min(first[1], second[1])
    assert c[0] < third[0]
