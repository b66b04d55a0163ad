"""Inference: decode images in a few threads, and score them in batches with those of other requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request

from cifar_mlflow.scorer.engine import MAX_BATCH
from cifar_mlflow.scorer.predictor import Scorer, Scores
from serving.app.batching import Batcher, Job
from serving.app.decoding import DecodedImage, decode, is_small
from serving.app.errors import Refusal, overloaded, too_slow
from serving.app.request_body import ClientGoneError
from serving.app.worker_threads import WorkerThreads

T = TypeVar("T")

# Images that a thread decodes before it turns to another request.
DECODE_CHUNK = 8
# Most requests are answered sooner; only for the others is it worth watching whether the client disconnects.
WATCH_AFTER_SECONDS = 0.05


class Scored(NamedTuple):
    """The images in the order of the request; `scores` has a row for each without an error, or is None."""

    images: list[DecodedImage]
    scores: Scores | None
    decode_ms: float
    score_ms: float


class Inference:
    """Scores the images of requests as long as not too many wait.

    Args:
        threads: for decoding.
        limit: images that may wait or be worked on. A request that finds the queue empty may have more.
        timeout: seconds for one request, and for a table to wait for its turn.

    Attributes:
        waiting: images that were admitted and whose work has not ended yet.
    """

    def __init__(self, threads: int, limit: int, timeout: float) -> None:
        self._pool = WorkerThreads(threads, "decode")
        self._threads = threads
        self._limit = limit
        self._timeout = timeout
        self._table = asyncio.Semaphore(1)
        self._batcher = Batcher()
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0

    async def score(
        self, request: Request, scorer: Scorer, contents: Sequence[Any], explain: bool = False
    ) -> Scored:
        """Decode and score the images of a request; the scorer must stay open until this returns.

        If the request times out or its client disconnects, work that has not started is dropped. The rest
        runs to its end, and the images count as waiting until then.

        Args:
            contents: as `decode` takes them.
            explain: whether the scores need class maps, which the scorer must support.

        Raises:
            Refusal: 503, too many images wait; 504, it took too long.
            ClientGoneError: the client has disconnected.
        """
        if self.waiting and self.waiting + len(contents) > self._limit:
            raise overloaded()
        self.waiting += len(contents)
        chunks: list[Future[Any]] = []
        jobs: list[Job] = []
        try:
            async with self._deadline(request, too_slow):
                started = time.perf_counter()
                images = await self._decode(scorer, contents, chunks)
                decoded = time.perf_counter()
                pixels = [image.pixels for image in images if image.pixels is not None]
                scores = await self._score(scorer, pixels, explain, jobs)
                scored = time.perf_counter()
        finally:
            batches = [logits for job in jobs if (logits := job.drop()) is not None]
            self._when_ended(_drop(chunks) + batches, lambda: self._release(len(contents)))
        return Scored(images, scores, 1000 * (decoded - started), 1000 * (scored - decoded))

    @asynccontextmanager
    async def read_table(
        self, request: Request, read: Callable[..., Any], *arguments: Any
    ) -> AsyncIterator[Any]:
        """Read a table with a function in a thread, and enter the block with what it returns.

        A table may need many times the memory of its body, so there is one at a time, until the block ends.

        Raises:
            Refusal: 503, the turn of the table did not come in time; 504, reading it took too long.
            ClientGoneError: the client has disconnected.
        """
        async with self._deadline(request, overloaded):
            await self._table.acquire()
        table = self._pool.submit(read, *arguments)
        try:
            async with self._deadline(request, too_slow):
                await asyncio.wrap_future(table)
            yield table.result()
        finally:
            self._when_ended(_drop([table]), self._table.release)

    async def run(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in one of the decoding threads.

        Raises:
            Refusal: 504, it took too long.
            ClientGoneError: the client has disconnected.
        """
        async with self._deadline(request, too_slow):
            return await asyncio.wrap_future(self._pool.submit(function, *arguments))

    def failure(self) -> str | None:
        """Return why images get no answers, None if they do.

        The network is stuck if batches wait, and none was finished within the time of a request. Decoding is
        stuck if no thread has finished anything within that time.
        """
        stalled = self._batcher.stalled_seconds()
        if stalled > self._timeout:
            return f"No batch was finished in the last {stalled:.0f} seconds, and {len(self._batcher)} wait."
        stuck = self._pool.stuck_seconds()
        if stuck > self._timeout:
            return f"No image or table was decoded in the last {stuck:.0f} seconds: all threads are busy."
        return None

    def close(self) -> None:
        self._pool.close()

    @asynccontextmanager
    async def _deadline(self, request: Request, refusal: Callable[[], Refusal]) -> AsyncIterator[None]:
        """Cancel the block when the time of a request is over, or its client has disconnected.

        Raises:
            Refusal: the time is over; `refusal` returns it.
            ClientGoneError: the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        watcher: asyncio.Task[None] | None = None
        gone = False

        async def watch() -> None:
            nonlocal gone
            message = await request.receive()  # the body is complete: what comes next is the disconnect
            if message["type"] == "http.disconnect":
                gone = True
                deadline.reschedule(loop.time())

        def start_watching() -> None:
            nonlocal watcher
            watcher = asyncio.create_task(watch())

        timer = loop.call_later(WATCH_AFTER_SECONDS, start_watching)
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                yield
        except TimeoutError:
            raise (ClientGoneError() if gone else refusal()) from None
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()

    async def _decode(
        self, scorer: Scorer, contents: Sequence[Any], submitted: list[Future[Any]]
    ) -> list[DecodedImage]:
        if len(contents) == 1 and is_small(contents[0]):
            return [decode(scorer, contents[0])]

        def decode_chunk(start: int) -> list[DecodedImage]:
            return [decode(scorer, content) for content in contents[start : start + DECODE_CHUNK]]

        images: list[DecodedImage] = []
        for first in range(0, len(contents), DECODE_CHUNK * self._threads):
            last = min(first + DECODE_CHUNK * self._threads, len(contents))
            chunks = [self._pool.submit(decode_chunk, start) for start in range(first, last, DECODE_CHUNK)]
            submitted += chunks
            for chunk in chunks:
                decoded = await asyncio.wrap_future(chunk)
                images += decoded
        return images

    async def _score(
        self, scorer: Scorer, pixels: list[np.ndarray], explain: bool, jobs: list[Job]
    ) -> Scores | None:
        if not pixels:
            return None
        parts = []
        for start in range(0, len(pixels), MAX_BATCH):
            job = self._batcher.submit(scorer, pixels[start : start + MAX_BATCH], explain)
            jobs.append(job)
            parts.append(await job.scores)
        return parts[0] if len(parts) == 1 else Scores(*map(np.concatenate, zip(*parts, strict=True)))

    def _release(self, count: int) -> None:
        self.waiting -= count

    def _when_ended(self, running: list[Future[Any]], action: Callable[[], None]) -> None:
        """Call the function once the work has ended."""
        if running:
            task = asyncio.create_task(_wait_and_call(running, action))
            self._tasks.add(task)  # the event loop keeps weak references only
            task.add_done_callback(self._tasks.discard)
        else:
            action()


def _drop(work: list[Future[Any]]) -> list[Future[Any]]:
    """Drop the work that has not started; return the rest that has not ended."""
    return [future for future in work if not (future.done() or future.cancel())]


async def _wait_and_call(running: list[Future[Any]], action: Callable[[], None]) -> None:
    await asyncio.wait([asyncio.wrap_future(future) for future in running])
    action()
