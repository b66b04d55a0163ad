"""`python -m benchmarks.autoscaling`: simulate the autoscaler of the service under a sudden rise of load.

Every request is simulated: it goes to a ready replica at random, as with a Kubernetes Service, waits until
the requests before it are answered, and is refused (503) if the queue of that replica is full. Every 15 s,
the autoscaler follows the published algorithm of the HorizontalPodAutoscaler: replicas x value / target,
where replicas without metrics yet count as idle; no change within 10 %; at most a doubling or four more at a
time; and down only to the largest number of the last five minutes.

The rate of a replica and the spread of its service times are measured. The load, the time until a new replica
is ready, and the age of the metrics are assumptions, which are options here. The simulation also assumes that
service times are log-normal and that a replica answers one request after another.
"""

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import numpy as np

SYNC_SECONDS = 15.0
TOLERANCE = 0.1
Z_99 = 2.326  # 99th percentile of the standard normal distribution
STABILIZATION_SECONDS = 300.0
# The first is the target in deploy/kubernetes.yaml: 70 % of the requested core; a replica may use two cores.
SIGNALS = (("cpu", 0.35), ("cpu", 0.5), ("cpu", 0.7), ("cpu", 0.9), ("in flight", 1.0), ("in flight", 2.0))


@dataclass(frozen=True)
class Replica:
    """The capacity of one replica.

    Attributes:
        rate: requests per second at full load; the mean service time is 1 / rate.
        queue: requests that wait; further ones are refused.
        start: seconds until a new replica gets requests.
        spread: 99th percentile of the service time, divided by its mean.
    """

    rate: float
    queue: int
    start: float
    spread: float = 1.0

    @property
    def sigma(self) -> float:
        """Return the standard deviation of the logarithm of the service time.

        Of a log-normal variable, 99th percentile / mean = exp(z sigma - sigma^2 / 2).
        """
        return Z_99 - math.sqrt(Z_99**2 - 2 * math.log(self.spread))


@dataclass(frozen=True)
class Scaler:
    """The autoscaler.

    Attributes:
        signal: "cpu", the share of time that a replica computes (at most 1), or "in flight", its requests;
            the mean of the ready replicas.
        target: value of the signal to keep.
        lag: age of the newest metrics in seconds.
        minimum, maximum: number of replicas.
    """

    signal: str
    target: float
    lag: float = 30.0
    minimum: int = 2
    maximum: int = 40


@dataclass(frozen=True)
class Load:
    """Requests per second: `base`, a rise to `peak` within `rise` seconds, and back after `hold` seconds."""

    base: float
    peak: float
    before: float = 300.0
    rise: float = 60.0
    hold: float = 600.0
    after: float = 600.0

    @property
    def seconds(self) -> float:
        return self.before + 2 * self.rise + self.hold + self.after

    def at(self, second: float) -> float:
        end = self.before + self.rise + self.hold
        share = min((second - self.before) / self.rise, (end + self.rise - second) / self.rise, 1.0)
        return self.base + (self.peak - self.base) * max(share, 0.0)


@dataclass
class Outcome:
    """The result of a simulation; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    replicas: list[int] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        return self.refused / (self.refused + len(self.latencies))

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, 100 * share))


def arrivals(load: Load, draw: random.Random) -> Iterator[float]:
    """Yield the times of a Poisson process whose rate follows the load (thinning, Lewis and Shedler 1979)."""
    highest, now = max(load.base, load.peak), 0.0
    while (now := now + draw.expovariate(highest)) < load.seconds:
        if draw.random() * highest < load.at(now):
            yield now


def simulate(load: Load, replica: Replica, scaler: Scaler, seed: int = 0) -> Outcome:
    """Simulate the requests of a load and the autoscaler; all times are in seconds from the start."""
    draw = random.Random(seed)
    outcome = Outcome()
    sigma = replica.sigma
    mu = -math.log(replica.rate) - sigma**2 / 2  # of the logarithm of the service time
    free_at = [0.0] * scaler.minimum  # for each ready replica: when its last request will be answered
    starting: list[float] = []  # for each replica that starts: when it is ready
    wanted: deque[tuple[float, int]] = deque()  # recommendations of the stabilization window
    samples: deque[tuple[float, float, int]] = deque()  # time, mean and replicas; too new to be seen yet
    seen, measured = 0.0, scaler.minimum
    busy, next_sync = 0.0, SYNC_SECONDS
    for now in arrivals(load, draw):
        while now >= next_sync:
            in_flight = sum(max(0.0, free - next_sync) for free in free_at) * replica.rate
            cpu = min(1.0, busy / SYNC_SECONDS / len(free_at))
            mean = cpu if scaler.signal == "cpu" else in_flight / len(free_at)
            samples.append((next_sync, mean, len(free_at)))
            while samples and samples[0][0] <= next_sync - scaler.lag:
                _, seen, measured = samples.popleft()
            free_at += [ready for ready in starting if ready <= next_sync]
            starting = [ready for ready in starting if ready > next_sync]
            count = len(free_at) + len(starting)
            count = resize(count, measured, seen / scaler.target, scaler, wanted, next_sync)
            starting += [next_sync + replica.start] * (count - len(free_at) - len(starting))
            while count < len(free_at) + len(starting):
                (starting or free_at).pop()
            outcome.replicas.append(count)
            busy, next_sync = 0.0, next_sync + SYNC_SECONDS
        chosen = draw.randrange(len(free_at))
        wait = max(0.0, free_at[chosen] - now)
        if wait * replica.rate > replica.queue:
            outcome.refused += 1
            continue
        service = draw.lognormvariate(mu, sigma)
        free_at[chosen] = now + wait + service
        busy += service
        outcome.latencies.append(wait + service)
    return outcome


def resize(
    count: int, measured: int, ratio: float, scaler: Scaler, wanted: deque[tuple[float, int]], now: float
) -> int:
    """Return the number of replicas that the autoscaler asks for.

    Args:
        count: number of replicas now.
        measured: number of replicas when the signal was measured.
        ratio: mean of the signal divided by its target.
        wanted: the proposals of the stabilization window, to which this one is added.
    """
    if ratio > 1:
        ratio = max(1.0, ratio * min(1.0, measured / count))
    proposal = count if abs(ratio - 1) <= TOLERANCE else math.ceil(count * ratio)
    proposal = min(proposal, max(2 * count, count + 4))
    proposal = min(max(proposal, scaler.minimum), scaler.maximum)
    wanted.append((now, proposal))
    while wanted[0][0] < now - STABILIZATION_SECONDS:
        wanted.popleft()
    return proposal if proposal > count else min(count, max(number for _, number in wanted))


@click.command()
@click.option("--rate", default=544.0, help="Measured requests per second of a replica.")
@click.option("--spread", default=1.68, help="Measured p99 of the service time, divided by its mean.")
@click.option("--queue", default=256, help="Requests that wait in a replica (--queue-limit).")
@click.option("--start", default=30.0, help="Seconds until a new replica is ready.")
@click.option("--lag", default=30.0, help="Age of the metrics in seconds.")
@click.option("--base", default=400.0, help="Requests per second before and after the rise.")
@click.option("--peak", default=2400.0, help="Requests per second at the peak.")
def main(rate: float, spread: float, queue: int, start: float, lag: float, base: float, peak: float) -> None:
    """Print a table of signals and targets of the autoscaler."""
    load, replica = Load(base, peak), Replica(rate, queue, start, spread)
    click.echo(f"{load}\n{replica}, metrics {lag:g} s old\n")
    click.echo(
        "| signal and target | refused | p50 | p99 | most replicas | replica hours |\n" + "| --- " * 6 + "|"
    )
    for signal, target in SIGNALS:
        outcome = simulate(load, replica, Scaler(signal, target, lag))
        hours = sum(outcome.replicas) * SYNC_SECONDS / 3600
        p50, p99 = (1000 * outcome.percentile(share) for share in (0.5, 0.99))
        click.echo(
            f"| {signal} {target:g} | {outcome.refused_share:.1%} | {p50:,.0f} ms | {p99:,.0f} ms | "
            f"{max(outcome.replicas)} | {hours:.1f} |"
        )


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.autoscaling")
