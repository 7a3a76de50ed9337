"""Time the workflow from the converted store.

    python bench/workflow.py bench/blocks_1m.yaml --notebook notebook.json --out workflow.json
    python bench/workflow.py bench/blocks_1m.yaml --set execution=memory --repeat 3
    python bench/workflow.py bench/simulated_216k.yaml --repeat 3 --resolutions 0.7 0.8 0.9

Works in the current directory. The counts are converted first, which is not counted. Then, each
time, all results but ``counts.zarr`` and ``counts.json`` are taken away, and the time from typing
``snakemake`` to its end is measured, every file written: as it is typed, of every output with
figures, report and the AnnData. ``--targets`` asks for some alone, by default what the notebook
computes without its pictures: the UMAP, the clusters and their markers; they may hold
``{dataset}``. ``--resolutions`` then times a change of the Leiden resolution, to new markers and,
of a resolution a little higher, as it is typed, to the new report. Prints the table of `measure.py`
for the last run and the ratio to the notebook's time.
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
_HIGHER = 0.03  # of a resolution, for the run that makes the report
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


def changed(options: argparse.Namespace, datasets: list[str]) -> tuple[dict, int]:
    """Time new Leiden resolutions, to new markers and as typed; seconds of each, and failures."""
    found: dict[str, list[float]] = {"new markers": [], "new report, as typed": []}
    configfiles, failed = options.configfiles, 0
    markers = [f"results/{name}/pca/markers.h5" for name in datasets]
    for turn, resolution in enumerate(options.resolutions):
        # of the second change nothing is there either
        for what, targets, more in zip(found, (markers, []), (0, _HIGHER), strict=True):
            settings = [
                f"datasets.{name}.leiden.resolution={resolution + more}" for name in datasets
            ]
            path = Path(f"{options.name}-resolution.yaml").resolve()
            options.configfiles = [*configfiles, *overlay(settings, path)]
            time.sleep(PAUSE)
            log = Path(
                f"{options.name}-resolution-{turn + 1}-{what.split(',')[0]}.log".replace(" ", "-")
            )
            seconds, status = snakemake(options, targets, log)
            found[what].append(round(seconds, 2))
            failed += bool(status)
            print(f"resolution {resolution + more:g}, {what}: {seconds:.1f} s", flush=True)
    options.configfiles = configfiles
    for what, walls in found.items():
        if walls:
            print(f"{what}: {walls} s, median {statistics.median(walls):.1f} s")
    return found, failed


def compared(median: float, notebook: Path) -> dict[str, float]:
    """Compare the time with that of the notebook."""
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
    parser.add_argument(
        "--targets", nargs="*", help="by default all; without a name umap, leiden and markers"
    )
    parser.add_argument("--resolutions", nargs="*", type=float, default=[], metavar="R")
    parser.add_argument("--dataset", nargs="*", help="by default those that the config runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--prepare-only", action="store_true", help="convert the counts, no more")
    parser.add_argument("--notebook", type=Path, help="JSON of bench/notebook.py")
    parser.add_argument("--profile", default="spark", help="one of profiles/, or a path")
    parser.add_argument("--snakemake", default="snakemake")
    parser.add_argument("--name", default="workflow", help="of the logs written here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wanted = [] if options.targets is None else options.targets or TARGETS
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

    targets = [target.format(dataset=name) for name in datasets for target in wanted]
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
    asked = ", ".join(wanted) or "as typed"
    print(f"\nworkflow {datasets} {options.set}, {asked}: {walls} s, median {median:.1f} s")
    result = {"datasets": datasets, "set": options.set, "walls": walls, "median": median}
    changes, n_failed = changed(options, datasets)
    failed += n_failed
    print(f"{failed} failed")
    result |= {"failed": failed, "targets": targets, "changes": changes}
    if options.notebook and options.notebook.exists():
        result |= compared(median, options.notebook)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
