"""Batching: send the images of requests that arrive together to the network together.

The engine already computes everything that waits as one batch. Passing images to its thread and converting
logits to scores takes as long for one image as for ten, so both are done for several requests at once.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from cifar_mlflow.scorer.engine import MAX_BATCH
from cifar_mlflow.scorer.predictor import Scorer, Scores


class Job:
    """The images of one request, at most MAX_BATCH, that wait for their scores.

    Attributes:
        pixels: uint8 (S, S, 3) each.
        explain: whether the scores need class maps.
        scores: the result; cancelling it drops the images if their batch has not started.
    """

    __slots__ = ("batch", "explain", "pixels", "scores")

    def __init__(self, pixels: list[np.ndarray], explain: bool) -> None:
        self.pixels = pixels
        self.explain = explain
        self.scores: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self.batch: _Batch | None = None

    def drop(self) -> "Future[np.ndarray] | None":
        """Cancel the batch if no other job needs it; return its future if it is still worked on."""
        self.scores.cancel()
        if self.batch is None:
            return None
        logits = self.batch.logits
        is_needed = any(not job.scores.cancelled() for job in self.batch.jobs)
        return None if logits.done() or (not is_needed and logits.cancel()) else logits


class _Batch(NamedTuple):
    scorer: Scorer
    jobs: list[Job]
    logits: "Future[np.ndarray]"


class Batcher:
    """Groups the jobs of an event loop.

    While the network is busy, the jobs that are submitted in one iteration of the loop become one call of the
    engine. There is no timer.
    """

    def __init__(self) -> None:
        self._arrived: dict[Scorer, list[Job]] = {}
        self._batches: dict[Future[np.ndarray], _Batch] = {}
        self._last_batch = 0.0

    def submit(self, scorer: Scorer, pixels: list[np.ndarray], explain: bool) -> Job:
        """Queue 1 to MAX_BATCH images; the scorer must stay open until the job has ended."""
        job = Job(pixels, explain)
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._send_arrived)
        self._arrived.setdefault(scorer, []).append(job)
        if not self._batches:
            self._send_arrived()
        return job

    def stalled_seconds(self) -> float:
        """Return for how long batches have waited without one being finished; 0 if none waits."""
        return time.monotonic() - self._last_batch if self._batches else 0.0

    def __len__(self) -> int:
        """Return the number of calls of the engine that wait."""
        return len(self._batches)

    def _send_arrived(self) -> None:
        arrived, self._arrived = self._arrived, {}
        for scorer, jobs in arrived.items():
            group: list[Job] = []
            size = 0
            for job in jobs:
                if job.scores.cancelled():
                    continue
                if size + len(job.pixels) > MAX_BATCH:
                    self._send(scorer, group)
                    group, size = [], 0
                group.append(job)
                size += len(job.pixels)
            self._send(scorer, group)

    def _send(self, scorer: Scorer, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            images = np.stack([pixels for job in jobs for pixels in job.pixels])
            logits = scorer.engine.submit(images, any(job.explain for job in jobs))
        except Exception as error:
            _fail(jobs, error)
            return
        batch = _Batch(scorer, jobs, logits)
        for job in jobs:
            job.batch = batch
        if not self._batches:
            self._last_batch = time.monotonic()
        self._batches[logits] = batch
        loop = asyncio.get_running_loop()
        logits.add_done_callback(lambda logits: loop.call_soon_threadsafe(self._ended, logits))

    def _ended(self, logits: "Future[np.ndarray]") -> None:
        batch = self._batches.pop(logits)
        if logits.cancelled():
            return
        self._last_batch = time.monotonic()
        try:
            scores = batch.scorer.scores(logits.result())
        except Exception as error:
            if len(batch.jobs) == 1:
                _fail(batch.jobs, error)
            for job in batch.jobs if len(batch.jobs) > 1 else ():
                self._send(batch.scorer, [job])  # so that the error reaches only the request that caused it
            return
        start = 0
        for job in batch.jobs:
            end = start + len(job.pixels)
            if not job.scores.done():
                part = Scores(*(each[start:end] for each in scores))
                # A batch has maps if one of its jobs asked for them. Those of other jobs are dropped, so that
                # all parts of a request have the same shape.
                job.scores.set_result(
                    part if job.explain else part._replace(class_maps=part.class_maps[:, :0, :0])
                )
            start = end


def _fail(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        if not job.scores.done():
            job.scores.set_exception(error)
