"""Write docs/reference.md from the code: commands with their options, environment variables, routes, metrics.

Write the table of models in docs/training.md, too, from the code and the CSV files in benchmarks/.
`make docs` runs it; a test fails if a page is out of date.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from fastapi import FastAPI

from benchmarks.csv_file import read_rows
from benchmarks.latency import MODELS, TIMES, Latency
from benchmarks.results import grouped, percent, read_results, representatives
from cifar_mlflow.cli import HELP_WIDTH, main
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import CIFAR10_CLASSES
from cifar_mlflow.models.networks import build_network
from serving.app.app import ROUTES
from serving.app.openapi import build_openapi
from serving.monitoring.metrics import Metrics

# Variable: the commands that read it, and its meaning. A test compares the names with those in the code.
VARIABLES = {
    "MLFLOW_TRACKING_URI": (
        "all commands",
        "MLflow's server or database. Default: `mlflow.db` in the current folder",
    ),
    "MLFLOW_EXPERIMENT_NAME": (
        "all commands with `--experiment`",
        "the experiment, if the option is not given",
    ),
    "CIFAR_MLFLOW_CACHE": (
        "all commands",
        "default of `--cache-dir`: decoded images, checkpoints, locks, models",
    ),
    "XDG_CACHE_HOME": ("all commands", "folder of caches (`~/.cache`), if `CIFAR_MLFLOW_CACHE` is not set"),
    "CIFAR_MLFLOW_PATIENCE": (
        "all commands",
        "seconds to wait for an unavailable MLflow server or database (120)",
    ),
    "CIFAR10_DIR": ("commands with `--data-dir`", "default of `--data-dir` for `--dataset cifar10`"),
    "CUDA_VISIBLE_DEVICES": ("`train`, `tune`", "the GPUs to use; the workers of `tune` get one each"),
    "CXX": ("`train --compile`", "the C++ compiler (`g++`)"),
    "CIFAR_MLFLOW_GRACE": ("`tune`", "seconds without a heartbeat until a machine counts as lost (600)"),
    "STUDY_STORAGE": ("`deploy/search/`", "`--storage` of each node"),
    "STUDY_NAME": ("`deploy/search/`", "`--study`, the name of the study"),
    "STUDY_TRIALS": ("`deploy/search/`", "`--trials`, of all nodes together"),
    "STUDY_WORKERS": ("`deploy/search/`", "`--workers` of each node (1)"),
    "RAY_ADDRESS": ("`classify --engine ray`", "the Ray cluster, if `--cluster` is not given"),
    "PYSPARK_PYTHON": (
        "`classify --engine spark`",
        "the Python of the workers. Default: the path of the command's Python",
    ),
    "JAVA_HOME": ("`classify --engine spark`", "the Java installation, if `java` is not in `PATH`"),
    "CIFAR_MLFLOW_API_KEY": ("`serve`", "`--api-key`, without showing it in the process list"),
    "CIFAR_MLFLOW_REQUEST_LOG": ("`serve`, `monitor`", "`--request-log`, for an address with a password"),
    "FORWARDED_ALLOW_IPS": ("`serve`", "addresses of proxies whose `X-Forwarded-*` headers are trusted"),
}
PAGE = Path(__file__).with_name("reference.md")
TRAINING_PAGE = Path(__file__).with_name("training.md")
START, END = "<!-- models: start -->", "<!-- models: end -->"
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


def variables() -> Iterator[str]:
    """Yield a table of the environment variables."""
    yield (
        "## Environment variables\nAn option takes precedence over its variable. MLflow, PostgreSQL's client "
        "(`PGPASSWORD`), fsspec's file systems (`AWS_*`) and `torchrun` read further ones of their own."
    )
    rows = [f"| `{name}` | {reader} | {meaning} |" for name, (reader, meaning) in VARIABLES.items()]
    yield "\n".join(["| variable | read by | meaning |", "| --- | --- | --- |", *rows])


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
    return "\n\n".join([HEAD.strip(), *commands(), *variables(), *routes(), *service_metrics()]) + "\n"


def models() -> Iterator[str]:
    """Yield the lines of the table of models, and the machine that measured their times."""
    groups = representatives(grouped(result for result in read_results() if not result.is_peer))
    times = {row.model: row for row in read_rows(TIMES, Latency)}
    yield "| model | parameters | MB (fp32) | epochs | accuracy | with TTA | ms, fp32 | ms, int8 |"
    yield f"|{' --- |' * 8}"
    for model in MODELS:
        network = build_network(model, len(CIFAR10_CLASSES))
        count = sum(parameter.numel() for parameter in network.parameters())
        stored = sum(tensor.nbytes for tensor in network.state_dict().values())
        epochs = resolve_train_config({"model": model}).epochs
        group = next((group for group in groups if group[0].model == model), [])
        accuracies = [
            percent([result.accuracy for result in group]) if group else "-",
            percent([result.accuracy_tta for result in group]) if group else "-",
        ]
        row = times.get(model)
        milliseconds = [f"{row.fp32_ms:.2f}", f"{row.int8_ms:.2f}"] if row else ["-", "-"]
        cells = [f"`{model}`", f"{count / 1e6:.2f} million", f"{stored / 1e6:.1f}", str(epochs)]
        yield f"| {' | '.join([*cells, *accuracies, *milliseconds])} |"
    machines = sorted({f"{row.hardware}, {row.date[:10]}, commit {row.commit}" for row in times.values()})
    yield f"\nTimes: {'; '.join(machines) or 'not measured yet'}."


def training_page() -> str:
    """Return docs/training.md with the table of models between its two comments."""
    before, _, rest = TRAINING_PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{START}", *models(), f"{END}{after}"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    TRAINING_PAGE.write_text(training_page(), encoding="utf-8")
