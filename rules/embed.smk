"""Purpose: the neighbor graph of a representation, UMAP and t-SNE.

Inputs: results/{dataset}/{rep}/{rep}.h5, where rep is pca or harmony.

Outputs: results/{dataset}/{rep}/neighbors.h5, umap.h5, tsne.h5.
"""


rule neighbors:
    """Build the neighbor graph."""
    input:
        representation_of=targets.representation,
    output:
        out="results/{dataset}/{rep}/neighbors.h5",
    log:
        "logs/{dataset}/{rep}/neighbors.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/neighbors.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("neighbors"),
    params:
        settings=settings("neighbors"),
        code=code("neighbors"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: neighbor graph"
    script:
        "../scripts/neighbors.py"


rule umap:
    """Compute the UMAP embedding."""
    input:
        neighbors=rules.neighbors.output.out,
        representation_of=targets.representation,
    output:
        out="results/{dataset}/{rep}/umap.h5",
    log:
        "logs/{dataset}/{rep}/umap.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/umap.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("umap"),
    params:
        settings=settings("umap"),
        code=code("umap"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: UMAP"
    script:
        "../scripts/umap.py"


rule tsne:
    """Compute the t-SNE embedding."""
    input:
        representation_of=targets.representation,
    output:
        out="results/{dataset}/{rep}/tsne.h5",
    log:
        "logs/{dataset}/{rep}/tsne.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/tsne.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("tsne"),
    params:
        settings=settings("tsne"),
        code=code("tsne"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: t-SNE"
    script:
        "../scripts/tsne.py"
