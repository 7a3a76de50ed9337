"""Time the workflow from the converted store.

    python bench/workflow.py bench/blocks_1m.yaml --notebook notebook.json --out workflow.json
    python bench/workflow.py bench/blocks_1m.yaml --set execution=memory --repeat 3

Works in the current directory. The counts are converted first, which is not counted. Then, each
time, all results but ``counts.zarr`` and ``counts.json`` are taken away, and the time from typing
``snakemake`` to its end is measured, every file written. Targets may hold ``{dataset}``; by default
they are what the notebook computes: the UMAP, the clusters and their markers. Prints the table of
`measure.py` for the last run and the ratio to the notebook's time.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = [f"results/{{dataset}}/pca/{step}.h5" for step in ("umap", "leiden", "markers")]
KEPT = ("convert", "simulate", "download")  # of the rules whose records stay
PAUSE = 5.0  # seconds before a run, for the last one's worker to let go of the GPU's memory


def overlay(settings: list[str], path: Path) -> list[Path]:
    """Write KEY=VALUE settings, the keys dotted, as a config file of their own."""
    if not settings:
        return []
    content: dict = {}
    for setting in settings:
        keys, value = setting.split("=", 1)
        *parents, last = keys.split(".")
        section = content
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(content))
    return [path]


def clear(dataset: str) -> None:
    """Take away what a run made of a dataset, but the converted counts and their records."""
    for path in Path("results", dataset).glob("*"):
        if path.name not in ("counts.zarr", "counts.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in ("benchmarks", "logs"):
        for path in Path(folder, dataset).glob("*"):
            if path.name.split(".")[0] not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def snakemake(options: argparse.Namespace, targets: list[str], log: Path) -> tuple[float, int]:
    """Run the workflow for some targets; its seconds and its exit status."""
    profile = Path(options.profile)
    profile = profile if profile.exists() else REPOSITORY / "profiles" / options.profile
    command = [options.snakemake, "-s", REPOSITORY / "Snakefile", "--profile", profile]
    command += ["--configfile", *options.configfiles, "--", *targets]
    start = time.perf_counter()
    with log.open("w") as file:
        status = subprocess.run(list(map(str, command)), stdout=file, stderr=file).returncode
    seconds = time.perf_counter() - start
    if status:
        print(f"snakemake failed ({status}); the end of {log}:")
        print("\n".join(log.read_text().splitlines()[-40:]))
    return seconds, status


def compared(median: float, notebook: Path) -> dict[str, float]:
    """Say how the time relates to the notebook's."""
    other = json.loads(notebook.read_text())
    ratios = {
        "notebook_steps": other["seconds"],
        "notebook_process": other["wall"],
        "ratio_to_steps": round(median / other["seconds"], 3),
        "ratio_to_process": round(median / other["wall"], 3),
    }
    print(
        f"notebook ({other['mode']}, {other['store']}, {other['threads']} threads): "
        f"steps {other['seconds']} s, process {other['wall']} s; workflow / notebook: "
        f"{ratios['ratio_to_steps']} of its steps, {ratios['ratio_to_process']} of its process"
        + (f"; NOT COMPARABLE, the notebook failed in {other['failed']}" if other["failed"] else "")
    )
    return ratios


def main() -> None:
    """Convert, run as often as asked, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("configfile", type=Path)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--dataset", nargs="*", help="by default those that the config runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--prepare-only", action="store_true", help="convert the counts, no more")
    parser.add_argument("--notebook", type=Path, help="JSON of bench/notebook.py")
    parser.add_argument("--profile", default="spark", help="one of profiles/, or a path")
    parser.add_argument("--snakemake", default="snakemake")
    parser.add_argument("--name", default="workflow", help="of the logs written here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    config = yaml.safe_load(options.configfile.read_text())
    runs = config["run"] if isinstance(config["run"], list) else [config["run"]]
    datasets = options.dataset or runs
    options.configfiles = [
        options.configfile.resolve(),
        *overlay(options.set, Path(f"{options.name}-overlay.yaml").resolve()),
    ]
    print("started", time.strftime("%H:%M:%S"), datasets, options.set, flush=True)

    counts = [f"results/{name}/counts.json" for name in datasets]
    seconds, status = snakemake(options, counts, Path(f"{options.name}-prepare.log"))
    print(f"simulate, convert: {seconds:.1f} s (not counted)", flush=True)
    if status or options.prepare_only:
        sys.exit(status)

    targets = [target.format(dataset=name) for name in datasets for target in options.targets]
    walls, failed = [], 0
    for turn in range(options.repeat):
        for name in datasets:
            clear(name)
        time.sleep(PAUSE)
        seconds, status = snakemake(options, targets, Path(f"{options.name}-{turn + 1}.log"))
        walls.append(round(seconds, 2))
        failed += bool(status)
        print(f"run {turn + 1}: {seconds:.1f} s{'  FAILED' * bool(status)}", flush=True)
    median = statistics.median(walls)
    subprocess.run([sys.executable, REPOSITORY / "bench" / "measure.py", *datasets])
    print(f"\nworkflow {datasets} {options.set}: {walls} s, median {median:.1f} s, {failed} failed")
    result = {"datasets": datasets, "set": options.set, "walls": walls, "median": median}
    result |= {"failed": failed, "targets": targets}
    if options.notebook and options.notebook.exists():
        result |= compared(median, options.notebook)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
