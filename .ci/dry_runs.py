"""Plan a run of every config that ships, and do nothing: what `make dry-runs` does.

Each dataset of config/config.yaml, each file of config/presets, and the demo with each profile. The
working directory is an empty folder, so that results that lie here already change no plan.

Without a GPU the workflow refuses `markers.method: wilcoxon_binned` and `neighbors.algorithm`, as
it should. A config that has them is planned there with what the CPU has instead, and that is said.

Usage: ``python .ci/dry_runs.py [--list]``
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
#: How the workflow begins to refuse what the CPU has not → what is planned there instead.
ON_CPU = {
    "markers.method wilcoxon_binned needs the GPU": {"markers": {"method": "t-test"}},
    "neighbors.algorithm all_neighbors needs the GPU": {"neighbors": {"algorithm": "auto"}},
}


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


def plan(arguments: list[str]) -> subprocess.CompletedProcess:
    """Do one dry run in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", folder]
        return subprocess.run(
            [*command, "--dry-run", "--quiet", "all", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip


def without_gpu(arguments: list[str], refusal: str) -> list[str]:
    """Return the arguments with other settings for the datasets that were refused."""
    settings: dict[str, dict] = {}
    for reason, instead in ON_CPU.items():
        for name in re.findall(rf"datasets\.(\w+): {re.escape(reason)}", refusal):
            settings[name] = settings.get(name, {}) | instead
    own = f"datasets={json.dumps(settings)}"
    start = [] if "--config" in arguments else ["--config"]
    return [*arguments, *start, own]


def main() -> None:
    """Do the dry runs; end with 1 if one fails, after all were tried."""
    if sys.argv[1:] == ["--list"]:
        print("\n".join(plans()))
        return
    failed = []
    for name, arguments in plans().items():
        done, remark = plan(arguments), ""
        if any(reason in done.stdout for reason in ON_CPU):
            remark = " (with the CPU's methods: it needs a GPU)"
            done = plan(without_gpu(arguments, done.stdout))
        print("failed" if done.returncode else "ok    ", name + remark, flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout, flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(plans())} dry runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
