"""Captions of the figures in a report: what each shows, the method and its parameters."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrna.report.results import REPRESENTATIONS, Results

#: Topics of a report, in their order: id → heading.
TOPICS = {
    "quality": "Quality control",
    "genes": "Genes and components",
    "embeddings": "Embeddings",
    "clusters": "Clusters",
    "scores": "Scores of gene sets",
    "expression": "Expression",
    "trajectory": "Trajectory",
    "more": "More figures",
}
#: Representation (empty for none) and the step of markers that a figure belongs to.
type Place = tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Parameters
    ----------
    path
        The PNG file.
    topic
        A key of `TOPICS`.
    title, caption, alt
        Its heading; what it shows, how it was made and with which parameters; a short text for
        screen readers.
    """

    path: Path
    topic: str
    title: str
    caption: str
    alt: str


def pictures(results: Results) -> list[Picture]:
    """List the figures of a dataset by topic, each with its caption.

    Parameters
    ----------
    results
        The results. A figure without a known name has its file name as title.
    """
    found = []
    for rep in ("", *results.reps):
        folders = [folder for folder in results.figures if results.rep_of(folder) == rep]
        paths = sorted(path for folder in folders for path in folder.glob("*.png"))
        found += [_picture(path, rep, results) for path in paths]
    order = list(TOPICS)
    known = list(_KNOWN)

    def place(picture: Picture) -> tuple:
        name = next((n for n in known if re.fullmatch(n, picture.path.stem)), None)
        return order.index(picture.topic), known.index(name) if name else len(known)

    return sorted(found, key=place)


def _picture(path: Path, rep: str, results: Results) -> Picture:
    for pattern, (topic, title, describe) in _KNOWN.items():
        if match := re.fullmatch(pattern, path.stem):
            what = match[1] if match.re.groups else ""
            step = "markers" + path.parent.name.removeprefix("figures")
            is_further = path.parent.name != "figures" and (rep, step) in results.records
            shown, how = describe(results, what, (rep, step if is_further else "markers"))
            title = title.format(what)
            if is_further:
                title += f", by {results.parameters(step, rep)['groupby']}"
            if rep and len(results.reps) > 1:
                title += f" ({REPRESENTATIONS[rep]})"
            return Picture(path, topic, title, f"{shown} {how}".strip(), shown)
    title = path.stem.replace("_", " ")
    return Picture(path, "more", title, "", title)


# ----------------------------------------------------------------- captions


def _qc_violins(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    qc = results.parameters("qc")
    shown = (
        f"Counts, genes, and mitochondrial and ribosomal shares of all {len(results.keep):,} cells "
        "before filtering, by sample or batch if there are any."
    )
    how = (
        "Violins with median (dot) and quartiles (bar); dashed lines are the bounds of the "
        "filter, a line across one violin the bound of that sample: "
        f"{_bounds(results)}. Mitochondrial genes: {_value(qc['mt'])}; ribosomal genes: "
        f"{_value(qc['ribo'])}."
    )
    return shown, how


def _qc_scatter(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    shown = (
        "Total counts of each cell against its number of genes and its percentage of "
        "mitochondrial counts, for kept and removed cells."
    )
    return shown, f"A cell is removed if it breaks a bound (dashed): {_bounds(results)}."


def _filter(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    least = results.parameters("filter")["min_cells"]
    shown = f"Cells that each bound of the filter removed: {_bounds(results)}."
    how = "The dark part of a bar is the cells that only this bound removed."
    if least:
        how += f" Genes found in fewer than {least:,} of the kept cells were removed afterwards."
    return shown, how


def _hvg(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("hvg")
    of_flavor = {"seurat": "n_bins", "seurat_v3": "span", "pearson_residuals": "theta"}
    used = ["n_top_genes", *filter(None, [of_flavor.get(own["flavor"])])]
    method = {
        "cell_ranger": "dispersions normalised within bins of the mean, Zheng et al. 2017",
        "seurat": "dispersions normalised within bins of the mean, Satija et al. 2015",
        "seurat_v3": "variances against a fit over the means, Stuart et al. 2019",
        "pearson_residuals": "variances of Pearson residuals, Lause et al. 2021",
    }[own["flavor"]]
    ranked = f", ranked within each {own['batch_key']} and combined" if own["batch_key"] else ""
    shown = "Mean and variability of each gene; highly variable genes are highlighted."
    return shown, f"Flavor {own['flavor']} ({method}; {_settings(own, used)}){ranked}."


def _pca_variance(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("pca")
    total = results.parameters("normalize")["target_sum"]
    total = total if total == "median" else f"{total:,g}"
    on = "the highly variable genes" if own["use_highly_variable"] else "all kept genes"
    before = [f"regress_out {_value(own['regress_out'])}"] if own["regress_out"] else []
    before += ["scaled to unit variance"] if own["scale"] else []
    shown = "Variance explained by each principal component, and cumulative; the elbow is marked."
    n_pcs = results.parameters("neighbors")["n_pcs"]
    how = (
        f"PCA of {on}, log-normalised to {total} counts per cell"
        f"{''.join(f', {text}' for text in before)} "
        f"({_settings(own, ['n_comps', 'solver', 'zero_center', 'seed'])}). "
        f"The neighbor graph uses the first {n_pcs} components."
    )
    return shown, how


def _umap(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("umap")
    used = ["min_dist", "spread", "max_iter", "init", "seed"]
    how = f"UMAP (McInnes et al. 2018; {_settings(own, used)}) of {_graph(results)}."
    return _embedding_of("UMAP", results), how + _leiden(results) + _louvain(results)


def _tsne(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("tsne")
    used = ["n_pcs", "perplexity", "early_exaggeration", "learning_rate", "seed"]
    how = (
        f"t-SNE (van der Maaten & Hinton 2008; {_settings(own, used)}) of the components."
        f"{_leiden(results)}{_louvain(results)}"
    )
    return _embedding_of("t-SNE", results), how


def _embedding_of(name: str, results: Results) -> str:
    beside = ", before and after integration side by side" if len(results.reps) > 1 else ""
    return (
        f"{name} of the {results.keep.sum():,} kept cells, coloured by cluster, known labels and "
        f"quality{beside}."
    )


def _clusters_by(results: Results, what: str, _of: Place) -> tuple[str, str]:
    shown = (
        f"Composition of each cluster by {what}. The first row, all cells, is the composition "
        "expected if all clusters were the same."
    )
    return shown, _leiden(results).strip()


def _trajectory(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("trajectory")
    shown = "PAGA on the UMAP: circles are clusters, lines show how strongly they are connected"
    how = "PAGA (Wolf et al. 2019) on the neighbor graph; connections under 0.05 are left out."
    if own["root"]:
        kind, name = next(iter(own["root"].items()))
        shown += "; below, pseudotime on the UMAP and on the diffusion map"
        used = _settings(own, ["n_comps", "n_dcs"])
        how += f" Diffusion pseudotime (Haghverdi et al. 2016; {used}) from {kind} {name}."
    return f"{shown}.", how


def _diffmap(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("trajectory")
    shown = "Diffusion map of the cells, coloured by cluster and by known labels, if there are any."
    how = (
        f"Diffusion map (Haghverdi et al. 2015; {_settings(own, ['n_comps', 'seed'])}) of "
        f"{_graph(results)}. Shown are the first two components that order cells: those before "
        "them tell only how densely cells lie, and separate pieces of the graph apart."
    )
    return shown, how + _leiden(results)


def _of_markers(results: Results, what: str, of: Place) -> tuple[str, str]:
    rep, step = of
    own = results.parameters(step, rep)
    if what == "ranks":
        shown = (
            f"The genes of each group ({own['groupby']}) with the highest scores, by their rank."
        )
        return shown, how_ranked(own)
    shown = f"Expression of the top markers of each group ({own['groupby']}) in all groups"
    return (
        f"{shown}: {_KINDS[what]}.",
        f"{how_ranked(own)} {_EXPRESSION}{_leiden(results) if own['groupby'] == 'leiden' else ''}",
    )


def _cell_types(results: Results, _what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("cell_type_names")
    shown = f"Score of each cell type in each group ({own['by']}); a frame marks the name."
    how = (
        "Mean z-score over the groups of a type's positive marker genes, minus half of that of its "
        f"negative ones. The best type is the name if it is {own['min_margin']:g} above the next "
        "one and above 0; else the group is unsure."
    )
    return shown, how


def _scores(results: Results, what: str, _of: Place) -> tuple[str, str]:
    own = results.parameters("scores")
    where = "on the UMAP" if what == "umap" else "by cluster: quartiles (bar) and median (dot)"
    shown = f"Scores of gene sets in each cell, {where}."
    how = (
        "Mean expression of the genes of a set minus that of control genes with a similar mean "
        f"(Tirosh et al. 2016; {_settings(own, ['ctrl_size', 'n_bins', 'seed'])})."
    )
    if own["cell_cycle"]:
        how += (
            " Phases of the cell cycle by the higher of S_score and G2M_score, G1 where both are "
            "below 0."
        )
    return shown, how


def how_ranked(own: Mapping[str, Any]) -> str:
    """Say how markers were ranked, by the parameters of their step."""
    if own["method"] == "logreg":
        how = "logreg (logistic regression), the groups against each other"
    else:
        how = f"{own['method']}, each group against all other cells, p-values corrected by "
        how += own["corr_method"]
    return f"Markers: {how}; not computed for groups under {own['min_cells']} cells."


def _of_genes(results: Results, what: str, of: Place) -> tuple[str, str]:
    if what == "umap":
        return "UMAP coloured by the expression of the genes in figures.genes.", _EXPRESSION
    rep, step = of
    groupby = results.parameters(step, rep)["groupby"]
    shown = f"Expression of the genes in figures.genes, by {groupby}: {_KINDS[what]}."
    return shown, _EXPRESSION


#: How expression is measured, and what the kinds of figures show.
_EXPRESSION = "Expression is log-normalised: ln(1 + counts scaled to the same total per cell)."
_KINDS = {
    "dotplot": "colour is the mean, size is the share of cells in the group that express the gene",
    "heatmap": "colour is the mean of the group, from its lowest (0) to its highest (1) for a gene",
}

#: Name of a figure (a regular expression) → topic, title, function for the caption.
_KNOWN: Mapping[str, tuple[str, str, Callable[[Results, str, Place], tuple[str, str]]]] = {
    "qc_violins": ("quality", "Quality before filtering", _qc_violins),
    "qc_scatter": ("quality", "Kept and removed cells", _qc_scatter),
    "filter": ("quality", "What the filter removed", _filter),
    "hvg": ("genes", "Highly variable genes", _hvg),
    "pca_variance": ("genes", "Variance explained", _pca_variance),
    "umap": ("embeddings", "UMAP", _umap),
    "tsne": ("embeddings", "t-SNE", _tsne),
    "clusters_by_(.+)": ("clusters", "Clusters by {}", _clusters_by),
    "cell_types_heatmap": ("clusters", "Cell types by marker genes", _cell_types),
    "scores_(umap|violins)": ("scores", "Scores of gene sets, {}", _scores),
    "markers_(ranks|dotplot|heatmap)": ("expression", "Markers, {}", _of_markers),
    "genes_(dotplot|umap)": ("expression", "Selected genes, {}", _of_genes),
    "trajectory": ("trajectory", "Trajectory", _trajectory),
    "diffmap": ("trajectory", "Diffusion map", _diffmap),
}


# ----------------------------------------------------------------------------- phrases in captions


def _graph(results: Results) -> str:
    own = results.parameters("neighbors")
    return f"the neighbor graph ({_settings(own, ['n_neighbors', 'n_pcs', 'metric'])})"


def _leiden(results: Results) -> str:
    own = results.parameters("leiden")
    return f" Clusters: Leiden (Traag et al. 2019; {_settings(own, ['resolution', 'seed'])})."


def _louvain(results: Results) -> str:
    own = results.parameters("louvain")
    used = _settings(own, ["resolution", "seed"]) if own else ""
    return f" Louvain (Blondel et al. 2008; {used})." if own else ""


def _bounds(results: Results) -> str:
    said = [_bound(name, row["bound"]) for name, row in results.filter_rows.bounds().items()]
    mad = results.parameters("filter").get("mad") or {}
    by_mad = ", ".join(f"{n:g} for {column}" for column, n in mad.items() if n is not None)
    of = results.parameters("filter").get("by")
    where = f"the median of each {of}" if of else "the median"
    note = f" (_mad: so many MADs from {where}: {by_mad})" if by_mad else ""
    return (", ".join(said) or "none") + note


def _bound(name: str, bound: float | None) -> str:
    return name if bound is None else f"{name} {bound:,g}"


def _settings(parameters: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(_named(parameters, names))


def _named(parameters: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    for name in names:
        if (value := parameters[name]) is not None:
            yield f"{name} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
