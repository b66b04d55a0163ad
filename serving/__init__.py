"""Serving: the model registry, the HTTP service, its monitoring, and batch classification."""
