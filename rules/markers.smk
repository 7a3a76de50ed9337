"""Purpose: marker genes of the clusters, or of the groups of an obs column.

Inputs: counts.zarr, the filter, the normalisation, the clusters.

Outputs: results/{dataset}/{rep}/markers.h5, markers.csv.
"""


rule markers:
    """Rank the marker genes of each group."""
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
