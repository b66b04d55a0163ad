"""Shared by all benchmarks: a row of the table, the table, the machine, and fresh processes."""

import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        what: the quantity.
        ours: the measurement of our side, as text.
        beside: the measurement of the peer, as text.
        figure: the result, in `unit`.
        at_least, at_most: the target; at most one is set, and neither if the figure has no target.
    """

    what: str
    ours: str
    beside: str
    figure: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g} {self.unit}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        return "-"

    @property
    def met(self) -> str:
        if self.at_least is not None:
            return "yes" if self.figure >= self.at_least else "no"
        if self.at_most is not None:
            return "yes" if self.figure <= self.at_most else "no"
        return "-"


def measure(name: str, **sizes: Any) -> list[Row]:
    """Run `benchmarks.<name>`; `sizes` override the sizes of a real measurement."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{name}").measure(**sizes)
    return rows


def markdown(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    cells = [["what", "ours", "beside", "figure", "target", "met"], ["---"] * 6]
    cells += [
        [row.what, row.ours, row.beside, f"{row.figure:.2f} {row.unit}", row.target, row.met] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def conditions() -> str:
    """Describe the machine, the versions, and the load: figures of a busy machine mean little."""
    from cifar_mlflow.training.device import cpu_name  # late: not every fresh process needs torch

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "mlflow"))
    return (
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}; "
        f"load before: {os.getloadavg()[0]:.1f}"
    )


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a new interpreter, which nothing that ran before has warmed up or changed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()
