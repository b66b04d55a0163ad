"""The network at work: one ONNX Runtime session that serves concurrent callers in batches.

Whatever has queued up while one batch ran is the next batch. There is no timer: a caller that is alone never
waits for others to come.
"""

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
# An engine that nobody uses is garbage only when its thread has ended.
IDLE_SECONDS = 10.0


class _Job:
    """Images of one caller, at most a batch, and the logits it waits for."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.logits: Future[np.ndarray] = Future()
        self.logits.set_running_or_notify_cancel()  # a caller that gave up must not get into our way


class Engine:
    """Runs `model.onnx`: uint8 (N, S, S, 3) in, float32 logits (N, classes) out. Threads may share it.

    One thread, started by a call and ended when none has come for a while, owns the session. What waits for
    it is bounded by who calls: each has at most one batch in the queue, and waits until that is done;
    how many may call at once is up to the server. After a fork the child opens a session of its own.

    Args:
        model: the ONNX file.
        threads: threads a batch is computed with; None takes one a core.
        share: the next batch is one in so many of the waiting callers. Where each of few callers is a thread
            that has work to do before its next call, a batch of all of them makes them wait for each other,
            and then the network for them.

    Attributes:
        batches: how many the network was run on so far.
        images: how many were in them.
        on_batch: is told how many images each batch had.
    """

    def __init__(self, model: Path, threads: int | None = None, share: int = 1) -> None:
        self._model = model
        self._share = share
        self._threads = threads or 0
        self._session: onnxruntime.InferenceSession | None = self._open()
        inputs, outputs = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._output = inputs.name, outputs.name
        self._image_shape = tuple(inputs.shape[1:])
        self._classes = outputs.shape[1]
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.batches = 0
        self.images = 0
        self.on_batch: Callable[[int], None] | None = None
        _engines.add(self)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits of the images.

        Raises:
            ValueError: they are not uint8 of the shape the network takes.
            RuntimeError: the engine was closed.
        """
        if not len(images):
            self._check(images)
            return np.empty((0, self._classes), np.float32)
        # One piece at a time, so that the many images of one caller do not keep the others from their turn.
        pieces = [
            self.submit(images[at : at + MAX_BATCH]).result() for at in range(0, len(images), MAX_BATCH)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def submit(self, images: np.ndarray) -> Future[np.ndarray]:
        """Ask for the logits of 1 to MAX_BATCH images without waiting for them.

        Raises:
            ValueError: they are not uint8 of the shape the network takes, or too many.
            RuntimeError: the engine was closed.
        """
        self._check(images)
        if not 0 < len(images) <= MAX_BATCH:
            raise ValueError(f"a batch has 1 to {MAX_BATCH} images: got {len(images)}")
        job = _Job(images)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="engine", daemon=True)
                thread.start()
                self._thread = thread
            self._queue.append(job)
            self._changed.notify()
        return job.logits

    def close(self) -> None:
        """Finish what has been asked for, then end the thread. Further calls raise."""
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
        while jobs := self._next_batch():
            self._answer(jobs)

    def _next_batch(self) -> list[_Job]:
        """The jobs that waited longest and fit into a batch; waits for one. Empty: the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, IDLE_SECONDS)
            if not self._queue:
                self._thread = None
            jobs: list[_Job] = []
            size = 0
            most = max(1, len(self._queue) // self._share)
            while self._queue and len(jobs) < most and size + len(self._queue[0].images) <= MAX_BATCH:
                jobs.append(self._queue.popleft())
                size += len(jobs[-1].images)
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            logits = self._infer(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].logits.set_exception(error)
                return
            for job in jobs:  # one by one: the error is for the caller it belongs to
                self._answer([job])
            return
        start = 0
        for job in jobs:
            job.logits.set_result(logits[start : start + len(job.images)])
            start += len(job.images)

    def _infer(self, jobs: list[_Job]) -> np.ndarray:
        if self._session is None:
            self._session = self._open()
        images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
        logits: np.ndarray = self._session.run([self._output], {self._input: images})[0]
        self.batches += 1
        self.images += len(images)
        if self.on_batch is not None:
            self.on_batch(len(images))
        return logits

    def _open(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that spin while they wait take the core from the threads that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])

    def _after_fork(self) -> None:
        # Threads stay in the parent, and one of them may have held the lock. The session has threads too: its
        # destructor would wait for them forever, so it is kept.
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


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
