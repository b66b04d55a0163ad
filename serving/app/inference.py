"""The work on the pictures of a request: decoded in a few threads, scored in batches with those of others."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import numpy as np

from cifar_mlflow.scorer.engine import MAX_BATCH
from cifar_mlflow.scorer.predictor import Scorer, Scores
from serving.app.errors import overloaded, too_slow
from serving.app.pictures import Picture, decode, is_small

# What a thread decodes before it turns to another request.
PIECE = 8


class Scored(NamedTuple):
    """The pictures in their order; `scores` are of the good ones alone, None if there is none."""

    pictures: list[Picture]
    scores: Scores | None
    decode_ms: float
    score_ms: float


class Work:
    """Takes pictures as long as not too many wait.

    Args:
        threads: that decode.
        limit: pictures that may wait or be worked on at a time. One request alone may have more.
        seconds: for one request, and for the wait of a table before it.

    Attributes:
        waiting: how many are there now.
    """

    def __init__(self, threads: int, limit: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._threads = threads
        self._limit = limit
        self._seconds = seconds
        self._table = asyncio.Semaphore(1)
        self.waiting = 0

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Room for so many pictures.

        Raises:
            Refusal: 503, there is none.
        """
        if self.waiting and self.waiting + count > self._limit:
            raise overloaded()
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count

    @asynccontextmanager
    async def table(self) -> AsyncIterator[None]:
        """The turn of a table, which may take many times the memory of its body: there is one at a time.

        Raises:
            Refusal: 503, it did not come in time.
        """
        try:
            await asyncio.wait_for(self._table.acquire(), self._seconds)
        except TimeoutError:
            raise overloaded() from None
        try:
            yield
        finally:
            self._table.release()

    async def score(self, scorer: Scorer, contents: Sequence[Any]) -> Scored:
        """Decode and score. Who calls holds the scorer, and has room for the pictures.

        Raises:
            Refusal: 504, it took too long.
        """
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                pictures = await self._decode(scorer, contents)
                decoded = time.perf_counter()
                scores = await self._scores(
                    scorer, [each.pixels for each in pictures if each.pixels is not None]
                )
        except TimeoutError:
            raise too_slow() from None
        score_ms = 1000 * (time.perf_counter() - decoded)
        for picture in pictures:
            if picture.error is None:
                picture.known["score_ms"] = score_ms
        return Scored(pictures, scores, 1000 * (decoded - begun), score_ms)

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Work that would hold up the other requests, in one of the threads.

        Raises:
            Refusal: 504, it took too long, or no thread was free.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except TimeoutError:
            raise too_slow() from None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def _decode(self, scorer: Scorer, contents: Sequence[Any]) -> list[Picture]:
        if len(contents) == 1 and is_small(contents[0]):
            return [decode(scorer, contents[0])]

        def some(start: int) -> list[Picture]:
            return [decode(scorer, content) for content in contents[start : start + PIECE]]

        pictures: list[Picture] = []
        at_once = PIECE * self._threads
        for start in range(0, len(contents), at_once):
            starts = range(start, min(start + at_once, len(contents)), PIECE)
            for piece in await asyncio.gather(*(self.run(some, each) for each in starts)):
                pictures += piece
        return pictures

    async def _scores(self, scorer: Scorer, images: list[np.ndarray]) -> Scores | None:
        if not images:
            return None
        logits = []
        for start in range(0, len(images), MAX_BATCH):
            batch = np.stack(images[start : start + MAX_BATCH])
            logits.append(await asyncio.wrap_future(scorer.engine.submit(batch)))
        return scorer.scores(logits[0] if len(logits) == 1 else np.concatenate(logits))
