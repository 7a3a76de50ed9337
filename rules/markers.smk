"""Purpose: marker genes of the clusters, or of the groups of an obs column; names of cell types for them.

Inputs: counts.zarr, the filter, the normalisation, the clusters.

Outputs: results/{dataset}/{rep}/markers.h5, markers.csv, cell_type_names.h5, cell_type_names.csv;
markers_NAME.h5, markers_NAME.csv for each further grouping that markers.groupby lists.
"""


rule markers:
    """Rank the marker genes of each group."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        clusters=targets.marker_groups,
    output:
        out="results/{dataset}/{rep}/markers{grouping}.h5",
        table="results/{dataset}/{rep}/markers{grouping}.csv",
    log:
        "logs/{dataset}/{rep}/markers{grouping}.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/markers{grouping}.tsv"
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
        "{wildcards.dataset}/{wildcards.rep}: marker genes (markers{wildcards.grouping}.csv)"
    script:
        "../scripts/markers.py"


rule cell_type_names:
    """Name clusters by the marker genes of cell types."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        clusters=targets.named_groups,
    output:
        out="results/{dataset}/{rep}/cell_type_names.h5",
        table="results/{dataset}/{rep}/cell_type_names.csv",
    log:
        "logs/{dataset}/{rep}/cell_type_names.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/cell_type_names.tsv"
    priority: BEFORE_PICTURES
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=memory("cell_type_names"),
    params:
        settings=settings("cell_type_names"),
        code=code("cell_type_names"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: names of cell types"
    script:
        "../scripts/cell_type_names.py"
