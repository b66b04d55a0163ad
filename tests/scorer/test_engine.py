"""Concurrent callers share the network's batches, and each gets its own answer."""

import gc
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture
def slow_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(colour_network(tmp_path / "slow.onnx", slow=True), threads=1)
    yield engine
    engine.close()


def plain(*values: int) -> np.ndarray:
    """Gray images of these values."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), SIZE, SIZE, 3))


def logits(*values: int) -> np.ndarray:
    """What the network makes of them."""
    return np.repeat(np.array(values, np.float32)[:, None] * 10 / 255, 3, axis=1)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Results or errors of calls that are begun together, each in its own thread."""
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


def test_the_logits_are_those_of_the_network(engine: Engine) -> None:
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    images[0, :, :, 1] = 255
    images[1, : SIZE // 2, :, 2] = 255
    result = engine.run(images)
    np.testing.assert_allclose(result, [[0, 10, 0], [0, 0, 5]], rtol=1e-5)
    assert result.dtype == np.float32


def test_no_images_are_no_logits(engine: Engine) -> None:
    assert engine.run(np.empty((0, SIZE, SIZE, 3), np.uint8)).shape == (0, 3)


def test_concurrent_callers_share_batches_and_get_their_own_logits(slow_engine: Engine) -> None:
    values = range(0, 160, 10)
    results = at_once([partial(slow_engine.run, plain(value)) for value in values])
    for value, result in zip(values, results, strict=True):
        np.testing.assert_allclose(result, logits(value), rtol=1e-5)
    assert slow_engine.images == len(values)
    assert slow_engine.batches < len(values) / 2


def test_a_batch_may_be_a_share_of_those_who_wait(tmp_path: Path) -> None:
    engine = Engine(colour_network(tmp_path / "slow.onnx", slow=True), threads=1, share=3)
    sizes: list[int] = []
    engine.on_batch = sizes.append
    first = engine.submit(plain(*[1] * MAX_BATCH))
    wait_for(lambda: not engine._queue)
    waiting = {value: engine.submit(plain(value)) for value in range(9)}
    first.result()
    for value, result in waiting.items():
        np.testing.assert_allclose(result.result(), logits(value), rtol=1e-5)
    engine.close()
    assert sizes == [MAX_BATCH, 3, 2, 1, 1, 1, 1]


def test_a_lone_caller_has_its_own_batch(engine: Engine) -> None:
    for value in range(5):
        engine.run(plain(value))
    assert engine.batches == 5


def test_many_images_are_computed_in_pieces_and_come_back_in_order(engine: Engine) -> None:
    values = [index % 251 for index in range(2 * MAX_BATCH + 20)]
    np.testing.assert_allclose(engine.run(plain(*values)), logits(*values), rtol=1e-5)
    assert engine.batches == 3


def test_callers_that_do_not_fit_into_one_batch_have_several(slow_engine: Engine) -> None:
    most = [value % 251 for value in range(MAX_BATCH * 2 // 3)]
    results = at_once([partial(slow_engine.run, plain(*most))] * 3)
    for result in results:
        np.testing.assert_allclose(result, logits(*most), rtol=1e-5)
    assert slow_engine.batches == 3


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


def test_an_error_reaches_the_caller_it_belongs_to_and_no_other(slow_engine: Engine) -> None:
    for _ in range(2):
        failed, *others = at_once(
            [
                partial(slow_engine.run, plain(255)),
                *[partial(slow_engine.run, plain(value)) for value in range(1, 6)],
            ]
        )
        assert isinstance(failed, Exception)
        for value, result in enumerate(others, start=1):
            np.testing.assert_allclose(result, logits(value), rtol=1e-5)


def test_closing_finishes_what_was_asked_for_and_ends_the_thread(slow_engine: Engine) -> None:
    others = engine_threads()
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(slow_engine.run, plain(*[value] * MAX_BATCH)) for value in range(5)]
        wait_for(lambda: slow_engine.batches > 0)
        slow_engine.close()
        assert engine_threads() <= others
        for value, call in enumerate(calls):
            np.testing.assert_allclose(call.result(), logits(*[value] * MAX_BATCH), rtol=1e-5)


def test_closing_leaves_no_caller_waiting(slow_engine: Engine) -> None:
    results = at_once([partial(slow_engine.run, plain(1))] * 6 + [slow_engine.close])
    for result in results[:-1]:
        if isinstance(result, Exception):
            assert str(result) == "the engine is closed"
        else:
            np.testing.assert_allclose(result, logits(1), rtol=1e-5)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        slow_engine.run(plain(1))


def test_closing_an_idle_engine_does_not_wait_for_it_to_be_let_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 3600)
    engine.run(plain(1))
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()


def test_an_engine_that_nobody_holds_any_longer_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
    engine = Engine(colour_network(tmp_path / "model.onnx"), threads=1)
    engine.run(plain(1))
    reference = weakref.ref(engine)
    del engine
    wait_for(lambda: reference() is None)


def test_an_engine_answers_again_after_a_pause(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
    others = engine_threads()
    engine.run(plain(1))
    wait_for(lambda: engine_threads() <= others)
    np.testing.assert_allclose(engine.run(plain(7)), logits(7), rtol=1e-5)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_forked_process_has_an_engine_of_its_own_and_can_let_it_go(tmp_path: Path) -> None:
    engines = [Engine(colour_network(tmp_path / "slow.onnx", slow=True), threads=2)]
    engines[0].run(plain(1))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child(pipe: Connection) -> None:
        pipe.send(engines[0].run(plain(9)))
        pipe.send(len(list(Path("/proc/self/task").iterdir())))
        engines.pop().close()
        gc.collect()

    process = context.Process(target=child, args=(theirs,))
    process.start()
    try:
        assert ours.poll(60)
        np.testing.assert_allclose(ours.recv(), logits(9), rtol=1e-5)
        assert ours.recv() == 3  # the one that asks, the engine's, and one more that computes
        process.join(60)
        assert process.exitcode == 0
        np.testing.assert_allclose(engines[0].run(plain(8)), logits(8), rtol=1e-5)
    finally:
        process.kill()
        engines[0].close()
