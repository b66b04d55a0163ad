"""The output of a job in a terminal and in a pipe."""

import os
import subprocess
import sys

import click
import pytest

from cifar_mlflow.console import duration

COMMAND = "cifar-mlflow tune --storage sqlite:////a/long/path/optuna.db --dataset sample --trials 20"
PROGRAM = f"""
import logging
from cifar_mlflow.console import set_up_logging, spinner
set_up_logging()
with spinner("Drawing the plots"):
    logging.getLogger("cifar_mlflow").info("Stopped; [b]continue[/b] with: {COMMAND}")
"""


def output_of_program(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return click.unstyle(done.stderr)


@pytest.mark.parametrize("width", ["60", "300"])
def test_a_terminal_shows_a_command_in_one_line_and_a_spinner(width: str) -> None:
    output = output_of_program(TTY_COMPATIBLE="1", TERM="xterm", COLUMNS=width)
    assert f"Stopped; [b]continue[/b] with: {COMMAND}\n" in output
    assert "Drawing the plots" in output


def test_a_pipe_gets_a_line_per_phase_instead_of_the_spinner() -> None:
    phase, line = output_of_program(COLUMNS="60").splitlines()
    assert phase.endswith(" Drawing the plots")
    assert line.endswith(COMMAND)


def test_a_table_in_a_narrow_terminal_fits_and_keeps_the_id_of_a_run_in_one_piece() -> None:
    program = """
from cifar_mlflow.console import print_table
name, status = "cnn epochs=3 on photos of many things", "cifar10/12 champion, previous"
row = ("0" * 32, name, "cifar10-sample", "88.0 %", status)
print_table(("run", "name", "data", "val", "status"), [row])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    output = click.unstyle(done.stdout)
    assert max(map(len, output.splitlines())) <= 80
    for text in ("0" * 32, "cnn epochs=3", "cifar10/12", "champion", "cifar10-sample"):
        assert text in output


def test_times_left_change_their_unit_once() -> None:
    texts = [duration(seconds) for seconds in (7300, 7100, 150, 121, 119, 91, 89, 7)]
    assert texts == ["2 h 02 min", "118 min", "2 min", "2 min", "2 min", "2 min", "89 s", "7 s"]
    assert [duration(seconds) for seconds in (90, 90.4)] == ["2 min", "2 min"]


def test_the_garbage_collector_never_scans_the_libraries() -> None:
    """Scanning them when the process ends took a second."""
    program = """
import gc
from cifar_mlflow.console import loading
with loading():
    assert not gc.isenabled()
    import fractions
assert gc.isenabled()
assert gc.get_freeze_count() > len(gc.get_objects())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
