"""The engine: a local server with worker processes in which steps find their libraries loaded.

It is optional: without it each step runs in a process of its own, with the same result. It may
import the modules that all share, resources, data and `scrna.step`; no step imports it.
"""
