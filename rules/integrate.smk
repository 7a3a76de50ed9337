"""Purpose: representations of the cells, before and after integration, and scores of the integration.

Inputs: counts.zarr, the step files of preprocess.smk.

Outputs: results/{dataset}/pca/pca.h5, harmony/harmony.h5, integration_scores.h5, integration.h5, integration.csv.
"""


rule pca:
    """Compute principal components."""
    input:
        counts=rules.convert.output.counts,
        qc=rules.qc.output.out,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        hvg=rules.hvg.output.out,
    output:
        out="results/{dataset}/pca/pca.h5",
    log:
        "logs/{dataset}/pca.log",
    benchmark:
        "benchmarks/{dataset}/pca.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("pca"),
    params:
        settings=settings("pca"),
        code=code("pca"),
        untracked=params.in_memory_or_blocks,
    message:
        "{wildcards.dataset}: principal components"
    script:
        "../scripts/pca.py"


rule harmony:
    """Integrate the batches with Harmony."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        pca=rules.pca.output.out,
    output:
        out="results/{dataset}/harmony/harmony.h5",
    log:
        "logs/{dataset}/harmony.log",
    benchmark:
        "benchmarks/{dataset}/harmony.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("harmony"),
    params:
        settings=settings("harmony"),
        code=code("harmony"),
    message:
        "{wildcards.dataset}: integrate the batches with Harmony"
    script:
        "../scripts/harmony.py"


rule integration_scores:
    """Score the representations before and after integration, as far as that needs no clusters."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        pca=rules.pca.output.out,
        harmony=rules.harmony.output.out,
    output:
        out="results/{dataset}/integration_scores.h5",
    log:
        "logs/{dataset}/integration_scores.log",
    benchmark:
        "benchmarks/{dataset}/integration_scores.tsv"
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=memory("integration_scores"),
    params:
        settings=settings("integration_scores"),
        code=code("integration_scores"),
    message:
        "{wildcards.dataset}: scores of the integration"
    script:
        "../scripts/integration_scores.py"


rule integration:
    """Compare before and after integration, in scores and a sentence."""
    input:
        scores=rules.integration_scores.output.out,
        leiden=expand("results/{{dataset}}/{rep}/leiden.h5", rep=REPS),
    output:
        out="results/{dataset}/integration.h5",
        table=report(
            "results/{dataset}/integration.csv",
            caption="captions/integration.rst",
            category="{dataset}",
            subcategory="Tables",
            labels={"table": "integration"},
        ),
    log:
        "logs/{dataset}/integration.log",
    benchmark:
        "benchmarks/{dataset}/integration.tsv"
    priority: BEFORE_PICTURES
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("integration"),
    params:
        settings=settings("integration"),
        code=code("integration"),
    message:
        "{wildcards.dataset}: compare before and after integration"
    script:
        "../scripts/integration.py"
