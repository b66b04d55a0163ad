"""Engine `local`: this process, part after part."""

from collections.abc import Generator

from serving.batch.answer import ScorerAnswerer, threads_per_batch
from serving.batch.dataset import Part
from serving.batch.worker import Job, classify_part
from serving.registry.loader import load_scorer


def run(job: Job, parts: list[Part], cluster: str | None) -> Generator[str]:
    """Yield the name of each part when its file is written; there is no cluster."""
    answerer = ScorerAnswerer(load_scorer(job.model_uri, threads_per_batch()), job.top_k)
    for part in parts:
        yield classify_part(part, job, answerer)
