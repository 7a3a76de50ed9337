"""Purpose: the order of the cells along a process.

Inputs: counts.zarr, the filter, the normalisation, the neighbor graph, Leiden clusters.

Outputs: results/{dataset}/{rep}/trajectory.h5.
"""


rule trajectory:
    """Compute the diffusion map, PAGA and pseudotime."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        neighbors=rules.neighbors.output.out,
        leiden=rules.leiden.output.out,
    output:
        out="results/{dataset}/{rep}/trajectory.h5",
    log:
        "logs/{dataset}/{rep}/trajectory.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/trajectory.tsv"
    conda:
        environment
    threads: STEP_THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("trajectory"),
    params:
        settings=settings("trajectory"),
        code=code("trajectory"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: diffusion map, PAGA, pseudotime"
    script:
        "../scripts/trajectory.py"
