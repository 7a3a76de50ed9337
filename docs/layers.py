"""Draw the layers of scripts/scrna into docs/architecture.md: python docs/layers.py.

`LAYERS` is the one list of the layers; tests/unit/repository/test_layers.py holds the code to it.
"""

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scripts" / "scrna"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- layers: python docs/layers.py -->", "<!-- end of layers -->"

#: The layers from the bottom to the top, each with what belongs there. A module imports modules of
#: its own layer and of those before it. `ground` is what lies in no folder, but
#: `step` and `warm_process`.
LAYERS = {
    "ground": "errors, logging, progress, processes, provenance, the table of steps, backend",
    "resources": "GPUs, memory, what a step needs, the plan, kept matrices, locks",
    "config": "schema, settings, datasets, the parameters of each step",
    "data": "counts, step files, the matrix in memory or in blocks, the neighbor graph",
    "methods": "Harmony, t-SNE, clustering, scores: more than one call of a library",
    "plots": "figures",
    "report": "the HTML report",
    "ingest": "downloads, file formats, tables of cells and genes, simulated data",
    "step": "what all steps share, and the set-up of the process that runs one",
    "dask_cluster": "steps on an existing Dask cluster",
    "engine": "the worker process that stays loaded",
    "workflow": "functions that the rules and the Snakefile call",
}
#: Layers that hold the science: they know nothing of the engine and of Snakemake.
SCIENCE = ("data", "methods", "plots", "report", "ingest")


def modules() -> dict[str, Path]:
    """Find the modules of the package: dotted name → file; a folder's own is its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """List the modules of the package that a module imports, late and for types alike."""
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            said = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            said = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in said:
            while target and target not in known:  # a function of a module, say
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {name, "scrna", ""}


def graph() -> nx.DiGraph:
    """Read the imports between all modules of the package."""
    known = modules()
    found = nx.DiGraph()
    found.add_nodes_from(set(known) - {"scrna"})
    found.add_edges_from((name, other) for name in found for other in imports(name, known))
    return found


def layer_of(name: str) -> str:
    """Return the layer of a module, by its folder; the folder's own name where it is no layer."""
    first, *below = name.removeprefix("scrna.").split(".")
    is_folder = bool(below) or (PACKAGE / first).is_dir()
    if first in ("step", "warm_process"):
        return "step"
    return first if is_folder else "ground"


def picture() -> str:
    """Draw which layer imports which as Mermaid, without the arrows that other arrows imply."""
    between = nx.DiGraph()
    between.add_nodes_from(LAYERS)
    for one, other in graph().edges:
        if layer_of(one) != layer_of(other):
            between.add_edge(layer_of(one), layer_of(other))
    lines = ["```mermaid", "flowchart BT"]
    lines += [f'  {name}["{name}: {what}"]' for name, what in LAYERS.items()]
    lines += [
        f"  {one} --> {other}" for one, other in sorted(nx.transitive_reduction(between).edges)
    ]
    return "\n".join([*lines, "```"])


def main() -> None:
    """Write the picture between its marks in the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{picture()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
