"""Draw the rules into the README: python docs/rulegraph.py.

Takes the graph from ``snakemake --rulegraph`` for the demo and leaves out the arrows that others
imply, so that a reader sees the order of the steps and not every file that a step reads.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- rulegraph: python docs/rulegraph.py -->", "<!-- end of rulegraph -->"


def rulegraph() -> nx.DiGraph:
    """Ask Snakemake for the graph of the demo's rules, with the download that stands for a URL."""
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
    """Draw the graph as Mermaid, which code hosts render; GPU rules have round corners."""
    graph = nx.transitive_reduction(rulegraph())
    on_gpu = uses_gpu()
    lines = ["```mermaid", "flowchart LR"]
    for name in sorted(graph):
        label = "download or simulate" if name == "simulate" else name
        lines.append(f"  {name}({label}):::gpu" if name in on_gpu else f"  {name}[{label}]")
    lines += [f"  {one} --> {other}" for one, other in sorted(graph.edges)]
    lines += ["  classDef gpu fill:#76b900,stroke:#4b7600,color:#000", "```"]
    return "\n".join(lines)


def main() -> None:
    """Write the picture between its marks in the README."""
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{picture()}\n{END}{after}")


if __name__ == "__main__":
    main()
