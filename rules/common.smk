"""What the rules share: the run's config and backend, and functions of a rule's wildcards.

Here is what needs Snakemake's own objects; what the functions do is in scripts/scrna/workflow.
"""

from snakemake.exceptions import WorkflowError

from scrna.code_digest import page_digest
from scrna.config import groupings
from scrna.errors import UserError
from scrna.processes import announce
from scrna.workflow.rule_params import RuleParams
from scrna.workflow.session import Session
from scrna.workflow.targets import REPS, TOPICS, Targets, named

announce()  # a job ends with the run that started it, were that one killed outright


def refusing(function, *args):
    """Call a function; an error that the user can mend reaches the terminal as its message."""
    try:
        return function(*args)
    except UserError as error:
        raise WorkflowError(str(error)) from None


session = refusing(Session, workflow, config, CONFIG_FILES, IS_MODULE)
config = session.config  # with every default, as the jobs get it
targets = Targets(session.datasets, session.sources)
samples = session.samples
params = RuleParams(config, session.sources, session.backend, SCRIPTS)

GPU = session.gpu
THREADS, STEP_THREADS = session.threads, session.step_threads
# Where cores are few, what others wait for goes before the pictures, which only the report waits for.
BEFORE_PICTURES = 1
environment, settings, code, memory = (
    session.environment,
    params.settings,
    params.code,
    params.memory,
)


wildcard_constraints:
    dataset=named(session.datasets),
    rep=named(REPS),
    topic=named(TOPICS),
    grouping=groupings.PATTERN,
