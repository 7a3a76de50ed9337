"""Plan a run of every config that ships, and do nothing: what `make dry-runs` does.

Each dataset of config/config.yaml, each file of config/presets, and the demo with each profile. The
working directory is an empty folder, so that results that lie here already change no plan.

Usage: ``python .ci/dry_runs.py [--list]``
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def plans() -> dict[str, list[str]]:
    """Return the arguments of each dry run by the name that it is shown with."""
    profile = ["--profile", str(ROOT / "profiles/cpu")]
    datasets = yaml.safe_load((ROOT / "config/config.yaml").read_text())["datasets"]
    found = {f"dataset {name}": [*profile, "--config", f"run={name}"] for name in datasets}
    for file in sorted((ROOT / "config").glob("presets/*.yaml")):
        found[f"preset {file.name}"] = [*profile, "--configfile", str(file)]
    for folder in sorted((ROOT / "profiles").iterdir()):
        found[f"profile {folder.name}"] = ["--profile", str(folder)]
    return found


def main() -> None:
    """Do the dry runs; end with 1 if one fails, after all were tried."""
    if sys.argv[1:] == ["--list"]:
        print("\n".join(plans()))
        return
    failed = []
    for name, arguments in plans().items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", folder]
            done = subprocess.run(
                [*command, "--dry-run", "--quiet", "all", *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
        print("failed" if done.returncode else "ok    ", name, flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout, flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(plans())} dry runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
