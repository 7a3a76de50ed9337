"""Find out whether a person started the run at a terminal."""

import os
import sys
from pathlib import Path

#: Environment variables of CI, make, batch systems and containers, where nobody waits.
VARIABLES = (
    "CI MAKELEVEL SLURM_JOB_ID PBS_JOBID LSB_JOBID container KUBERNETES_SERVICE_HOST".split()
)
_CONTAINER_FILES = [Path("/.dockerenv"), Path("/run/.containerenv")]


def is_attended() -> bool:
    """Return whether this process has a terminal, and is in no container or batch job."""
    has_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    is_batch = any(name in os.environ for name in VARIABLES)
    return has_terminal and not is_batch and not any(file.exists() for file in _CONTAINER_FILES)
