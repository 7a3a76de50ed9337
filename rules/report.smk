"""Purpose: the results for people: one AnnData, figures, the report.

Inputs: counts.zarr and all step files.

Outputs: results/{dataset}/matrix.zarr, final.zarr, final.h5ad, the folders of figures, report.html.
"""


rule matrix:
    """Write the matrices of the final AnnData, while other steps use the GPU."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
    output:
        out=directory("results/{dataset}/matrix.zarr"),
    log:
        "logs/{dataset}/matrix.log",
    benchmark:
        "benchmarks/{dataset}/matrix.tsv"
    conda:
        environment
    threads: THREADS
    resources:
        mem_mb=memory("matrix"),
    params:
        settings=settings("matrix"),
        code=code("matrix"),
    message:
        "{wildcards.dataset}: matrices of the AnnData"
    script:
        "../scripts/matrix.py"


rule final:
    """Gather the results of all steps in one AnnData."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        matrix=rules.matrix.output.out,
        steps=targets.step_files,
    output:
        out=directory("results/{dataset}/final.zarr"),
    log:
        "logs/{dataset}/final.log",
    benchmark:
        "benchmarks/{dataset}/final.tsv"
    priority: BEFORE_PICTURES
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("final"),
    params:
        settings=settings("final"),
        code=code("final"),
    message:
        "{wildcards.dataset}: gather all results in one AnnData"
    script:
        "../scripts/final.py"


rule h5ad:
    """Write the final AnnData as h5ad, if final.h5ad is true."""
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


rule qc_figures:
    """Draw figures of quality control as soon as the filter is known."""
    input:
        counts=rules.convert.output.counts,
        qc=rules.qc.output.out,
        filtered=rules.filter.output.out,
        table=rules.filter.output.table,
    output:
        out=report(
            directory("results/{dataset}/qc/figures"),
            patterns=["{name}.png"],
            caption="captions/figures.rst",
            category="{dataset}",
            subcategory="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        "logs/{dataset}/qc_figures.log",
    benchmark:
        "benchmarks/{dataset}/qc_figures.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("qc_figures"),
    params:
        settings=settings("qc_figures"),
        code=code("qc_figures"),
    message:
        "{wildcards.dataset}: figures of quality control"
    script:
        "../scripts/qc_figures.py"


rule figures:
    """Draw the figures of a topic: genes, clusters, tsne or trajectory."""
    input:
        counts=rules.convert.output.counts,
        qc=rules.qc.output.out,
        filtered=rules.filter.output.out,
        hvg=rules.hvg.output.out,
        steps=targets.figure_files,
    output:
        out=report(
            directory("results/{dataset}/figures/{topic}"),
            patterns=["{name}.png"],
            caption="captions/figures.rst",
            category="{dataset}",
            subcategory="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        "logs/{dataset}/{topic}/figures.log",
    benchmark:
        "benchmarks/{dataset}/{topic}/figures.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("figures"),
    params:
        settings=settings("figures"),
        code=code("figures"),
    message:
        "{wildcards.dataset}: figures, {wildcards.topic}"
    script:
        "../scripts/figures.py"


rule marker_figures:
    """Draw markers and chosen genes."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        table=rules.markers.output.table,
        umap=rules.umap.output.out,
        clusters=targets.marker_groups,
    output:
        out=report(
            directory("results/{dataset}/{rep}/figures{grouping}"),
            patterns=["{name}.png"],
            caption="captions/marker_figures.rst",
            category="{dataset}",
            subcategory="Figures",
            labels={"figure": "{name}", "representation": "{rep}{grouping}"},
        ),
    log:
        "logs/{dataset}/{rep}/marker_figures{grouping}.log",
    benchmark:
        "benchmarks/{dataset}/{rep}/marker_figures{grouping}.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("marker_figures"),
    params:
        settings=settings("marker_figures"),
        code=code("marker_figures"),
    message:
        "{wildcards.dataset}/{wildcards.rep}: figures of markers and genes (figures{wildcards.grouping})"
    script:
        "../scripts/marker_figures.py"


rule report:
    """Write the HTML report of a dataset."""
    input:
        counts=rules.convert.output.counts,
        filtered=rules.filter.output.out,
        normalized=rules.normalize.output.out,
        steps=targets.step_files,
        filter_table=rules.filter.output.table,
        marker_tables=targets.marker_tables,
        figures=targets.figure_folders,
    output:
        out=report(
            "results/{dataset}/report.html",
            caption="captions/report.rst",
            category="{dataset}",
            subcategory="Report",
            labels={"file": "report"},
        ),
    log:
        "logs/{dataset}/report.log",
    benchmark:
        "benchmarks/{dataset}/report.tsv"
    conda:
        environment
    threads: 1
    resources:
        mem_mb=memory("report"),
    params:
        settings=settings("report"),
        code=code("report"),
        page=page_digest(),
        untracked=params.as_used,
    message:
        "{wildcards.dataset}: report"
    script:
        "../scripts/report.py"
