"""Purpose: get the counts of a dataset onto disk, once, in the form that all steps read.

Inputs: the source of the dataset (URL, file or folder), or the settings of the simulator.

Outputs: resources/ (downloads), results/{dataset}/counts.zarr, counts.json.
"""


rule download:
    """Download the file of a dataset whose source is a URL."""
    output:
        out="resources/{dataset}.{suffix}",
    log:
        "logs/{dataset}/download.{suffix}.log",
    benchmark:
        "benchmarks/{dataset}/download.{suffix}.tsv"
    wildcard_constraints:
        dataset=targets.downloaded(),
        suffix="h5ad|h5",
    conda:
        environment
    threads: 1
    resources:
        mem_mb=500,
    params:
        settings=params.address,
        untracked=params.checksum,
    message:
        "{wildcards.dataset}: download"
    script:
        "../scripts/download.py"


rule simulate:
    """Simulate counts, for a dataset of kind simulate."""
    output:
        h5ad="resources/{dataset}.h5ad",
    log:
        "logs/{dataset}/simulate.log",
    benchmark:
        "benchmarks/{dataset}/simulate.tsv"
    wildcard_constraints:
        dataset=targets.simulated(),
    conda:
        environment
    threads: session.cores
    resources:
        mem_mb=4000,
    params:
        settings=settings("simulate"),
        code=code("simulate"),
    message:
        "{wildcards.dataset}: simulate counts"
    script:
        "../scripts/simulate.py"


rule convert:
    """Find the raw counts of the source, check them and write them as zarr."""
    input:
        source=targets.source_files,
    output:
        counts=directory("results/{dataset}/counts.zarr"),
        summary="results/{dataset}/counts.json",
    log:
        "logs/{dataset}/convert.log",
    benchmark:
        "benchmarks/{dataset}/convert.tsv"
    wildcard_constraints:
        dataset=named(set(session.datasets) - set(session.sheets)),
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=3000,
    params:
        settings=params.reading,
        code=code("convert"),
        untracked=params.required_columns,
    message:
        "{wildcards.dataset}: find the raw counts and write them as zarr"
    script:
        "../scripts/convert.py"
