"""The samples of a sheet: looked at, converted each by itself, merged into one count matrix."""


wildcard_constraints:
    sample=named(samples.samples),


rule download_sample:
    output:
        out="resources/{dataset}/{sample}.{suffix}",
    log:
        "logs/{dataset}/samples/{sample}/download.{suffix}.log",
    benchmark:
        "benchmarks/{dataset}/samples/{sample}/download.{suffix}.tsv"
    wildcard_constraints:
        dataset=named(samples.datasets),
        suffix="h5ad|h5",
    conda:
        environment
    threads: 1
    resources:
        mem_mb=500,
    params:
        settings=samples.address,
        untracked=samples.checksum,
    message:
        "{wildcards.dataset}/{wildcards.sample}: download"
    script:
        "../scripts/download.py"


rule convert_sample:
    input:
        source=samples.files,
    output:
        counts=directory("results/{dataset}/samples/{sample}/counts.zarr"),
        summary="results/{dataset}/samples/{sample}/counts.json",
    log:
        "logs/{dataset}/samples/{sample}/convert_sample.log",
    benchmark:
        "benchmarks/{dataset}/samples/{sample}/convert_sample.tsv"
    wildcard_constraints:
        dataset=named(samples.datasets),
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=3000,
    params:
        settings=samples.reading,
        code=code("convert"),
        untracked=samples.dataset,
    message:
        "{wildcards.dataset}/{wildcards.sample}: find the raw counts and write them as zarr"
    script:
        "../scripts/convert.py"


rule merge:
    input:
        stores=samples.stores,
    output:
        counts=directory("results/{dataset}/merged.zarr"),
        summary="results/{dataset}/merged.json",
    log:
        "logs/{dataset}/merge.log",
    benchmark:
        "benchmarks/{dataset}/merge.tsv"
    wildcard_constraints:
        dataset=named(samples.datasets),
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=2000,
    params:
        settings=samples.merging,
        code=code("merge"),
        untracked=samples.dataset,
    message:
        "{wildcards.dataset}: merge the samples"
    script:
        "../scripts/merge.py"


rule metadata:
    input:
        merged=rules.merge.output.counts,
    output:
        counts=directory("results/{dataset}/counts.zarr"),
        summary="results/{dataset}/counts.json",
    log:
        "logs/{dataset}/metadata.log",
    benchmark:
        "benchmarks/{dataset}/metadata.tsv"
    wildcard_constraints:
        dataset=named(samples.datasets),
    conda:
        environment
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=samples.columns,
        code=code("metadata"),
        untracked=params.required_columns,
    message:
        "{wildcards.dataset}: what the sheet says of the samples"
    script:
        "../scripts/metadata.py"
