"""Purpose: check the config files before Snakemake reads them, so that an error names its file and line.

Inputs: config/config.yaml and the files given by --configfile.

Outputs: CONFIG_FILES, each file with its content, for common.smk.
"""

import inspect
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The folder of this workflow; workflow.basedir is that of a workflow that imports this one.
HOME = Path(inspect.currentframe().f_code.co_filename).resolve().parents[1]
SCRIPTS = str(HOME / "scripts")
IS_MODULE = HOME != Path(workflow.basedir).resolve()
if not Path(SCRIPTS, "scrna").is_dir():
    raise WorkflowError(
        "This workflow needs all of its files, and Snakemake fetches one at a time from an address: "
        "clone the repository, and give the path of the clone's Snakefile (docs/module.md)"
    )
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

from scrna.config.yaml_files import read_config
from scrna.errors import UserError
from scrna.workflow import snakemake_internals

# Each laid over those before it; a job of this run has no need to look again. A workflow that
# imports this one has read its own.
CONFIG_FILES = []
if snakemake_internals.is_main(workflow) and not IS_MODULE:
    try:
        CONFIG_FILES = [
            (str(file), read_config(Path(file)))
            for file in [
                f"{HOME}/config/config.yaml",
                *snakemake_internals.overlay_files(workflow),
            ]
        ]
    except UserError as error:
        raise WorkflowError(str(error)) from None
    CONFIG_FILES.append(("--config", snakemake_internals.overlay_values(workflow)))
