"""Tracking with MLflow: the run and its lifecycle, retries, artifacts, and local state."""
