"""The process of a rule: call the step or hand it to a worker, write its log, and end.

This module imports only the standard library: if a worker does the step, this process only asks and
waits, and should start quickly.
"""

import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scrna.engine import client
from scrna.engine.protocol import StepFailedError
from scrna.errors import UserError, report
from scrna.log import log, start_logging
from scrna.processes import PID_VARIABLE, die_with
from scrna.provenance import plain
from scrna.workflow.job import place_in_words

#: Sections of the config that say how a process works.
_SECTIONS = ("gpu", "gpus", "memory", "dask", "worker")
#: Set by a run whose hooks nobody has called yet (`scrna.workflow.session`).
HOOKS_VARIABLE = "SCRNA_HOOKS_NOT_CALLED"
_NO_HOOKS = (
    "The workflow that imports this one has to call its hooks, which remove results that no longer "
    "hold: onstart: NAME.onstart(), onsuccess: NAME.onsuccess(), onerror: NAME.onerror(), with the "
    "module's NAME (docs/module.md)"
)
#: What this process is for: Snakemake's object and the job made of it.
_begun: tuple[Any, dict[str, Any]] | None = None


def hand_over(script: Path | str, snakemake, function: str | None = None) -> None:
    """Have a warm worker do the step of a rule's script, where the run has one.

    Called before the script imports what its step needs. This process then ends here, as the step
    ended there; without a worker it goes on.

    Parameters
    ----------
    script
        The rule's script.
    snakemake
        The object that Snakemake puts into a script.
    function
        The step's function; None: the one that is named as the script.
    """
    script = Path(script)
    function = function or script.stem
    job = begin(snakemake)
    with ending():
        if (ended := client.perform(script, function, job)) is None:
            return
        finish(job, ended)
    sys.exit(0)


def begin(snakemake) -> dict[str, Any]:
    """Start the log of a rule's process, once, and gather what its step is asked for.

    Parameters
    ----------
    snakemake
        The object that Snakemake puts into a script: the rule's named inputs and outputs become
        the step's files, the entries of its ``params.settings`` the settings.

    Returns
    -------
    label, log, files, settings, untracked, threads and config; JSON holds it.
    """
    global _begun
    if _begun is None or _begun[0] is not snakemake:
        where = place_in_words(snakemake.wildcards)
        label = f"{snakemake.rule} {where}".strip()
        start_logging(snakemake.log[0] if snakemake.log else None, label)
        if pid := os.environ.get(PID_VARIABLE):  # were Snakemake killed outright, it ends too
            die_with(int(pid))
        if HOOKS_VARIABLE in os.environ:
            report(UserError(_NO_HOOKS))
            sys.exit(1)
        os.environ.setdefault("NUMBA_NUM_THREADS", str(snakemake.threads))
        _begun = snakemake, plain(_job(snakemake, label))
    return _begun[1]


def _job(snakemake, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "log": snakemake.log[0] if snakemake.log else None,
        "files": {
            name: str(value) if isinstance(value, str) else [str(item) for item in value]
            for source in (snakemake.input, snakemake.output)
            for name, value in source.items()
        },
        "settings": snakemake.params.get("settings", {}),
        "untracked": snakemake.params.get("untracked", {}),
        "code": snakemake.params.get("code"),
        "threads": snakemake.threads,
        "config": {key: snakemake.config[key] for key in _SECTIONS if key in snakemake.config},
    }


@contextmanager
def ending() -> Iterator[None]:
    """End this process where its step fails, once the log says why."""
    try:
        yield
    except KeyboardInterrupt:
        log.error("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except StepFailedError:
        sys.exit(1)  # its log has come over
    except Exception as error:
        report(error)
        sys.exit(1)


def finish(job: Mapping[str, Any], ended: Mapping[str, Any]) -> None:
    """Record time and memory of the step.

    Parameters
    ----------
    job
        What `begin` made of the rule.
    ended
        What `scrna.step.perform` or `scrna.engine.client.perform` returned. Its memory and its
        wait for the worker go into a file beside the benchmark, whose own figures do not know of
        either.
    """
    facts = dict(ended["memory"] or {})
    if waited := round(ended.get("waited_s", 0), 1):
        facts["waited_s"] = waited
    if facts and job["log"]:
        from scrna.atomic import replacing

        parts = list(Path(job["log"]).parts)
        parts[parts.index("logs")] = "benchmarks"
        with replacing(Path(*parts).with_suffix(".memory.json")) as temporary:
            temporary.write_text(json.dumps(facts) + "\n")
    turn = f", {waited:.1f} s of it waiting for the worker" if waited else ""
    log.info("%.1f s since the process started%s", _seconds_alive(), turn)


def _seconds_alive() -> float:
    """Seconds since this process started, its imports included."""
    ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def run(function: Callable, snakemake) -> None:
    """Call a step's function as its Snakemake rule asks.

    The rule's named inputs and outputs and the entries of its ``params.settings`` become the
    function's arguments. Where the run has a worker, a step with a backend runs there and this
    process waits for it, showing what it logs. A GPU step holds the machine's GPU lock while it
    runs. An error goes to the log with its traceback; one that the user can mend reaches the
    terminal as its message. The rule's own process ends here.

    Parameters
    ----------
    function
        A function marked by `step`.
    snakemake
        The object that Snakemake puts into a script.
    """
    inner = inspect.unwrap(function)
    hand_over(inner.__globals__.get("__file__", ""), snakemake, inner.__name__)
    job = begin(snakemake)
    with ending():
        from scrna.step import perform  # needs NumPy and h5py, unlike a step in a worker

        finish(job, perform(function, job))
    is_program = inner.__globals__.get("__name__") == "__main__"
    if is_program and "distributed" not in sys.modules:  # which has processes of its own to end
        _leave()


def _leave() -> None:
    """End this process at once; all is written.

    Python takes up to a second to take the libraries apart, and longer than the driver to free what
    there is on the GPU.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
