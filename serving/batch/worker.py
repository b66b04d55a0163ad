"""The work of one worker of an engine: read the images of a part, classify them, write the rows."""

from contextlib import closing
from dataclasses import dataclass

import mlflow

from serving.batch.answer import Answerer, ScorerAnswerer, answer_batches, batches
from serving.batch.dataset import Part, part_exists, write_part
from serving.batch.read import read_images
from serving.batch.rows import Row
from serving.registry.loader import load_scorer


@dataclass(frozen=True)
class Job:
    """The settings of a job for its workers, which may run on other machines.

    Attributes:
        output: URL of the dataset, or an absolute path.
        model_uri: see `pin_model`.
        tracking_uri: where the model is.
        digest: digest of the model, for the rows.
        top_k: number of most likely classes per row.
    """

    output: str
    model_uri: str
    tracking_uri: str
    digest: str
    top_k: int


def load_answerer(job: Job, cores: int) -> ScorerAnswerer:
    """Load the scorer of the job's model from MLflow."""
    mlflow.set_tracking_uri(job.tracking_uri)
    return ScorerAnswerer(load_scorer(job.model_uri, cores), job.top_k, cores=cores)


def classify_part(part: Part, job: Job, answerer: Answerer) -> str:
    """Classify the images of a part, write its file and return its name."""
    if not part_exists(job.output, part.name):  # an earlier attempt may have been killed after its last step
        rows: list[Row] = []
        with (
            closing(read_images(part.images, answerer.prepare)) as files,
            closing(answer_batches(batches(files), answerer, job.digest)) as answered,
        ):
            for _, batch in answered:
                rows += batch.values()
        write_part(job.output, part.name, rows)
    return part.name
