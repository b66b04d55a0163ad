"""`python -m benchmarks [NAMES...]`: run all benchmarks, or the named ones, and print one table.

`record`, `gpu`, `leaderboard`, `latency`, `folds` and `release` are commands with options:
`python -m benchmarks record --help`.
"""

import importlib
import shlex
import sys
from typing import Any

import click

from benchmarks import COMMANDS, NAMES
from benchmarks.harness import conditions, in_fresh_process, markdown, measure, progress
from cifar_mlflow.console import set_up_logging
from cifar_mlflow.verb_group import Group


class Benchmarks(Group):
    """Offer a command for each benchmark, which can be chained, and the commands with options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*NAMES, *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"benchmarks.{cmd_name}"), cmd_name)
            return command
        if cmd_name not in NAMES:
            return None
        return click.Command(cmd_name, help=f"See benchmarks/{cmd_name}.py.", callback=lambda: cmd_name)


@click.group(cls=Benchmarks, chain=True, invoke_without_command=True)
def main() -> None:
    """Measure claims beside their peers. The table goes to standard output, progress to standard error."""
    set_up_logging()


@main.result_callback()
def run(names: list[Any]) -> None:
    """Run the named benchmarks, or all if nothing is named, and print their table."""
    named = [name for name in names if name is not None]
    if names and not named:  # a command with options, which has printed its own
        return
    before = conditions()
    rows = []
    for name in named or NAMES:
        progress(f"{name} …")
        rows += in_fresh_process(measure, name)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    click.echo(f"`{command}` on {before}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
