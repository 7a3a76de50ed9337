"""Functions that the rules and the Snakefile call: scripts of rules, start and end of a run.

It may import everything; nothing else imports it.
"""
