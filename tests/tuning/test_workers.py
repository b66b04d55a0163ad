"""The environment that a search gives its worker processes, and their end."""

import signal
from typing import Any, cast

import pytest

from cifar_mlflow.interrupt import StopRequest
from tuning import workers
from tuning.study_spec import WorkerSpec
from tuning.workers import own_gpu, run_workers


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, [None, None, None]),
        (1, "3", [None, None, None]),  # all workers share it
        (2, None, ["0", "1", "0"]),
        (2, "5,7", ["5", "7", "5"]),
    ],
)
def test_workers_take_the_gpus_in_turn(count: int, visible: str | None, expected: list[str | None]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    given = [own_gpu(index, count, environment).get("CUDA_VISIBLE_DEVICES") for index in range(3)]
    assert given == expected


def test_no_error_of_the_search_kills_a_worker_in_the_middle_of_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    class Busy:
        returncode = None

        def __init__(self, spec: WorkerSpec) -> None:
            pass

        def send(self, signum: int) -> None:
            calls.append(signal.Signals(signum).name)

        def wait(self, seconds: float) -> None:
            calls.append("wait")

    def fail() -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(workers, "WorkerProcess", Busy)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        run_workers([cast(WorkerSpec, None)], StopRequest(), lambda: 0, fail)
    assert calls == ["SIGTERM", "wait"]
