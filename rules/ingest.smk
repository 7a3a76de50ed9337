"""From a source to the count matrix on disk: resources/, results/{dataset}/counts.zarr."""


rule download:
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
    input:
        source=targets.source_files,
    output:
        counts=directory("results/{dataset}/counts.zarr"),
        summary="results/{dataset}/counts.json",
    log:
        "logs/{dataset}/convert.log",
    benchmark:
        "benchmarks/{dataset}/convert.tsv"
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
