"""Purpose: get the counts of a dataset of samples onto disk: each sample by itself, then all as one.

Inputs: the sources that the sample sheet names, and its columns.

Outputs: resources/{dataset}/ (downloads), results/{dataset}/samples/{sample}/counts.zarr,
results/{dataset}/merged.zarr, results/{dataset}/counts.zarr, each with its summary (.json).
"""


wildcard_constraints:
    sample=named(samples.samples),


rule download_sample:
    """Download the file of a sample whose source is a URL."""
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
    """Find the raw counts of a sample, check them and write them as zarr."""
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
    """Put the cells of all samples one below the other, with one list of genes."""
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
    """Add the columns of the sheet to obs; the counts are hard links."""
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
