"""The engine: a local server with worker processes in which steps find their libraries loaded.

It is optional: without it each step runs in a process of its own, with the same result. It may
import all but `workflow`; no step imports it. docs/development.md has it in one page.
"""
