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

# Each laid over those before it; a job of this run has no need to look again.
CONFIG_FILES = []
if workflow.is_main_process:
    try:
        CONFIG_FILES = [
            (str(file), read_config(Path(file)))
            for file in [
                f"{workflow.basedir}/config/config.yaml",
                *workflow.overwrite_configfiles,
            ]
        ]
    except UserError as error:
        raise WorkflowError(str(error)) from None
    CONFIG_FILES.append(("--config", dict(workflow.config_settings.config)))
