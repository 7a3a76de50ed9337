"""What a run changes in Snakemake's scheduler, which offers no setting for it.

Snakemake's own objects, and none of its documented ones: tests/workflow runs this against the
version that is pinned.
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
