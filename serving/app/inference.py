"""Inference: decode images in a few threads, and score them in batches with those of other requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request

from cifar_mlflow.scorer.engine import MAX_BATCH
from cifar_mlflow.scorer.predictor import Scorer, Scores
from serving.app.decoding import DecodedImage, decode, is_small
from serving.app.errors import overloaded, too_slow
from serving.app.request_body import ClientGoneError

# Images that a thread decodes before it turns to another request.
DECODE_CHUNK = 8
# Most requests are answered sooner; only for the others it is worth to watch whether the client disconnects.
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
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._threads = threads
        self._limit = limit
        self._timeout = timeout
        self._table = asyncio.Semaphore(1)
        self._batches: set[Future[np.ndarray]] = set()
        self._last_batch = 0.0
        self._releases: set[asyncio.Task[None]] = set()
        self.waiting = 0

    async def score(self, request: Request, scorer: Scorer, contents: Sequence[Any]) -> Scored:
        """Decode and score the images of a request; the scorer must stay open until this returns.

        Work that has not started when the request times out or its client disconnects is dropped. The images
        count as waiting until the rest of it has ended.

        Raises:
            Refusal: 503, too many images wait; 504, it took too long.
            ClientGoneError: the client has disconnected.
        """
        if self.waiting and self.waiting + len(contents) > self._limit:
            raise overloaded()
        self.waiting += len(contents)
        work: list[Future[Any]] = []
        try:
            async with self._deadline(request):
                begun = time.perf_counter()
                images = await self._decode(scorer, contents, work)
                decoded = time.perf_counter()
                pixels = [image.pixels for image in images if image.pixels is not None]
                scores = await self._score(scorer, pixels, work)
                scored = time.perf_counter()
        finally:
            self._release(len(contents), work)
        return Scored(images, scores, 1000 * (decoded - begun), 1000 * (scored - decoded))

    @asynccontextmanager
    async def table(self) -> AsyncIterator[None]:
        """Wait for the turn of a table, which may need many times the memory of its body: one at a time.

        Raises:
            Refusal: 503, its turn did not come in time.
        """
        try:
            await asyncio.wait_for(self._table.acquire(), self._timeout)
        except TimeoutError:
            raise overloaded() from None
        try:
            yield
        finally:
            self._table.release()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that would block the event loop in one of the decoding threads.

        Raises:
            Refusal: 504, it took too long, or no thread was free.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.wrap_future(self._pool.submit(function, *arguments))
        except TimeoutError:
            raise too_slow() from None

    def failure(self) -> str | None:
        """Return why images get no answers, None if they do.

        The network is stuck if batches wait, and none was finished within the time of a request.
        """
        stalled = time.monotonic() - self._last_batch
        if self._batches and stalled > self._timeout:
            return f"No batch was finished in the last {stalled:.0f} seconds, and {len(self._batches)} wait."
        return None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def _deadline(self, request: Request) -> AsyncIterator[None]:
        """Cancel the block when the time of a request is over, or its client has disconnected."""
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
            raise (ClientGoneError() if gone else too_slow()) from None
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()

    async def _decode(
        self, scorer: Scorer, contents: Sequence[Any], work: list[Future[Any]]
    ) -> list[DecodedImage]:
        if len(contents) == 1 and is_small(contents[0]):
            return [decode(scorer, contents[0])]

        def decode_chunk(start: int) -> list[DecodedImage]:
            return [decode(scorer, content) for content in contents[start : start + DECODE_CHUNK]]

        images: list[DecodedImage] = []
        for first in range(0, len(contents), DECODE_CHUNK * self._threads):
            last = min(first + DECODE_CHUNK * self._threads, len(contents))
            chunks = [self._pool.submit(decode_chunk, start) for start in range(first, last, DECODE_CHUNK)]
            work += chunks
            for chunk in chunks:
                images += await asyncio.wrap_future(chunk)
        return images

    async def _score(
        self, scorer: Scorer, pixels: list[np.ndarray], work: list[Future[Any]]
    ) -> Scores | None:
        if not pixels:
            return None
        logits = []
        for start in range(0, len(pixels), MAX_BATCH):
            batch = scorer.engine.submit(np.stack(pixels[start : start + MAX_BATCH]))
            work.append(batch)
            if not self._batches:
                self._last_batch = time.monotonic()
            self._batches.add(batch)
            batch.add_done_callback(self._batch_ended)
            logits.append(await asyncio.wrap_future(batch))
        return scorer.scores(logits[0] if len(logits) == 1 else np.concatenate(logits))

    def _batch_ended(self, batch: "Future[np.ndarray]") -> None:
        """Called in the thread of the engine."""
        self._batches.discard(batch)
        if not batch.cancelled():
            self._last_batch = time.monotonic()

    def _release(self, count: int, work: list[Future[Any]]) -> None:
        """Drop the work that has not started; free the places of the images once the rest has ended."""
        running = [future for future in work if not (future.done() or future.cancel())]
        if running:
            task = asyncio.create_task(self._release_later(count, running))
            self._releases.add(task)  # the event loop keeps weak references only
            task.add_done_callback(self._releases.discard)
        else:
            self.waiting -= count

    async def _release_later(self, count: int, running: list[Future[Any]]) -> None:
        await asyncio.wait([asyncio.wrap_future(future) for future in running])
        self.waiting -= count
