"""The neighbor graph of a representation, and pictures of it."""


rule neighbors:
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
