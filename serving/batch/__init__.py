"""Classify files, folders and tables of images: a table of answers, and copies sorted by class."""

from serving.batch.answer import threads_per_batch
from serving.batch.pipeline import classify
from serving.batch.spread import classify_on_engine
from serving.batch.summary import Summary, print_summary
from serving.registry.loader import load_scorer

__all__ = ["Summary", "classify", "classify_on_engine", "load_scorer", "print_summary", "threads_per_batch"]
