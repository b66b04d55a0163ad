"""Concurrent callers share the network's batches, and each gets its own logits."""

import gc
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_mlflow.scorer import engine as engine_module
from cifar_mlflow.scorer.engine import MAX_BATCH, Engine
from tests.scorer_folders import SIZE, colour_network


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(colour_network(tmp_path / "model.onnx"), threads=1)
    yield engine
    engine.close()


class Busy:
    """Keep an engine in its first batch until `release`, so that everything submitted meanwhile queues up.

    Attributes:
        sizes: Number of images in each batch.
    """

    def __init__(self, engine: Engine) -> None:
        self.sizes: list[int] = []
        self._started, self._released = threading.Event(), threading.Event()
        engine.on_batch = self._on_batch
        self.first = engine.submit(gray(1))
        assert self._started.wait(60)

    def release(self) -> None:
        self._released.set()

    def _on_batch(self, size: int) -> None:
        self.sizes.append(size)
        self._started.set()
        assert self._released.wait(60)


@pytest.fixture
def explaining(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(colour_network(tmp_path / "model.onnx", class_map=True), threads=1)
    yield engine
    engine.close()


def test_batches_of_several_threads_are_computed_side_by_side(explaining: Engine) -> None:
    images = [gray(value, value + 1) for value in range(40)]
    expected = [explaining.run(batch, True) for batch in images]
    with ThreadPoolExecutor(4) as threads:
        computed = list(threads.map(partial(explaining.compute, explain=True), images))
    assert [batch.tolist() for batch in computed] == [batch.tolist() for batch in expected]
    assert explaining.images == 2 * 2 * 40


def gray(*values: int) -> np.ndarray:
    """Return grey images of these values."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), SIZE, SIZE, 3))


def logits(*values: int) -> np.ndarray:
    """Return the network's logits for grey images of these values."""
    return np.repeat(np.array(values, np.float32)[:, None] * 10 / 255, 3, axis=1)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Start the calls together, each in a thread of its own, and return their results or errors."""
    start = threading.Barrier(len(calls))

    def call(function: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return function()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_logits_are_those_of_the_network(engine: Engine) -> None:
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    images[0, :, :, 1] = 255
    images[1, : SIZE // 2, :, 2] = 255
    result = engine.run(images)
    np.testing.assert_allclose(result, [[0, 10, 0], [0, 0, 5]], rtol=1e-5)
    assert result.dtype == np.float32


def test_no_images_give_no_logits(engine: Engine) -> None:
    assert engine.run(np.empty((0, SIZE, SIZE, 3), np.uint8)).shape == (0, 3)


def test_concurrent_callers_share_a_batch_and_get_their_own_logits(engine: Engine) -> None:
    busy = Busy(engine)
    values = range(0, 160, 10)
    futures: list[Future[np.ndarray]] = at_once([partial(engine.submit, gray(value)) for value in values])
    busy.release()
    for value, future in zip(values, futures, strict=True):
        np.testing.assert_allclose(future.result(), logits(value), rtol=1e-5)
    assert busy.sizes == [1, len(values)]
    assert (engine.batches, engine.images) == (2, 1 + len(values))


def test_share_limits_the_callers_in_a_batch(tmp_path: Path) -> None:
    engine = Engine(colour_network(tmp_path / "model.onnx"), threads=1, share=3)
    busy = Busy(engine)
    futures = [engine.submit(gray(value)) for value in range(9)]
    busy.release()
    for value, future in enumerate(futures):
        np.testing.assert_allclose(future.result(), logits(value), rtol=1e-5)
    engine.close()
    assert busy.sizes == [1, 3, 2, 1, 1, 1, 1]


def test_a_single_caller_has_its_own_batches(engine: Engine) -> None:
    for value in range(5):
        engine.run(gray(value))
    assert engine.batches == 5


def test_many_images_are_computed_in_several_batches_and_keep_their_order(engine: Engine) -> None:
    values = [index % 251 for index in range(2 * MAX_BATCH + 20)]
    np.testing.assert_allclose(engine.run(gray(*values)), logits(*values), rtol=1e-5)
    assert engine.batches == 3


def test_callers_that_exceed_a_batch_together_get_several(engine: Engine) -> None:
    busy = Busy(engine)
    values = [value % 251 for value in range(MAX_BATCH * 2 // 3)]
    futures = [engine.submit(gray(*values)) for _ in range(3)]
    busy.release()
    for future in futures:
        np.testing.assert_allclose(future.result(), logits(*values), rtol=1e-5)
    assert busy.sizes == [1, len(values), len(values), len(values)]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused(engine: Engine, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 32, 32, 3\): got"):
        engine.run(images)


def test_an_error_reaches_only_the_caller_whose_images_caused_it(tmp_path: Path) -> None:
    engine = Engine(colour_network(tmp_path / "fails_at_255.onnx", slow=True), threads=1)
    for _ in range(2):
        busy = Busy(engine)
        failed, *others = (engine.submit(gray(value)) for value in (255, 1, 2, 3))
        busy.release()
        assert isinstance(failed.exception(), Exception)
        for value, future in enumerate(others, start=1):
            np.testing.assert_allclose(future.result(), logits(value), rtol=1e-5)
        assert engine.is_alive
    engine.close()


def test_a_cancelled_call_is_not_computed(engine: Engine) -> None:
    busy = Busy(engine)
    cancelled, kept = engine.submit(gray(1, 2, 3)), engine.submit(gray(4))
    assert cancelled.cancel()
    busy.release()
    np.testing.assert_allclose(kept.result(), logits(4), rtol=1e-5)
    with pytest.raises(CancelledError):
        cancelled.result()
    assert busy.sizes == [1, 1]


def test_calls_go_on_after_all_waiting_ones_were_cancelled(engine: Engine) -> None:
    busy = Busy(engine)
    for future in [engine.submit(gray(1)) for _ in range(3)]:
        assert future.cancel()
    busy.release()
    busy.first.result()
    np.testing.assert_allclose(engine.run(gray(5)), logits(5), rtol=1e-5)


def test_an_engine_is_alive_until_it_is_closed(engine: Engine) -> None:
    assert engine.is_alive
    engine.run(gray(1))
    assert engine.is_alive
    engine.close()
    assert not engine.is_alive


def test_a_crash_of_the_thread_fails_every_waiting_call(engine: Engine) -> None:
    started, released = threading.Event(), threading.Event()

    def crash(_: int) -> None:
        started.set()
        assert released.wait(60)
        raise SystemExit

    engine.on_batch = crash
    current = engine.submit(gray(1))
    assert started.wait(60)
    waiting, cancelled = engine.submit(gray(2)), engine.submit(gray(3))
    assert cancelled.cancel()
    released.set()
    for future in (current, waiting):
        with pytest.raises(RuntimeError, match="the engine has crashed"):
            future.result(60)
    assert not engine.is_alive
    with pytest.raises(RuntimeError, match="the engine has crashed"):
        engine.run(gray(1))
    engine.close()


def test_closing_computes_everything_submitted_and_ends_the_thread(engine: Engine) -> None:
    others = engine_threads()
    busy = Busy(engine)
    futures = [engine.submit(gray(*[value] * MAX_BATCH)) for value in range(5)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close)
        busy.release()
        closing.result()
    assert engine_threads() <= others
    for value, future in enumerate(futures):
        np.testing.assert_allclose(future.result(0), logits(*[value] * MAX_BATCH), rtol=1e-5)


def test_closing_leaves_no_caller_waiting(engine: Engine) -> None:
    results = at_once([partial(engine.run, gray(1))] * 6 + [engine.close])
    for result in results[:-1]:
        if isinstance(result, Exception):
            assert str(result) == "the engine is closed"
        else:
            np.testing.assert_allclose(result, logits(1), rtol=1e-5)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.run(gray(1))


def test_closing_an_idle_engine_does_not_wait_for_its_thread_to_time_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 3600)
    engine.run(gray(1))
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_an_unreferenced_engine_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
    engine = Engine(colour_network(tmp_path / "model.onnx"), threads=1)
    engine.run(gray(1))
    reference = weakref.ref(engine)
    del engine
    wait_for(lambda: reference() is None)


def test_an_idle_engine_is_alive_and_answers_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
    others = engine_threads()
    engine.run(gray(1))
    wait_for(lambda: engine_threads() <= others)
    assert engine.is_alive
    np.testing.assert_allclose(engine.run(gray(7)), logits(7), rtol=1e-5)


def test_a_forked_process_has_its_own_session_and_can_close_it(tmp_path: Path) -> None:
    engines = [Engine(colour_network(tmp_path / "slow.onnx", slow=True), threads=2)]
    engines[0].run(gray(1))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child(pipe: Connection) -> None:
        pipe.send(engines[0].run(gray(9)))
        pipe.send(len(list(Path("/proc/self/task").iterdir())))
        engines.pop().close()
        gc.collect()

    process = context.Process(target=child, args=(theirs,))
    process.start()
    try:
        assert ours.poll(60)
        np.testing.assert_allclose(ours.recv(), logits(9), rtol=1e-5)
        assert ours.recv() == 3  # the calling thread, the engine's, and ONNX Runtime's second compute thread
        process.join(60)
        assert process.exitcode == 0
        np.testing.assert_allclose(engines[0].run(gray(8)), logits(8), rtol=1e-5)
    finally:
        process.kill()
        engines[0].close()


def test_in_a_common_batch_only_the_callers_that_ask_get_maps(explaining: Engine) -> None:
    busy = Busy(explaining)
    asked, plain = explaining.submit(gray(10, 20), explain=True), explaining.submit(gray(30))
    busy.release()
    np.testing.assert_allclose(plain.result(60), logits(30), rtol=1e-5)
    found = asked.result(60)
    assert busy.sizes == [1, 3]
    np.testing.assert_allclose(found[:, :3], logits(10, 20), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:].reshape(2, 3, 16).sum(2), logits(10, 20), rtol=1e-5)


def test_a_network_without_maps_refuses_to_explain(engine: Engine) -> None:
    assert not engine.explains
    with pytest.raises(ValueError, match="gives no maps"):
        engine.run(gray(1), explain=True)
