"""Purpose: check the config files before Snakemake reads them, so that an error names its file and line.

Inputs: config/config.yaml and the files given by --configfile.

Outputs: CONFIG_FILES, each file with its content, for common.smk.
"""

import sys
from pathlib import Path

SCRIPTS = f"{workflow.basedir}/scripts"
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

from snakemake.exceptions import WorkflowError

from scrna.config.yaml_files import read_config
from scrna.errors import UserError
from scrna.workflow import snakemake_internals

# Each laid over those before it; a job of this run has no need to look again.
CONFIG_FILES = []
if snakemake_internals.is_main(workflow):
    try:
        CONFIG_FILES = [
            (str(file), read_config(Path(file)))
            for file in [
                f"{workflow.basedir}/config/config.yaml",
                *snakemake_internals.overlay_files(workflow),
            ]
        ]
    except UserError as error:
        raise WorkflowError(str(error)) from None
    CONFIG_FILES.append(("--config", snakemake_internals.overlay_values(workflow)))
