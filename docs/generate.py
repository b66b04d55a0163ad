"""Write docs/reference.md from the code: commands with their options, routes, and metrics of the service.

`make docs` runs it; a test fails if the page is out of date.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from fastapi import FastAPI

from cifar_mlflow.cli import HELP_WIDTH, main
from serving.app.app import ROUTES
from serving.app.openapi import build_openapi
from serving.monitoring.metrics import Metrics

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

Generated from the code by `make docs`; make changes in the code.

To complete commands, options and their values with the Tab key, add a line to the start file of your shell:

```
eval "$(_CIFAR_MLFLOW_COMPLETE=bash_source cifar-mlflow)"         # ~/.bashrc
eval "$(_CIFAR_MLFLOW_COMPLETE=zsh_source cifar-mlflow)"          # ~/.zshrc
_CIFAR_MLFLOW_COMPLETE=fish_source cifar-mlflow | source          # ~/.config/fish/config.fish
```
"""


def commands() -> Iterator[str]:
    """Yield the help of every command."""
    yield "## Commands"
    # With the settings of a real call: click keeps the help option that a first context has made.
    help_names = main.context_settings["help_option_names"]
    context = click.Context(
        main, info_name="cifar-mlflow", terminal_width=HELP_WIDTH, help_option_names=help_names
    )
    yield f"```text\n{main.get_help(context)}\n```"
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, terminal_width=HELP_WIDTH)
        yield f"### {name}\n```text\n{command.get_help(inner)}\n```"


def routes() -> Iterator[str]:
    """Yield a table of the routes of the service, from its OpenAPI document."""
    app = FastAPI(title="cifar-mlflow")
    for module in ROUTES:
        app.include_router(module.router)
    rows = [
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, methods in build_openapi(app, needs_key=False)["paths"].items()
        for method, operation in methods.items()
    ]
    yield "## Routes of the service\n`/docs` of a running service has their parameters, bodies and responses."
    yield "\n".join(["| route | purpose |", "| --- | --- |", *rows])


def service_metrics() -> Iterator[str]:
    """Yield a table of the Prometheus metrics of the service."""
    text = Metrics(["cat"]).text()[0].decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kinds[name]} | {purpose} |"
        for name, purpose in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)
        if name.startswith("cifar")
    ]
    yield (
        "## Metrics of the service\n`GET /metrics`, in the format of Prometheus. Those of the process "
        "(`process_*`) come from its client library."
    )
    yield "\n".join(["| metric | kind | meaning |", "| --- | --- | --- |", *rows])


def page() -> str:
    """Return the content of the page."""
    return "\n\n".join([HEAD.strip(), *commands(), *routes(), *service_metrics()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
