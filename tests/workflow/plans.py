"""Call Snakemake many times with one import of it, each time in a process of its own.

Reads JSON from stdin: for each call the arguments of the command line and a file for the output.
Beside that file, the exit status goes into one that ends with ``.status``.
"""

import json
import os
import sys

import pandas as pd  # noqa: F401 - Snakemake imports it later, in every process
import snakemake.cli

running: dict[int, str] = {}


def wait_for_one() -> None:
    pid, status = os.wait()
    with open(f"{running.pop(pid)}.status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))


for arguments, answer in json.load(sys.stdin):
    if len(running) == os.cpu_count():
        wait_for_one()
    if (pid := os.fork()) == 0:
        with open(answer, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        snakemake.cli.main(arguments)  # which ends the process
    running[pid] = answer
while running:
    wait_for_one()
