"""Files and folders of images in; a table of answers out, and copies sorted by class."""

from serving.classify.job import classify
from serving.classify.model import load_scorer
from serving.classify.summary import Summary, show

__all__ = ["Summary", "classify", "load_scorer", "show"]
