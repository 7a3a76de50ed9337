"""The unit tests as on other machines: their kernels of BLAS, threads, locales and time zones.

    python tests/portable.py            (make test-portable)
    python tests/portable.py --quick    (CI: one pass, the tests whose numbers come from BLAS)
    python tests/portable.py --only nehalem -- -k harmony

Each pass is a run of pytest with some of the variables below, so that together they have every
value. A pass whose kernel this processor lacks runs with the processor's own, and says so. Ends
with 1 if any pass fails.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: The files of the steps that multiply matrices, as pytest's -k takes them.
BY_BLAS = "neighbors or pca or harmony or tsne or integration_scores or hvg or trajectory"
EAST, WEST = "Pacific/Kiritimati", "Etc/GMT+12"  # 14 hours before UTC and 12 behind
#: What NumPy's own loops are told to do without: they round otherwise with AVX512 than without.
AVX512 = ["X86_V4", "AVX512_ICL", "AVX512_SPR"]
AVX2 = ["X86_V3", *AVX512]


class Pass(NamedTuple):
    """A run of the tests on a machine as it might be."""

    kernel: str
    """Of OpenBLAS."""
    without: list[str]
    """Features of the processor that NumPy leaves alone."""
    threads: int
    lang: str
    zone: str
    numba: str | None = None
    """The processor that numba compiles for; None: this one."""


PASSES = {
    "x86_64": {
        "haswell": Pass("Haswell", AVX512, 1, "C", EAST),
        "zen": Pass("Zen", AVX512, 2, "C.UTF-8", WEST),
        "skylakex": Pass("SkylakeX", [], 1, "C.UTF-8", EAST),
        "nehalem": Pass("Nehalem", AVX2, 2, "C", WEST, "generic"),
    },
    "aarch64": {
        "armv8": Pass("ARMV8", [], 1, "C", EAST, "generic"),
        "neoversen1": Pass("NEOVERSEN1", [], 2, "C.UTF-8", WEST),
    },
}
#: What the libraries find: the kernel of each BLAS, and NumPy's features.
FOUND = """
import json, numpy, scipy.linalg, threadpoolctl
kernels = {one.get("architecture") for one in threadpoolctl.threadpool_info()
           if one["internal_api"] == "openblas"}
numpy.ones((64, 64), "f4") @ numpy.ones((64, 64), "f4")
simd = numpy.show_config(mode="dicts")["SIMD Extensions"]
print(json.dumps([sorted(kernels), simd.get("found", [])]))
"""


def main() -> None:
    """Run the passes one after the other; print how each ended and how long it took."""
    passes = PASSES.get(platform.machine(), {})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one pass, numeric tests alone")
    parser.add_argument("--only", choices=passes, help="one pass")
    parser.add_argument("pytest", nargs="*", help="more arguments of pytest, after --")
    args = parser.parse_args()
    if not passes:
        sys.exit(f"no passes are known for {platform.machine()}")
    chosen = [args.only] if args.only else list(passes)[: 1 if args.quick else None]
    own = ["-m", "numeric and not slow", "-k", BY_BLAS] if args.quick else []
    lines = []
    for name in chosen:
        begun = time.monotonic()
        environment, said = prepare(passes[name])
        print(f"---- {name}: {said}", flush=True)
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q"]
        done = subprocess.run(
            [*command, *own, *args.pytest, "tests/unit"], cwd=ROOT, env=environment, check=False
        )
        state = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
        lines.append(f"{name:12} {state:12} {time.monotonic() - begun:6.0f} s   {said}")
    print("\n".join(lines))
    sys.exit(any("FAILED" in line for line in lines))


def prepare(wanted: Pass) -> tuple[dict[str, str], str]:
    """Make the environment of a pass, and check that the libraries go by it.

    Returns
    -------
    The environment, and what it has as a line.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    _, features = found(kept)
    without = [name for name in wanted.without if name in features]
    threads = dict.fromkeys(
        ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"], str(wanted.threads)
    )
    # a seed that is printed, so that what fails can be seen again
    seed = str(random.randrange(1, 2**32))
    own = {"LANG": wanted.lang, "TZ": wanted.zone, "PYTHONHASHSEED": seed} | threads
    if wanted.numba:
        own["NUMBA_CPU_NAME"] = wanted.numba
    if without:  # NumPy warns of one that is not there
        own["NPY_DISABLE_CPU_FEATURES"] = " ".join(without)
    kernel, note = {"OPENBLAS_CORETYPE": wanted.kernel}, ""
    try:
        kernels, left = found(kept | own | kernel)
    except subprocess.CalledProcessError:  # an instruction that this processor lacks
        kernel, note = {}, f" (no {wanted.kernel} on this processor)"
        kernels, left = found(kept | own)
    if set(left) & set(without):
        sys.exit(f"NumPy goes on using {set(left) & set(without)}, which it was told not to")
    if kernel and kernels != [wanted.kernel]:  # OpenBLAS may have one kernel for two processors
        note = f" (OpenBLAS takes {', '.join(kernels)})"
    own |= kernel
    return kept | own, " ".join(f"{name}={value!r}" for name, value in own.items()) + note


def found(environment: dict[str, str]) -> tuple[list[str], list[str]]:
    """Ask the libraries which kernels and features they take in an environment."""
    command = [sys.executable, "-c", FOUND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kernels, features = json.loads(done.stdout)
    return kernels, features


if __name__ == "__main__":
    main()
