"""`python -m benchmarks [NAMES...]`: run all benchmarks, or the named ones, and print one table."""

import shlex
import sys

import click

from benchmarks import NAMES
from benchmarks.harness import conditions, in_fresh_process, markdown, measure, progress


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
def main(names: tuple[str, ...]) -> None:
    """Measure claims beside their peers. The table goes to standard output, progress to standard error."""
    before = conditions()
    rows = []
    for name in names or NAMES:
        progress(f"{name} …")
        rows += in_fresh_process(measure, name)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    click.echo(f"`{command}` on {before}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
