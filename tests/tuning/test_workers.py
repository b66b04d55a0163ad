"""The environment that a search gives its worker processes."""

import pytest

from tuning.workers import own_gpu


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
