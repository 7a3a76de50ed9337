"""What a person takes away."""


rule final:
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        steps=step_files,
    output:
        out=directory("results/{dataset}/final.zarr"),
    log:
        "logs/{dataset}/final.log",
    benchmark:
        "benchmarks/{dataset}/final.tsv"
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=memory("final"),
    params:
        settings=settings("final"),
        code=code("final"),
    message:
        "{wildcards.dataset}: gather everything in one AnnData"
    script:
        "../scripts/final.py"


rule h5ad:
    input:
        store=rules.final.output.out,
    output:
        out="results/{dataset}/final.h5ad",
    log:
        "logs/{dataset}/h5ad.log",
    benchmark:
        "benchmarks/{dataset}/h5ad.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("final"),
    params:
        code=code("h5ad"),
    message:
        "{wildcards.dataset}: the AnnData as h5ad"
    script:
        "../scripts/h5ad.py"


rule figures:
    input:
        counts=rules.convert.output.counts,
        qc=rules.qc.output.out,
        filtered=rules.filter.output.out,
        table=rules.filter.output.table,
        hvg=rules.hvg.output.out,
        steps=figure_files,
    output:
        out=directory("results/{dataset}/figures"),
    log:
        "logs/{dataset}/figures.log",
    benchmark:
        "benchmarks/{dataset}/figures.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("figures"),
    params:
        settings=settings("figures"),
        code=code("figures"),
    message:
        "{wildcards.dataset}: pictures"
    script:
        "../scripts/figures.py"
