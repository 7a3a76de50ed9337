"""What the rules and the Snakefile call: a rule of a script, the start and the end of a run.

It may import everything; nothing else imports it.
"""
