"""The simulation of the autoscaler agrees with queueing theory and with the published algorithm."""

import math
from itertools import pairwise

import pytest

from benchmarks.autoscaling import Load, Replica, Scaler, simulate


@pytest.mark.parametrize("utilization", [0.3, 0.8])
def test_one_replica_is_a_queue_with_equal_service_times(utilization: float) -> None:
    """The mean wait of M/D/1 is u / (2 (1 - u)) service times (Pollaczek-Khinchine)."""
    load = Load(base=100 * utilization, peak=100 * utilization, before=0, hold=1_500, after=0)
    outcome = simulate(
        load, Replica(rate=100, queue=1_000, start=0), Scaler("cpu", 1.0, minimum=1, maximum=1)
    )
    expected = 0.01 * (1 + utilization / (2 * (1 - utilization)))
    assert sum(outcome.latencies) / len(outcome.latencies) == pytest.approx(expected, rel=0.05)
    assert outcome.refused == 0


def test_the_wait_grows_with_the_spread_of_the_service_times() -> None:
    """The mean wait of M/G/1 is u (1 + c^2) / (2 (1 - u)) service times, c^2 = variance / mean^2."""
    load = Load(base=80, peak=80, before=0, hold=2_500, after=0)
    replica = Replica(rate=100, queue=1_000, start=0, spread=2.5)
    assert math.exp(2.326 * replica.sigma - replica.sigma**2 / 2) == pytest.approx(2.5)
    outcome = simulate(load, replica, Scaler("cpu", 1.0, minimum=1, maximum=1))
    variance = math.exp(replica.sigma**2) - 1
    expected = 0.01 * (1 + 0.8 * (1 + variance) / (2 * (1 - 0.8)))
    assert sum(outcome.latencies) / len(outcome.latencies) == pytest.approx(expected, rel=0.05)


def test_requests_above_the_capacity_are_refused() -> None:
    load = Load(base=200, peak=200, before=0, hold=500, after=0)
    outcome = simulate(load, Replica(rate=100, queue=10, start=0), Scaler("cpu", 1.0, minimum=1, maximum=1))
    assert outcome.refused_share == pytest.approx(0.5, abs=0.01)
    assert max(outcome.latencies) <= 0.01 * 11 + 1e-9


def test_the_number_of_replicas_follows_the_load_within_the_limits_of_the_autoscaler() -> None:
    load = Load(base=30, peak=300, before=120, rise=30, hold=600, after=700)
    outcome = simulate(load, Replica(rate=20, queue=100, start=30), Scaler("cpu", 0.5))
    steady = outcome.replicas[int(700 / 15)]
    assert steady == pytest.approx(300 / 20 / 0.5, abs=4)
    assert all(after <= max(2 * before, before + 4) for before, after in pairwise(outcome.replicas))
    assert max(outcome.replicas) <= 1.2 * steady
    assert outcome.replicas[-1] <= 5
    first_fall = next(i for i, (before, after) in enumerate(pairwise(outcome.replicas)) if after < before)
    assert 15 * first_fall >= 120 + 30 + 600 + 300  # the stabilization window
