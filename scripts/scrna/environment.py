"""Digest what affects a process besides code and settings: Python, packages, variables."""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Mapping

#: The beginnings of the variables that libraries read, most of them once.
_VARIABLES = tuple(
    "CUDA CUPY DASK HDF5 HOME KMP LD_ MALLOC MKL NCCL NUMBA NUMEXPR NVIDIA OMP OPENBLAS PYTHON RMM "
    "SCRNA_LOCK SCANPY TMPDIR UCX ZARR".split()
)


def environment_digest(variables: Mapping[str, str]) -> str:
    """Digest which Python runs here, its packages with the times of their installation, variables.

    Parameters
    ----------
    variables
        Environment variables; those that no library reads are left out.
    """
    packages = []
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        with os.scandir(folder) as entries:
            packages += [
                [entry.name, entry.stat().st_mtime_ns]
                for entry in entries
                if entry.name.endswith((".dist-info", ".egg-info", ".pth"))
            ]
    read = {key: value for key, value in variables.items() if key.startswith(_VARIABLES)}
    about = json.dumps([sys.executable, sorted(packages), read], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()[:16]
