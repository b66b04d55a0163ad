"""Results of full-length trainings: one row of `benchmarks/results.csv` per training, from its MLflow run.

A run counts if it trained one of today's recipes to its end and was tested: settings other than those in
`VARIANTS` must be the recipe's. Rows of peers, which have no run, come from `python -m benchmarks record`.
"""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities import Run

from benchmarks.csv_file import FloatOrEmpty, read_rows, write_rows
from cifar_mlflow.config import PlacesConfig, TrackingConfig, TrainConfig, resolve_train_config
from cifar_mlflow.data.original import PUBLISHED
from cifar_mlflow.settings import option_name

RESULTS = Path(__file__).with_name("results.csv")
SECONDS_METRIC = "benchmark/seconds"  # logged by `record` and `gpu`
# Settings that do not change what is learned, or that have a column of their own.
NEUTRAL = {"recipe", "seed", "device", "threads", "test"}
NEUTRAL |= {*PlacesConfig.model_fields, *TrackingConfig.model_fields}
# Settings in which a run may differ from its recipe; the command of the row names them.
VARIANTS = {"model", "dataset", "val_size", "split_seed", "tta", "precision", "compile", "deterministic"}
DATA_NAMES = {
    PUBLISHED.digest: "CIFAR-10",
    "0ae3d10af5eb9fcf923cfea8c2e1306156f2041d79f774548d4aabacb3354b7f": "CIFAR-10, JPEG copy",
    "14f5a64dc2e8caf52513bdc395345e5643ae5a224f77402c67987911127d5bb2": "embedded sample",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One training and its test.

    Attributes:
        name: the recipe, or the name of a peer's script.
        data: name of the data set; different content has another name.
        settings: digest of all settings that change what is learned, except the seed.
        accuracy, accuracy_tta, f1_macro, ece: of the test split, as fractions; None if not measured.
        train_seconds: seconds of all epochs, with validation if the run has it.
        seconds: from the first batch to the last logit of the test-time augmentation; None if not measured.
        commit: of this project; for a peer, the first digits of the sha256 of its file.
        run_id: empty for a peer.
        command: repeats the training.
    """

    name: str
    model: str
    data: str
    seed: int
    settings: str
    accuracy: float
    accuracy_tta: FloatOrEmpty
    f1_macro: FloatOrEmpty
    ece: FloatOrEmpty
    train_seconds: float
    seconds: FloatOrEmpty
    hardware: str
    date: str
    commit: str
    run_id: str
    command: str

    @property
    def group(self) -> tuple[str, ...]:
        """Trainings that differ in the seed only have the same group."""
        return self.name, self.model, self.data, self.settings, self.hardware

    @property
    def identity(self) -> tuple[str, ...]:
        """Group, seed and commit: a second training with the same would repeat this one."""
        return *self.group, str(self.seed), self.commit

    @property
    def is_peer(self) -> bool:
        return not self.run_id


def read_results(file: Path = RESULTS) -> list[Result]:
    """Return the rows of the file; none if it does not exist."""
    return read_rows(file, Result)


def write_results(results: Iterable[Result], file: Path = RESULTS) -> list[Result]:
    """Write the rows in order, the newest one of each seed of a group; return what was written."""
    newest: dict[tuple[str, ...], Result] = {}
    for result in sorted(results, key=lambda result: result.date):
        newest[*result.group, str(result.seed)] = result
    rows = sorted(newest.values(), key=lambda result: (result.is_peer, *result.group, result.seed))
    write_rows(file, Result, rows)
    return rows


def grouped(results: Iterable[Result]) -> list[list[Result]]:
    """Return the results of each group, in order of their accuracy, the best group first."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return sorted(groups.values(), key=lambda group: -best_accuracy(group))


def representatives(groups: list[list[Result]]) -> list[list[Result]]:
    """Return a group of each model and of each script of others, in the given order.

    It is the group with the most seeds, since the best of several single trainings is partly luck; among
    those with as many, the newest one, since recipes change.
    """
    best: dict[tuple[str, str], list[Result]] = {}
    for group in groups:
        key = (group[0].name if group[0].is_peer else "", group[0].model)
        best[key] = max(best.get(key, group), group, key=lambda one: (len(one), max(row.date for row in one)))
    return sorted(best.values(), key=groups.index)


def best_accuracy(group: Sequence[Result]) -> float:
    """Return the mean accuracy, with test-time augmentation if all of the group have it."""
    return mean([result.accuracy_tta for result in group]) or statistics.fmean(r.accuracy for r in group)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def spread(values: Sequence[float | None]) -> float | None:
    """Return the standard deviation of a sample, or None if a value is missing or there is only one."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def percent(values: Sequence[float | None]) -> str:
    """Return mean and spread of fractions: `90.71 ± 0.12 %`, or `-` if a value is missing."""
    middle, deviation = mean(values), spread(values)
    if middle is None:
        return "-"
    return f"{100 * middle:.2f}" + (f" ± {100 * deviation:.2f} %" if deviation is not None else " %")


def counts(run: Run) -> bool:
    """Return whether a run trained a recipe to its end and was tested."""
    tags, metrics = run.data.tags, run.data.metrics
    if tags.get("kind") != "train" or run.info.status != "FINISHED" or "test/accuracy" not in metrics:
        return False
    other = overrides(run.data.params)
    return other is not None and other.keys() <= VARIANTS


def result_of(run: Run) -> Result:
    """Return the result of a finished and tested training."""
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    return Result(
        name=params["recipe"],
        model=params["model"],
        data=data_name(tags["dataset"], tags["dataset.digest"]),
        seed=int(params["seed"]),
        settings=settings_digest(params),
        accuracy=metrics["test/accuracy"],
        accuracy_tta=metrics.get("test/accuracy_tta"),
        f1_macro=metrics.get("test/f1_macro"),
        ece=metrics.get("test/ece"),
        train_seconds=metrics["train_seconds"],
        seconds=metrics.get(SECONDS_METRIC),
        hardware=tags.get("device", "unknown"),
        date=datetime.fromtimestamp(run.info.end_time / 1000, UTC).isoformat(timespec="seconds"),
        commit=commit_of(tags),
        run_id=run.info.run_id,
        command=command(params["recipe"], params["seed"], overrides(params) or {}),
    )


def commit_of(tags: Mapping[str, str]) -> str:
    """Return the first digits of the commit in the tags of `git_state`, and whether the code was modified."""
    commit = tags.get("mlflow.source.git.commit", "unknown")[:10]
    return commit + (" (modified)" if tags.get("git.dirty") == "true" else "")


def overrides(params: dict[str, str]) -> dict[str, str] | None:
    """Return the settings of a run that differ from its recipe; None if the recipe is unknown today."""
    try:
        recipe = resolve_train_config({"recipe": params["recipe"]}).model_dump(mode="json")
    except (KeyError, ValueError):
        return None
    return {
        name: params[name]
        for name, value in recipe.items()
        if name in params and name not in NEUTRAL and plain(params[name]) != plain(str(value))
    }


def plain(value: str) -> str:
    """Return numbers in one form: `mlflow run -P val_size=0` logs 0, the command line 0.0."""
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number.is_integer() else repr(number)


def command(recipe: str, seed: str, other: dict[str, str]) -> str:
    options = {"recipe": recipe, **other, "seed": seed}
    text = (f"{option_name(name)} {plain(value)}" for name, value in options.items())
    return f"cifar-mlflow train {' '.join(text)}"


def settings_digest(settings: Mapping[str, object]) -> str:
    """Return a digest of the settings that change what is learned; those at their default do not count.

    So a run has the same digest as one of an earlier release that lacked a setting.
    """
    fields = TrainConfig.model_fields
    given = {
        name: plain(str(value))
        for name, value in settings.items()
        if name in fields and name not in NEUTRAL and plain(str(value)) != plain(str(fields[name].default))
    }
    return digest(given)


def digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def data_name(name: str, content: str) -> str:
    """Return the name of a data set; content that has no name of its own here is named by its digest."""
    return DATA_NAMES.get(content, f"{name} {content[:8]}")
