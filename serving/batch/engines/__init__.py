"""Engines that run the parts of a large classification: one process, a Ray cluster, a Spark cluster.

An engine is a module with a function `run(job, parts, cluster)`, a generator of the names of finished parts.
"""
