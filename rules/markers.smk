"""Genes that tell groups of cells apart."""


rule markers:
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        clusters=targets.marker_groups,
    output:
        out="results/{dataset}/{rep}/markers.h5",
        table="results/{dataset}/{rep}/markers.csv",
    log:
        "logs/{dataset}/{rep}/markers.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/markers.tsv"
    priority: BEFORE_PICTURES
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("markers"),
    params:
        settings=settings("markers"),
        code=code("markers"),
        untracked=params.in_memory_or_blocks,
    message:
        "{wildcards.dataset}/{wildcards.rep}: marker genes"
    script:
        "../scripts/markers.py"
