"""Files and folders of images in; a table of answers out, and copies sorted by class."""

from serving.batch.job import classify
from serving.batch.summary import Summary, show
from serving.registry.loader import load_scorer

__all__ = ["Summary", "classify", "load_scorer", "show"]
