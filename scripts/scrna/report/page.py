"""The page of a report: its contents, and how they are put together."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scrna.data import step_files
from scrna.data.benchmarks import Usage
from scrna.methods.cell_types import place_of
from scrna.plots.colours import colours_of
from scrna.progress import short_duration
from scrna.report.captions import TOPICS, Picture, how_ranked, pictures
from scrna.report.findings import findings
from scrna.report.results import REPRESENTATIONS, Markers, Results
from scrna.report.samples import sample_rows

SOURCES = Path(__file__).parent
#: Bytes of all figures together, above which the largest are compressed again.
MOST_BYTES = 12_000_000
#: Markers that the summary names for a cluster.
_NAMED = 5
#: Column of ``markers.csv`` → its heading and format; pvals are only in the file.
_COLUMNS = {
    "scores": ("score", "number"),
    "logfoldchanges": ("log2 fold change", "number"),
    "pvals_adj": ("adjusted p", "p"),
    "pct_nz_group": ("expressed in group", "percent"),
    "pct_nz_reference": ("expressed in other cells", "percent"),
}
#: Column of ``integration.csv`` → its name in the report.
_SCORES = {
    "same_batch": "neighbors of the same batch",
    "same_batch_expected": "neighbors of the same batch, expected by chance",
    "ilisi": "effective number of batches around a cell (iLISI)",
    "ilisi_expected": "iLISI if every neighborhood had the composition of the dataset",
    "silhouette_batch": "silhouette of batches",
    "same_label": "neighbors of the same label",
    "clisi": "effective number of labels around a cell (cLISI)",
    "silhouette_label": "silhouette of labels",
    "ari": "clusters and labels: adjusted Rand index",
    "nmi": "clusters and labels: normalised mutual information",
}


def page(
    results: Results,
    *,
    dataset: str,
    config: Mapping[str, Any],
    usages: Sequence[Usage],
    cell_map: str | None,
    n_markers: int,
    annotations: Mapping[str, Mapping[str, str]],
    unlabelled: tuple[str, int] | None = None,
) -> str:
    """Write the report of a dataset as HTML.

    Parameters
    ----------
    results
        The results of the steps.
    dataset
        Its name.
    config
        The settings of the dataset, with defaults.
    usages
        Time and memory of the steps.
    cell_map
        The interactive map as HTML.
    n_markers
        Genes of a group in the table of markers.
    annotations
        Clustering → cluster → name.
    unlabelled
        The label column and how many kept cells have no label, where there is one.

    Returns
    -------
    HTML without references to other files.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(SOURCES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"duration": short_duration, "signed": _signed}
    markers = results.markers(n_markers)
    sources = {name: (SOURCES / name).read_text() for name in ("report.css", "report.js")}
    return environment.get_template("template.html.j2").render(
        dataset=dataset,
        made=max(record["started"] for record in results.records.values())[:10],
        style=sources["report.css"],
        script=sources["report.js"],
        numbers=numbers(results, usages),
        findings=findings(results, kind=config["kind"], unlabelled=unlabelled),
        filtered=results.filtered,
        samples=sample_rows(results),
        clusters=[clusters(results, rep, markers, annotations) for rep in results.reps],
        named=[named_types(results, rep) for rep in results.reps if results.has_names(rep)],
        integration=results.integration,
        scores=_SCORES,
        cell_map=cell_map,
        topics=topics(pictures(results)),
        markers=marker_data(results, markers, annotations),
        n_markers=n_markers,
        markers_how=how_ranked(results.parameters("markers")) if markers else "",
        usages=usages,
        total=sum(usage.seconds for usage in usages),
        devices=_devices(usages),
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        versions=versions(results),
        provenance=provenance(results),
        source=results.source,
    )


class Number(NamedTuple):
    """A number of the summary, with its label and a remark."""

    label: str
    value: str
    beside: str


def numbers(results: Results, usages: Sequence[Usage]) -> list[Number]:
    """Collect the numbers of the summary."""
    rows = results.filtered
    n_obs, n_vars = (int(rows["all"][key]) for key in ("cells", "genes"))
    cells, genes = (int(rows["kept"][key]) for key in ("cells", "genes"))
    high = int(step_files.read(results.files["", "hvg"], "var/highly_variable").sum())
    found = [
        Number("cells", f"{cells:,}", f"of {n_obs:,} ({_percent(cells, n_obs)})"),
        Number("genes", f"{genes:,}", f"of {n_vars:,}"),
        Number("highly variable genes", f"{high:,}", results.parameters("hvg")["flavor"]),
    ]
    for rep in results.reps:
        n_clusters = len(step_files.read(results.files[rep, "leiden"], "obs/leiden").categories)
        resolution = results.parameters("leiden", rep)["resolution"]
        first = resolution[0] if isinstance(resolution, list) else resolution
        of = f"clusters, {rep}" if len(results.reps) > 1 else "clusters"
        found.append(Number(of, f"{n_clusters:,}", f"Leiden, resolution {first:g}"))
    if usages:
        total = sum(usage.seconds for usage in usages)
        found.append(Number("total time", short_duration(total), _devices(usages)))
    return found


def clusters(
    results: Results,
    rep: str,
    markers: Mapping[tuple[str, str], Markers],
    annotations: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Describe the Leiden clusters of a representation.

    Returns
    -------
    rep, label, and rows: name, called (its name in annotations), colour, n, share, genes,
    doublets (fraction of predicted doublets; None without a search for them).
    """
    found = step_files.read(results.files[rep, "leiden"], "obs/leiden")
    of_leiden = [
        table
        for (of, step), table in markers.items()
        if of == rep and results.parameters(step, rep).get("groupby") == "leiden"
    ]
    top = of_leiden[0].genes(_NAMED) if of_leiden else {}
    called = _names_of(results, rep, "leiden", annotations)
    sizes = found.value_counts()
    names = list(found.categories)
    flags = results.doublets
    rows = [
        {
            "name": name,
            "called": called.get(name, ""),
            "colour": colour,
            "n": int(sizes[name]),
            "share": 100 * float(sizes[name]) / len(found),
            "genes": top.get(name, []),
            "doublets": None if flags is None else float(flags[found == name].mean()),
        }
        for name, colour in colours_of(names).items()
    ]
    return {"rep": rep, "label": REPRESENTATIONS[rep], "rows": rows, "has_genes": bool(top)}


def named_types(results: Results, rep: str) -> dict[str, Any]:
    """Describe the names that groups of cells got from marker genes, in a representation.

    Returns
    -------
    rep, label, by (what the groups are of), min_margin, and rows: group, n_cells, cell_type, best,
    score, second, second_score, margin.
    """
    found = step_files.read(results.files[rep, "cell_type_names"], "uns/cell_type_names")
    rows = found["table"].rename_axis("group").reset_index().to_dict("records")
    return {"rep": rep, "label": REPRESENTATIONS[rep], "rows": rows} | found["params"]


def _names_of(
    results: Results, rep: str, groupby: str, annotations: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return the names that annotations have for the clusters of a clustering."""
    for asked, names in annotations.items():
        if place_of(asked, results.reps[::-1]) == (rep, groupby):
            return dict(names)
    return {}


def marker_data(
    results: Results,
    markers: Mapping[tuple[str, str], Markers],
    annotations: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Return the table of markers as report.js reads it.

    Returns
    -------
    tables: one per representation and grouping with rep, file (its name for a download), label,
    groupby, called (group → name), columns (those of ``markers.csv``, headings and formats) and
    rows; empty where there are no markers.
    """
    tables = []
    is_one = all(step == "markers" for _, step in markers)
    for (rep, step), found in markers.items():
        shown = [name for name in _COLUMNS if name in found.columns]
        places = [0, 1, *map(found.columns.index, shown)]
        groupby = results.parameters(step, rep)["groupby"]
        tables.append(
            {
                "rep": rep,
                "file": f"markers_{rep}{step.removeprefix('markers')}.csv",
                "label": REPRESENTATIONS[rep] + ("" if is_one else f"; by {groupby}"),
                "groupby": groupby,
                "called": _names_of(results, rep, groupby, annotations),
                "columns": ["group", "names", *shown],
                "headings": [groupby, "gene", *(_COLUMNS[name][0] for name in shown)],
                "formats": ["text", "text", *(_COLUMNS[name][1] for name in shown)],
                "rows": [[row[place] for place in places] for row in found.rows],
            }
        )
    return {"tables": tables}


def topics(found: Sequence[Picture]) -> list[dict[str, Any]]:
    """Group figures by topic, each as the page shows it: picture, src, width, height, inches."""
    packed = pack([picture.path for picture in found])
    shown = [{"picture": each} | packed[each.path] for each in found]
    return [
        {"id": key, "heading": heading, "pictures": own}
        for key, heading in TOPICS.items()
        if (own := [each for each in shown if each["picture"].topic == key])
    ]


def pack(paths: Sequence[Path], most_bytes: int = MOST_BYTES) -> dict[Path, dict[str, Any]]:
    """Encode figures for the page.

    Parameters
    ----------
    paths
        PNG files.
    most_bytes
        Of all together. Above it the largest become WebP, first lossless.

    Returns
    -------
    Path → src (a data URL), width and height in pixels, inches (the width in which it was drawn).
    """
    raw = {path: ("png", path.read_bytes()) for path in paths}
    for options in ({"lossless": True, "method": 2}, {"quality": 80}):
        for path in sorted(raw, key=lambda path: -len(raw[path][1])):
            if sum(len(content) for _, content in raw.values()) <= most_bytes:
                break
            smaller = _as_webp(path, options)
            if len(smaller) < len(raw[path][1]):
                raw[path] = ("webp", smaller)
    return {
        path: {"src": f"data:image/{kind};base64,{b64encode(content).decode()}"} | _size(path)
        for path, (kind, content) in raw.items()
    }


def _as_webp(path: Path, options: Mapping[str, Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def _size(path: Path) -> dict[str, Any]:
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        dots = image.info.get("dpi", (100, 100))[0]
    return {"width": width, "height": height, "inches": width / dots}


def versions(results: Results) -> dict[str, str]:
    """Collect the versions of the packages that the steps used; several where they differ."""
    found: dict[str, dict[str, None]] = {}
    for record in results.records.values():
        for name, version in record.get("versions", {}).items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(found[name]) for name in sorted(found)}


def provenance(results: Results) -> list[dict[str, Any]]:
    """Return a row per step: name, device, start, seconds, digest of its result, parameters."""
    rows = []
    for (rep, step), record in results.records.items():
        path = results.files.get((rep, step))
        digest = step_files.digest_of(path) if path else results.source["digest"]
        rows.append(
            {
                "step": f"{step} ({rep})" if rep and rep != step else step,
                "device": record.get("device", "CPU"),
                "started": record["started"][:19].replace("T", " "),
                "seconds": record["seconds"],
                "digest": digest,
                "parameters": yaml.safe_dump(
                    record["parameters"], default_flow_style=True, width=10_000
                ).strip(),
            }
        )
    return sorted(rows, key=lambda row: row["started"])


def _devices(usages: Sequence[Usage]) -> str:
    return ", ".join(sorted({usage.device for usage in usages}, key=lambda name: name == "CPU"))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\u00a0%"


def _signed(value: float) -> str:
    """Write a score; a dash for NaN."""
    return "–" if value != value else f"{value:.2f}".replace("-", "−")
