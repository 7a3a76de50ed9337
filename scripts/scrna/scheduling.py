"""What a run changes in Snakemake's scheduler, which offers no setting for it.

Snakemake's own objects, and none of its documented ones: tests/workflow runs both functions against
the version that is pinned.
"""


def lift_rate_limit(scheduler) -> None:
    """Take away the limit of 100 jobs a second.

    It starts a timer of 1 s with every job, and for the last one's Snakemake waits before it ends.
    On one machine the cores are the limit.

    Parameters
    ----------
    scheduler
        ``workflow.scheduler``, of a run that starts.
    """
    scheduler.job_rate_limiter = None


def admit_one_more(scheduler, resource: str) -> None:
    """Let one job more start than there is of a resource, where there is a limit.

    Parameters
    ----------
    scheduler
        As in `lift_rate_limit`.
    resource
        Its name, as in ``--resources``.
    """
    for amounts in (scheduler.global_resources, scheduler.resources):
        if resource in amounts:
            amounts[resource] += 1
