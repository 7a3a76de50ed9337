"""Draw the rules into README.md and docs/architecture.md: python docs/rulegraph.py.

The graph is that of ``snakemake --rulegraph`` for the demo, without the arrows that other arrows
imply. It shows the order of the steps, not every file that a step reads.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/architecture.md")
BEGIN, END = "<!-- rulegraph: python docs/rulegraph.py -->", "<!-- end of rulegraph -->"


def rulegraph() -> nx.DiGraph:
    """Read the graph of the demo's rules from Snakemake."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--rulegraph"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--cores", "1"],
            cwd=folder,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=True,
        )
    names = dict(re.findall(r'^\s*(\d+)\[label = "([^"\\]+)', done.stdout, re.MULTILINE))
    edges = re.findall(r"^\s*(\d+) -> (\d+)", done.stdout, re.MULTILINE)
    graph = nx.DiGraph((names[one], names[other]) for one, other in edges)
    graph.remove_node("all")
    return graph


def uses_gpu() -> set[str]:
    """List the rules that ask for the GPU."""
    text = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"^rule (\w+):", text, flags=re.MULTILINE)[1:]
    return {name for name, body in zip(rules[::2], rules[1::2], strict=True) if "gpu=GPU" in body}


def picture() -> str:
    """Draw the graph as Mermaid, which code hosts render; GPU rules are green."""
    graph = nx.transitive_reduction(rulegraph())
    lines = ["```mermaid", "flowchart LR", "  simulate[download or simulate]"]
    lines += [
        f"  {rule} --> {' & '.join(sorted(graph.successors(rule)))}"
        for rule in nx.lexicographical_topological_sort(graph)
        if graph.out_degree(rule)
    ]
    lines += ["  classDef gpu fill:#76b900,stroke:#4b7600,color:#000"]
    lines += [f"  class {','.join(sorted(uses_gpu() & set(graph)))} gpu", "```"]
    return "\n".join(lines)


def main() -> None:
    """Write the picture between its marks in both pages."""
    drawn = picture()
    for page in PAGES:
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{drawn}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
