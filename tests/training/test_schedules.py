"""Learning-rate schedules: bounds, peak and ends, for every schedule and warm-up."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_mlflow.config import ScheduleName
from cifar_mlflow.training.schedules import lr_factor

SCHEDULES = get_args(ScheduleName)
schedules = st.sampled_from(SCHEDULES)
warmups = st.floats(0, 0.9)
progresses = st.floats(0, 1, exclude_max=True)


@given(schedules, warmups, progresses)
def test_the_factor_is_between_zero_and_one(schedule: ScheduleName, warmup: float, progress: float) -> None:
    assert 0 <= lr_factor(schedule, warmup, progress) <= 1


@given(schedules, warmups)
def test_peak_is_reached_when_the_warm_up_ends(schedule: ScheduleName, warmup: float) -> None:
    assert lr_factor(schedule, warmup, warmup) == 1


@given(schedules, warmups, progresses, progresses)
def test_rises_during_warm_up_and_never_after(
    schedule: ScheduleName, warmup: float, one: float, other: float
) -> None:
    early, late = sorted((one, other))
    if late <= warmup:
        assert lr_factor(schedule, warmup, early) <= lr_factor(schedule, warmup, late)
    if early >= warmup:
        assert lr_factor(schedule, warmup, early) >= lr_factor(schedule, warmup, late)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "linear"])
@given(warmup=warmups)
def test_ends_near_zero(schedule: ScheduleName, warmup: float) -> None:
    assert lr_factor(schedule, warmup, 1 - 1e-6) < 1e-3


@pytest.mark.parametrize(
    ("schedule", "start", "half_way_up", "half_way_down"),
    [
        ("one_cycle", 0.04, 0.52, 0.5),
        ("cosine", 0.0, 0.5, 0.5),
        ("linear", 0.0, 0.5, 0.5),
        ("constant", 0.0, 0.5, 1.0),
    ],
)
def test_shapes(schedule: ScheduleName, start: float, half_way_up: float, half_way_down: float) -> None:
    factors = [lr_factor(schedule, 0.2, progress) for progress in (0, 0.1, 0.6)]
    assert factors == pytest.approx([start, half_way_up, half_way_down])
