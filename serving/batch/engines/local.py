"""Engine `local`: this process, part after part."""

from collections.abc import Generator

from serving.batch.dataset import Part
from serving.batch.worker import Job, classify_part, load_answerer


def run(job: Job, parts: list[Part], cluster: str | None) -> Generator[str]:
    """Yield the name of each part when its file is written; there is no cluster."""
    answerer = load_answerer(job)
    for part in parts:
        yield classify_part(part, job, answerer)
