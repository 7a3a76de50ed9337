"""The pictures of a report: what each shows, how it was made and with which parameters."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrna.report.results import REPRESENTATIONS, Results

#: Topics of a report, in their order: id → heading.
TOPICS = {
    "quality": "Quality of the cells",
    "genes": "Genes and components",
    "embeddings": "Embeddings",
    "clusters": "Clusters",
    "expression": "Expression",
    "trajectory": "Trajectory",
    "more": "More figures",
}
#: Bounds of the filter that cut cells, as its table names them.
_NO_BOUNDS = ("all", "kept", "min_cells")


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Parameters
    ----------
    path
        The PNG file.
    topic
        A key of `TOPICS`.
    title, caption, alt
        Its heading; what it shows, how it was made and with which parameters; the same for who
        does not see it, shortly.
    """

    path: Path
    topic: str
    title: str
    caption: str
    alt: str


def pictures(results: Results) -> list[Picture]:
    """List the pictures of a dataset by topic, each with its caption.

    Parameters
    ----------
    results
        The results. A picture that is not known by its name has the name for a title.
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
            shown, how = describe(results, what, rep)
            title = title.format(what)
            if rep and len(results.reps) > 1:
                title += f" ({REPRESENTATIONS[rep]})"
            return Picture(path, topic, title, f"{shown} {how}".strip(), shown)
    title = path.stem.replace("_", " ")
    return Picture(path, "more", title, "", title)


# ----------------------------------------------------------------- what the pictures show, and how


def _qc_violins(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    qc = results.parameters("qc")
    shown = (
        f"Counts, genes, and mitochondrial and ribosomal shares of all {len(results.keep):,} cells "
        "before the filter, by batch where there are batches."
    )
    how = (
        "Violins with the median (dot) and the quartiles (bar); dashed lines are the filter's "
        f"bounds: {_bounds(results)}. Mitochondrial genes: {_value(qc['mt'])}; ribosomal genes: "
        f"{_value(qc['ribo'])}."
    )
    return shown, how


def _qc_scatter(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    shown = (
        "Counts of each cell against its genes and against its share of mitochondrial counts; "
        "kept and removed cells told apart."
    )
    return shown, f"A cell is removed if it breaks a bound (dashed): {_bounds(results)}."


def _filter(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    least = results.parameters("filter")["min_cells"]
    shown = f"Cells that each bound of the filter removed: {_bounds(results)}."
    how = "The dark part of a bar are cells that broke this bound alone."
    if least:
        how += f" Then genes found in fewer than {least:,} of the kept cells went."
    return shown, how


def _hvg(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    own = results.parameters("hvg")
    of_flavor = {"seurat": "n_bins", "seurat_v3": "span", "pearson_residuals": "theta"}
    used = ["n_top_genes", *filter(None, [of_flavor.get(own["flavor"])])]
    method = {
        "cell_ranger": "dispersions normalised within bins of the mean, Zheng et al. 2017",
        "seurat": "dispersions normalised within bins of the mean, Satija et al. 2015",
        "seurat_v3": "variances against a fit over the means, Stuart et al. 2019",
        "pearson_residuals": "variances of Pearson residuals, Lause et al. 2021",
    }[own["flavor"]]
    ranked = f", ranked in each {own['batch_key']} and combined" if own["batch_key"] else ""
    shown = "Each gene's mean against its variability; highly variable genes told apart."
    return shown, f"Flavor {own['flavor']} ({method}; {_settings(own, used)}){ranked}."


def _pca_variance(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    own = results.parameters("pca")
    total = results.parameters("normalize")["target_sum"]
    total = total if total == "median" else f"{total:,g}"
    on = "the highly variable genes" if own["use_highly_variable"] else "all kept genes"
    before = [f"regress_out {_value(own['regress_out'])}"] if own["regress_out"] else []
    before += ["scaled to unit variance"] if own["scale"] else []
    shown = "Share of the variance in each principal component, and cumulated; the elbow is marked."
    how = (
        f"PCA of {on}, log-normalised to {total} counts a cell"
        f"{''.join(f', {text}' for text in before)} "
        f"({_settings(own, ['n_comps', 'solver', 'zero_center', 'seed'])}). "
        f"The neighbor graph uses the first {results.parameters('neighbors')['n_pcs']}."
    )
    return shown, how


def _umap(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    own = results.parameters("umap")
    used = ["min_dist", "spread", "max_iter", "init", "seed"]
    how = f"UMAP (McInnes et al. 2018; {_settings(own, used)}) of {_graph(results)}."
    return _embedding_of("UMAP", results), how + _leiden(results)


def _tsne(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    own = results.parameters("tsne")
    used = ["n_pcs", "perplexity", "early_exaggeration", "learning_rate", "seed"]
    how = (
        f"t-SNE (van der Maaten & Hinton 2008; {_settings(own, used)}) of the components."
        f"{_leiden(results)}"
    )
    return _embedding_of("t-SNE", results), how


def _embedding_of(name: str, results: Results) -> str:
    beside = ", before and after integration side by side" if len(results.reps) > 1 else ""
    return (
        f"{name} of the {results.keep.sum():,} kept cells by cluster, known groups and quality"
        f"{beside}."
    )


def _clusters_by(results: Results, what: str, _rep: str) -> tuple[str, str]:
    shown = (
        f"Share of each cluster's cells by {what}; the first row, all cells, is what even mixing "
    )
    shown += "would give."
    return shown, _leiden(results).strip()


def _trajectory(results: Results, _what: str, _rep: str) -> tuple[str, str]:
    own = results.parameters("trajectory")
    shown = "PAGA over the UMAP: circles are clusters, lines how well they are connected"
    how = "PAGA (Wolf et al. 2019) on the neighbor graph; connections under 0.05 are left out."
    if own["root"]:
        kind, name = next(iter(own["root"].items()))
        shown += "; below it pseudotime, on the UMAP and on the diffusion map"
        used = _settings(own, ["n_comps", "n_dcs"])
        how += f" Diffusion pseudotime (Haghverdi et al. 2016; {used}) from {kind} {name}."
    return f"{shown}.", how


def _of_markers(results: Results, what: str, rep: str) -> tuple[str, str]:
    own = results.parameters("markers", rep)
    shown = f"Expression of the first markers of each group ({own['groupby']}) in all groups"
    how = (
        f"Markers by {own['method']}, each group against all other cells, p-values corrected by "
        f"{own['corr_method']}; groups under {own['min_cells']} cells have none. {_EXPRESSION}"
    )
    return (
        f"{shown}: {_KINDS[what]}.",
        f"{how}{_leiden(results) if own['groupby'] == 'leiden' else ''}",
    )


def _of_genes(results: Results, what: str, rep: str) -> tuple[str, str]:
    if what == "umap":
        return "The UMAP by the expression of the genes that figures.genes names.", _EXPRESSION
    groupby = results.parameters("markers", rep)["groupby"]
    shown = f"Expression of the genes that figures.genes names, by {groupby}: {_KINDS[what]}."
    return shown, _EXPRESSION


#: How expression is measured, and what the kinds of pictures of it show.
_EXPRESSION = "Expression is log-normalised: ln(1 + counts brought to one total a cell)."
_KINDS = {
    "dotplot": "colour is the mean, size the share of a group's cells that have the gene",
    "heatmap": "colour is a group's mean, for each gene from its lowest (0) to its highest (1)",
}

#: Name of a picture (a regular expression) → topic, title, and what says the rest.
_KNOWN: Mapping[str, tuple[str, str, Callable[[Results, str, str], tuple[str, str]]]] = {
    "qc_violins": ("quality", "Quality before the filter", _qc_violins),
    "qc_scatter": ("quality", "Kept and removed cells", _qc_scatter),
    "filter": ("quality", "What the filter removed", _filter),
    "hvg": ("genes", "Highly variable genes", _hvg),
    "pca_variance": ("genes", "Variance explained", _pca_variance),
    "umap": ("embeddings", "UMAP", _umap),
    "tsne": ("embeddings", "t-SNE", _tsne),
    "clusters_by_(.+)": ("clusters", "Clusters by {}", _clusters_by),
    "markers_(dotplot|heatmap)": ("expression", "Markers, {}", _of_markers),
    "genes_(dotplot|umap)": ("expression", "Genes asked for, {}", _of_genes),
    "trajectory": ("trajectory", "Trajectory", _trajectory),
}


# ----------------------------------------------------------------------------- phrases in captions


def _graph(results: Results) -> str:
    own = results.parameters("neighbors")
    return f"the neighbor graph ({_settings(own, ['n_neighbors', 'n_pcs', 'metric'])})"


def _leiden(results: Results) -> str:
    own = results.parameters("leiden")
    return f" Clusters: Leiden (Traag et al. 2019; {_settings(own, ['resolution', 'seed'])})."


def _bounds(results: Results) -> str:
    said = [
        f"{name} {row['bound']:,g}"
        for name, row in results.filtered.items()
        if name not in _NO_BOUNDS
    ]
    return ", ".join(said) or "none"


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
