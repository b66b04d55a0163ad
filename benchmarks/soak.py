"""The service at full load for ten minutes: errors, growth of memory, and the stability of p99.

wrk keeps 64 connections busy for half a minute at a time; after each slice the memory of the process is read.
The first slice is a warm-up. The request log is written as usual.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, progress
from benchmarks.load import Load, memory, train, wrk
from benchmarks.service import BUSY, OURS, requests_for, server_of


def measure(slices: int = 20, seconds: int = 30, **settings: Any) -> list[Row]:
    """Run the slices; `settings` are for the training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = train(folder, **settings)
        sending = requests_for(trained, folder)[OURS]
        loads: list[Load] = []
        sizes: list[float] = []
        with server_of(OURS, trained, folder) as (server, path):
            for _ in range(slices + 1):
                loads.append(wrk(server.address + path, sending, BUSY, seconds, may_refuse=True))
                sizes.append(memory(server))
                progress(f"  {loads[-1]}, {sizes[-1]:.0f} MB")
    loads, warm, sizes = loads[1:], sizes[0], sizes[1:]
    minutes = slices * seconds / 60
    usual, worst = statistics.median(load.p99 for load in loads), max(load.p99 for load in loads)
    answered = sum(load.rate for load in loads) * seconds
    return [
        Row(
            f"check: errors in {minutes:.0f} minutes at full load",
            f"{answered:,.0f} answers",
            "-",
            sum(load.refused for load in loads),
            "errors",
            at_most=0,
        ),
        Row(
            "check: memory after that",
            f"{sizes[-1]:.0f} MB",
            f"{warm:.0f} MB (after the first {seconds} s)",
            100 * (sizes[-1] / warm - 1),
            "% more",
            at_most=10,
        ),
        Row(
            f"p99 of the worst {seconds} s",
            f"{worst:.0f} ms",
            f"{usual:.0f} ms (median of all slices of {seconds} s)",
            worst / usual,
            "x",
            at_most=1.5,
        ),
    ]
