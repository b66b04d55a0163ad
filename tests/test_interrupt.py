"""Signals during a training or an evaluation."""

import faulthandler
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import pytest

from cifar_mlflow import interrupt
from cifar_mlflow.interrupt import Interrupted, StopRequest, stoppable, terminable


def test_a_signal_only_sets_the_request() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.raise_if_asked()


def test_a_signal_raises_at_once_within_at_once() -> None:
    def work() -> None:
        with suppress(Exception):  # as in a library: it must not swallow the interruption
            signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was ignored")

    with StopRequest() as stop, pytest.raises(Interrupted, match="SIGTERM"), stop.at_once():
        work()


def test_a_signal_too_late_for_a_job_stops_the_job_around_it() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            with inner.at_once():
                pass
            signal.raise_signal(signal.SIGTERM)
        assert outer.signum == signal.SIGTERM


def test_a_job_takes_over_a_signal_that_arrived_before_it_began() -> None:
    """Between two trials of a search, only the loop around them receives the signal."""
    with StopRequest() as outer:
        signal.raise_signal(signal.SIGINT)
        with StopRequest() as inner:
            assert inner.signum == signal.SIGINT
        assert outer.signum == signal.SIGINT  # leaving the inner one is not a second Ctrl-C


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints an exception that is raised there, and continues."""

    class Signals:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Signals()

    with StopRequest() as stop, pytest.raises(Interrupted, match="SIGTERM"), stop.at_once():
        work()

    monkeypatch.setattr(interrupt, "SECONDS_TO_CLEAN_UP", 0)
    with StopRequest() as stop, stop.at_once():
        Signals()
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        stop.signum = None


def test_ctrl_c_stops_a_job_that_ends_slowly_after_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage of MLflow, the end of a run waits for minutes."""
    monkeypatch.setattr(interrupt, "SECONDS_TO_CLEAN_UP", 0)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.raise_if_asked()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_follows_a_job_does_not_begin_after_a_signal_at_its_end() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), stoppable(), StopRequest():
        signal.raise_signal(signal.SIGTERM)


def test_a_job_runs_in_any_thread_and_under_any_handler() -> None:
    def run() -> None:
        with StopRequest() as stop, stop.at_once():
            done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]

    faulthandler.register(signal.SIGHUP, chain=False)  # a handler in C, which Python shows as None
    try:
        run()
    finally:
        faulthandler.unregister(signal.SIGHUP)
    assert done == [True, True]


def test_only_the_first_signal_and_a_later_ctrl_c_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow run` sends SIGTERM after the terminal's SIGINT: it must not disturb the end of the run."""
    with StopRequest() as stop:
        with pytest.raises(Interrupted, match="SIGINT"), stop.at_once():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # so soon after the first, it is not a second Ctrl-C
        monkeypatch.setattr(interrupt, "SECONDS_TO_CLEAN_UP", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [nullcontext, stoppable])
def test_a_signal_in_the_callback_of_a_weak_reference_stops_work_that_goes_on(
    stop: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registration went on for more than a minute after SIGTERM."""
    monkeypatch.setattr(interrupt, "SECONDS_TO_CLEAN_UP", 0)

    class Watched:
        pass

    def work() -> None:
        watched = Watched()
        callback = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGTERM))
        del watched
        time.sleep(20)
        pytest.fail(f"the signal was lost in {callback}")

    with pytest.raises(Interrupted, match="SIGTERM"), terminable(), stop():
        work()
