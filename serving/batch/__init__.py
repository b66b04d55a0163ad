"""Classify files and folders of images: a table of answers, and copies sorted by class."""

from serving.batch.pipeline import classify
from serving.batch.summary import Summary, print_summary
from serving.registry.loader import load_scorer

__all__ = ["Summary", "classify", "load_scorer", "print_summary"]
