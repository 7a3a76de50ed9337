"""Ask Snakemake for many plans with one import of it, each in a process of its own.

Reads JSON from stdin: for each plan the arguments of the command line and a file for the answer.
"""

import json
import os
import sys

import pandas as pd  # noqa: F401 - Snakemake imports it later, in every process
import snakemake.cli

running = 0
for arguments, answer in json.load(sys.stdin):
    if running == os.cpu_count():
        os.wait()
        running -= 1
    if os.fork() == 0:
        with open(answer, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        snakemake.cli.main(arguments)  # which ends the process
    running += 1
while running:
    os.wait()
    running -= 1
