"""Run the network in one ONNX Runtime session and batch the images of concurrent callers.

Everything that queued up during one batch forms the next batch. There is no timer, so a single caller never
waits for others.
"""

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import onnxruntime

MAX_BATCH = 64
# An unused engine can only be garbage-collected after its thread has ended.
IDLE_SECONDS = 10.0
# The output CLASS_MAP is computed only if the bool input EXPLAIN is true.
CLASS_MAP = "class_map"
EXPLAIN = "explain"

logger = logging.getLogger(__name__)


class _Job:
    """Images of one caller, at most one batch, and the future for their logits."""

    def __init__(self, images: np.ndarray, explain: bool) -> None:
        self.images = images
        self.explain = explain
        self.logits: Future[np.ndarray] = Future()


class Engine:
    """Run `model.onnx`: uint8 (N, S, S, 3) in, float32 logits (N, classes) out. Thread-safe.

    Further outputs, float32 (N, columns), follow the logits as further columns. For callers that ask for an
    explanation, the flattened maps of all classes come last; see `evaluation.class_map`.

    One thread runs the batches of the queue. A call starts it, and it ends when no call has come for
    IDLE_SECONDS. The queue is bounded by the callers: each has at most one batch in it and waits for the
    result; the server limits how many callers there are. After a fork, the child opens a session of its own.

    Args:
        model: the ONNX file.
        threads: threads that compute a batch; None means one per core.
        share: batch 1/`share` of the waiting callers at a time. If the callers are few threads that have
            other work to do between calls, a batch of all of them would make them wait for one another, and
            then make the network wait for them.

    Attributes:
        threads: threads that compute a batch; None means one per core.
        classes: number of logits.
        columns: number of columns without maps.
        explains: whether the network gives maps.
        batches: number of batches computed so far.
        images: number of images in those batches.
        on_batch: called with the number of images in each computed batch.
    """

    def __init__(self, model: Path, threads: int | None = None, share: int = 1) -> None:
        self._model = model
        self._share = share
        self.threads = threads
        self._session: onnxruntime.InferenceSession | None = self._open()
        inputs, outputs = self._session.get_inputs()[0], self._session.get_outputs()
        self._input = inputs.name
        self._outputs = [output.name for output in outputs if output.name != CLASS_MAP]
        self._image_shape = tuple(inputs.shape[1:])
        self.columns: int = sum(output.shape[1] for output in outputs if output.name != CLASS_MAP)
        self.explains = len(self._outputs) < len(outputs)
        self.classes: int = outputs[0].shape[1]
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._crashed = False
        self.batches = 0
        self.images = 0
        self.on_batch: Callable[[int], None] | None = None
        _engines.add(self)

    @property
    def is_alive(self) -> bool:
        """Return whether the engine answers calls: it is not closed, and its thread has not crashed.

        An idle engine is alive: the next call starts its thread.
        """
        return not self._closed and not self._crashed

    def run(self, images: np.ndarray, explain: bool = False) -> np.ndarray:
        """Return the logits of the images.

        Raises:
            ValueError: the images are not uint8, their shape is not the network's, or `explain` is true for
                a network without maps.
            RuntimeError: the engine is closed or has crashed.
        """
        if not len(images):
            self._check(images)
            return np.empty((0, self.columns), np.float32)
        # One batch at a time, so that a caller with many images does not block the others.
        pieces = [
            self.submit(images[start : start + MAX_BATCH], explain).result()
            for start in range(0, len(images), MAX_BATCH)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def submit(self, images: np.ndarray, explain: bool = False) -> Future[np.ndarray]:
        """Return a future for the logits of 1 to MAX_BATCH images.

        A future that is cancelled before its batch starts is dropped: its images are not computed.

        Raises:
            ValueError: the images are not uint8 or too many, their shape is not the network's, or `explain`
                is true for a network without maps.
            RuntimeError: the engine is closed or has crashed.
        """
        self._check(images)
        if explain and not self.explains:
            raise ValueError("the network gives no maps")
        if not 0 < len(images) <= MAX_BATCH:
            raise ValueError(f"a batch has 1 to {MAX_BATCH} images: got {len(images)}")
        job = _Job(images, explain)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._crashed:
                raise RuntimeError("the engine has crashed")
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="engine", daemon=True)
                thread.start()
                self._thread = thread
            self._queue.append(job)
            self._changed.notify()
        return job.logits

    def compute(self, images: np.ndarray, explain: bool = False) -> np.ndarray:
        """Return the logits of a batch, computed in the calling thread, beside those of other callers.

        Raises:
            ValueError: see `submit`.
        """
        self._check(images)
        if explain and not self.explains:
            raise ValueError("the network gives no maps")
        return self._compute(images, explain)

    def close(self) -> None:
        """Compute everything that was submitted, then end the thread. Later calls raise."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _check(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self._image_shape:
            raise ValueError(
                f"images must be uint8 (N, {', '.join(map(str, self._image_shape))}): "
                f"got {images.dtype} {images.shape}"
            )

    def _work(self) -> None:
        jobs: list[_Job] = []
        try:
            while jobs := self._next_batch():
                self._answer(jobs)
        except BaseException:
            logger.critical("The engine's thread crashed", exc_info=True)
            self._crash(jobs)

    def _crash(self, jobs: list[_Job]) -> None:
        """Fail the jobs of the current batch and of the queue, so that no caller waits forever."""
        with self._changed:
            self._crashed = True
            self._thread = None
            unanswered = [job for job in jobs if not job.logits.done()]
            unanswered += [job for job in self._queue if job.logits.set_running_or_notify_cancel()]
            self._queue.clear()
        for job in unanswered:
            job.logits.set_exception(RuntimeError("the engine has crashed"))

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs and return those of the next batch; an empty list tells the thread to end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed, IDLE_SECONDS)
                if not self._queue:
                    self._thread = None
                    return []
                if jobs := self._take_jobs():
                    return jobs

    def _take_jobs(self) -> list[_Job]:
        """Remove the oldest jobs that fit into a batch from the queue; drop cancelled ones."""
        jobs: list[_Job] = []
        size = 0
        limit = max(1, len(self._queue) // self._share)
        while self._queue and len(jobs) < limit and size + len(self._queue[0].images) <= MAX_BATCH:
            job = self._queue.popleft()
            if job.logits.set_running_or_notify_cancel():
                jobs.append(job)
                size += len(job.images)
        return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            logits = self._infer(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].logits.set_exception(error)
                return
            for job in jobs:  # one by one, so that the error reaches only the caller whose images caused it
                self._answer([job])
            return
        start = 0
        for job in jobs:
            columns = None if job.explain else self.columns
            job.logits.set_result(logits[start : start + len(job.images), :columns])
            start += len(job.images)

    def _infer(self, jobs: list[_Job]) -> np.ndarray:
        images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
        return self._compute(images, any(job.explain for job in jobs))

    def _compute(self, images: np.ndarray, explain: bool) -> np.ndarray:
        if self._session is None:
            self._session = self._open()
        if explain:
            wanted = {self._input: images, EXPLAIN: np.array(True)}
            *outputs, maps = self._session.run([*self._outputs, CLASS_MAP], wanted)
            outputs.append(maps.reshape(len(images), -1))
        else:
            outputs = self._session.run(self._outputs, {self._input: images})
        logits: np.ndarray = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)
        with self._changed:
            self.batches += 1
            self.images += len(images)
        if self.on_batch is not None:
            self.on_batch(len(images))
        return logits

    def _open(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # Threads that spin while they wait would take cores from the threads that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # The content, because ONNX Runtime accepts only paths in UTF-8.
        content = self._model.read_bytes()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def _after_fork(self) -> None:
        # Threads exist only in the parent, and one of them may have held the lock. The session has threads
        # too, and its destructor would wait for them forever, so the session is kept.
        _sessions_of_parents.append(self._session)
        self._session = None
        self._changed = threading.Condition()
        self._queue = deque()
        self._thread = None


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_sessions_of_parents: list[onnxruntime.InferenceSession | None] = []


def _after_fork() -> None:
    for engine in list(_engines):
        engine._after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
