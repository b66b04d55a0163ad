"""Signals while a training or an evaluation is at work."""

import signal
from contextlib import suppress

import pytest

from cifar_mlflow.interrupt import Interrupted, StopRequest


def test_a_signal_waits_to_be_asked_for() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.raise_if_asked()


def test_in_a_block_that_may_be_left_anywhere_a_signal_does_not_wait() -> None:
    def work() -> None:
        with suppress(Exception):  # as libraries do: they must not take it for an error
            signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was kept waiting")

    with StopRequest() as stop, pytest.raises(Interrupted, match="SIGTERM"), stop.at_once():
        work()


def test_a_signal_at_the_end_of_one_of_many_works_is_told_to_the_work_around_it() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            with inner.at_once():
                pass
            signal.raise_signal(signal.SIGTERM)
        assert outer.signum == signal.SIGTERM


def test_only_the_first_signal_and_a_second_ctrl_c_raise() -> None:
    """`mlflow run` sends SIGTERM after the terminal's SIGINT: it must not disturb the end of the run."""
    with StopRequest() as stop:
        with pytest.raises(Interrupted, match="SIGINT"), stop.at_once():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
