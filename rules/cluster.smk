"""Purpose: clusters of the cells.

Inputs: results/{dataset}/{rep}/neighbors.h5.

Outputs: results/{dataset}/{rep}/leiden.h5, louvain.h5.
"""


rule leiden:
    """Cluster the cells with Leiden."""
    input:
        neighbors=rules.neighbors.output.out,
    output:
        out="results/{dataset}/{rep}/leiden.h5",
    log:
        "logs/{dataset}/{rep}/leiden.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/leiden.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("leiden"),
    params:
        settings=settings("leiden"),
        code=code("leiden"),
        untracked=params.clusters_named("leiden"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: Leiden clusters"
    script:
        "../scripts/leiden.py"


rule louvain:
    """Cluster the cells with Louvain, if it is enabled."""
    input:
        neighbors=rules.neighbors.output.out,
    output:
        out="results/{dataset}/{rep}/louvain.h5",
    log:
        "logs/{dataset}/{rep}/louvain.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/louvain.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("louvain"),
    params:
        settings=settings("louvain"),
        code=code("louvain"),
        untracked=params.clusters_named("louvain"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: Louvain clusters"
    script:
        "../scripts/louvain.py"
