"""Write the pin files and the conda environments from pyproject.toml: what `make pins` runs.

Usage: ``compile.py UV [option of uv pip compile, --upgrade say, ...]``

``gpu.txt`` comes first and binds ``cpu.txt``, so that a run on the CPU and one on the GPU use the
same versions of what they share. ``uv.txt`` is the installer itself, for machines without one;
``notebook.txt`` is JupyterLab, which goes on top of either.

A conda environment holds its pins in full. A line ``-r cpu.txt`` would be shorter, but Snakemake
copies the environment file alone into ``.snakemake/conda``, where pip then looks for ``cpu.txt`` in
vain; nor would Snakemake see that the pins changed.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ENVS = Path(__file__).resolve().parent
PYTHON = (ENVS.parent / ".python-version").read_text().strip()


def compile_pins(uv: str, name: str, options: list[str], *, source: str, stdin: str = "") -> None:
    """Compile `source` into the pin file `name`, for Linux, with a hash for every file."""
    command = [uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    command += ["--python-version", PYTHON, "--custom-compile-command", "make pins"]
    subprocess.run(
        [*command, *options, source, "--output-file", f"envs/{name}"],
        cwd=ENVS.parent,
        input=stdin,
        text=True,
        check=True,
    )


def requirements(pins: str) -> list[str]:
    """Return the requirements of a pin file, one string each, hashes included."""
    lines = [line for line in pins.splitlines() if line and not line.lstrip().startswith("#")]
    return [" ".join(r.split()) for r in "\n".join(lines).replace("\\\n", " ").splitlines()]


def conda_environment(pins: str) -> str:
    """Return the text of a conda environment: Python from conda-forge, the rest by pip."""
    head = [
        "# Written by `make pins`: Python from conda-forge, the rest by pip, checked by hash.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f"  - python={PYTHON}",
        "  - pip",
        "  - pip:",
    ]
    folded = [
        line
        for requirement in requirements(pins)
        for line in ["      - >-", *requirement.replace(" --", "\n--").splitlines()]
    ]
    return "\n".join(head + [x if x.startswith(" ") else f"        {x}" for x in folded]) + "\n"


def main(uv: str, *options: str) -> None:
    """Write every file of envs/ that is compiled."""
    extra = [*options, "--group", "dev"]
    compile_pins(uv, "gpu.txt", [*extra, "--extra", "gpu"], source="pyproject.toml")
    compile_pins(uv, "cpu.txt", [*extra, "-c", "envs/gpu.txt"], source="pyproject.toml")
    compile_pins(uv, "uv.txt", list(options), source="-", stdin="uv\n")
    # JupyterLab alone, without what the workflow needs; where they share a package, its version.
    extras = tomllib.loads((ENVS.parent / "pyproject.toml").read_text())["project"]
    notebook = "\n".join(extras["optional-dependencies"]["notebook"])
    bound = [*options, "-c", "envs/gpu.txt"]
    compile_pins(uv, "notebook.txt", bound, source="-", stdin=notebook)
    for name in ("cpu", "gpu"):
        pins = (ENVS / f"{name}.txt").read_text()
        (ENVS / f"{name}.yaml").write_text(conda_environment(pins))


if __name__ == "__main__":
    main(*sys.argv[1:])
