"""Purpose: quality control, doublets, filter, normalisation and highly variable genes.

Inputs: counts.zarr.

Outputs: results/{dataset}/qc.h5, doublets.h5, doublets.csv, filter.h5, filter.csv, normalize.h5, hvg.h5, scores.h5. The matrix itself is not written again.
"""


rule qc:
    """Compute quality metrics of cells and genes."""
    input:
        counts=rules.convert.output.counts,
    output:
        out="results/{dataset}/qc.h5",
    log:
        "logs/{dataset}/qc.log",
    benchmark:
        "benchmarks/{dataset}/qc.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("qc"),
    params:
        settings=settings("qc"),
        code=code("qc"),
    message:
        "{wildcards.dataset}: quality metrics"
    script:
        "../scripts/qc.py"


rule doublets:
    """Score doublets in each sample."""
    input:
        counts=rules.convert.output.counts,
    output:
        out="results/{dataset}/doublets.h5",
        table=report(
            "results/{dataset}/doublets.csv",
            caption="captions/doublets.rst",
            category="{dataset}",
            subcategory="Tables",
            labels={"table": "doublets"},
        ),
    log:
        "logs/{dataset}/doublets.log",
    benchmark:
        "benchmarks/{dataset}/doublets.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("doublets"),
    params:
        settings=settings("doublets"),
        code=code("doublets"),
    message:
        "{wildcards.dataset}: doublets"
    script:
        "../scripts/doublets.py"


rule filter:
    """Choose the cells and genes to keep."""
    input:
        counts=rules.convert.output.counts,
        qc=rules.qc.output.out,
        doublets=targets.doublets,
    output:
        out="results/{dataset}/filter.h5",
        table=report(
            "results/{dataset}/filter.csv",
            caption="captions/filter.rst",
            category="{dataset}",
            subcategory="Tables",
            labels={"table": "filter"},
        ),
    log:
        "logs/{dataset}/filter.log",
    benchmark:
        "benchmarks/{dataset}/filter.tsv"
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=memory("filter"),
    params:
        settings=settings("filter"),
        code=code("filter"),
        untracked=params.needed,
    message:
        "{wildcards.dataset}: choose cells and genes to keep"
    script:
        "../scripts/filter.py"


rule normalize:
    """Compute the size factor of each cell."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
    output:
        out="results/{dataset}/normalize.h5",
    log:
        "logs/{dataset}/normalize.log",
    benchmark:
        "benchmarks/{dataset}/normalize.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("normalize"),
    params:
        settings=settings("normalize"),
        code=code("normalize"),
    message:
        "{wildcards.dataset}: size factors"
    script:
        "../scripts/normalize.py"


rule hvg:
    """Select highly variable genes."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
    output:
        out="results/{dataset}/hvg.h5",
    log:
        "logs/{dataset}/hvg.log",
    benchmark:
        "benchmarks/{dataset}/hvg.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("hvg"),
    params:
        settings=settings("hvg"),
        code=code("hvg"),
        untracked=params.in_memory_or_blocks,
    message:
        "{wildcards.dataset}: highly variable genes"
    script:
        "../scripts/hvg.py"


rule scores:
    """Score gene sets and the phases of the cell cycle in every cell."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
    output:
        out="results/{dataset}/scores.h5",
    log:
        "logs/{dataset}/scores.log",
    benchmark:
        "benchmarks/{dataset}/scores.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("scores"),
    params:
        settings=settings("scores"),
        code=code("scores"),
        untracked=params.in_memory_or_blocks,
    message:
        "{wildcards.dataset}: scores of gene sets"
    script:
        "../scripts/scores.py"
