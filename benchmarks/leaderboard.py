"""`python -m benchmarks leaderboard`: write the leaderboard from MLflow runs.

It adds the full-length trainings of a store to `benchmarks/results.csv`, and writes all rows of that file
into `docs/leaderboard.md`, a picture, and the README between two comments. Rows with the same settings on the
same data and hardware form a group, whose mean and standard deviation over the seeds are shown. No figure is
written by hand.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import click
import mlflow
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from mlflow.entities import Run

from benchmarks.results import (
    RESULTS,
    VARIANTS,
    Result,
    counts,
    grouped,
    mean,
    percent,
    read_results,
    representatives,
    result_of,
    spread,
    write_results,
)
from cifar_mlflow.errors import UsageError
from cifar_mlflow.files import atomic_write

ROOT = Path(__file__).parents[1]
START, END = "<!-- leaderboard: start -->", "<!-- leaderboard: end -->"
NONE_YET = (
    "No full-length training of a recipe has been recorded yet. `python -m benchmarks leaderboard` writes "
    "the results of such trainings here."
)
ABOUT = """# Leaderboard

Full-length trainings of the recipes, written by `python -m benchmarks leaderboard` from MLflow runs;
[benchmarks/results.csv](../benchmarks/results.csv) has one line per training. Scripts of others come from
`python -m benchmarks record` and `gpu`, which train them beside ours.

"""
READING = """
Accuracy, F1 and ECE are those of the test split: means ± standard deviations over the seeds; one seed has no
deviation. TTA is test-time augmentation, ECE the calibration error (15 bins) after temperature scaling. The
time is that of the epochs, validation included; where it was measured, the time from the first batch to the
last logit of the test-time augmentation follows. The commit of a script of others is the first digits of the
sha256 of its file.

A row shows a recipe as it was at its commit: rows with the same command differ where the recipe has changed.

The JPEG copy (quality about 75) has the 60,000 photos of CIFAR-10, but not its pixels: accuracy on it
compares methods, and is some points below what is published for the lossless images.

## How each row was made

"""
PICTURE = "images/leaderboard.png"
BEST_ROWS = 6


class Places(NamedTuple):
    """The files that the command writes."""

    results: Path = RESULTS
    docs: Path = ROOT / "docs"
    readme: Path = ROOT / "README.md"


@click.command()
@click.option("--tracking-uri", help="MLflow's store. Default: MLFLOW_TRACKING_URI.")
@click.option(
    "--experiment", "experiments", multiple=True, default=("cifar10",), show_default=True,
    help="Experiment with trainings; may be repeated.",
)  # fmt: skip
def leaderboard(tracking_uri: str | None, experiments: tuple[str, ...]) -> None:
    """Write docs/leaderboard.md, results.csv, the picture and the README's rows from MLflow runs."""
    counted, left_out, groups = write(tracking_uri, experiments)
    click.echo(
        f"{counted} full-length trainings in the store, {left_out} runs left out (unfinished, untested, or "
        f"not the settings of a recipe, apart from {', '.join(sorted(VARIANTS))}); {groups} rows written"
    )


def write(
    tracking_uri: str | None, experiments: Sequence[str], places: Places | None = None
) -> tuple[int, int, int]:
    """Write the files; return how many runs count, how many do not, and the number of groups.

    Raises:
        UsageError: the store has no such experiment, or the README lacks the two comments.
    """
    places = places or Places()
    before, _, after = split_readme(places.readme)
    runs = list(trainings(mlflow.MlflowClient(tracking_uri), experiments))
    runs.sort(key=lambda run: run.info.end_time or 0)  # a newer training of a seed replaces an older one
    found = [result_of(run) for run in runs if counts(run)]
    groups = grouped(write_results([*read_results(places.results), *found], places.results))
    files = {places.docs / "leaderboard.md": page(groups), places.readme: before + summary(groups) + after}
    for file, text in files.items():
        with atomic_write(file) as scratch:
            scratch.write_text(text)
    if groups:
        with atomic_write(places.docs / PICTURE) as scratch:
            picture(groups).savefig(scratch, format="png", dpi=150)
    return len(found), len(runs) - len(found), len(groups)


def split_readme(file: Path) -> tuple[str, str, str]:
    """Return the text up to the first comment, between the comments, and from the second one on."""
    text = file.read_text()
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise UsageError(f"{file} needs the two lines {START} and {END}, in this order")
    before, _, rest = text.partition(START)
    inside, _, after = rest.partition(END)
    return f"{before}{START}\n", inside, f"{END}{after}"


def trainings(client: mlflow.MlflowClient, experiments: Sequence[str]) -> Iterator[Run]:
    """Yield the runs of all trainings of the experiments."""
    ids = []
    for name in experiments:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise UsageError(f"experiment: MLflow's store {client.tracking_uri} has no experiment {name!r}")
        ids.append(experiment.experiment_id)
    token = None
    while True:
        runs = client.search_runs(ids, "tags.kind = 'train'", page_token=token)
        yield from runs
        token = runs.token
        if not token:
            return


def summary(groups: list[list[Result]]) -> str:
    """Return the README's part: a group of each model and peer, and the picture."""
    if not groups:
        return NONE_YET + "\n"
    header = ("recipe", "data", "seeds", "test accuracy", "with TTA", "time", "hardware", "command")
    rows = [
        (name_of(group), group[0].data, *accuracies(group), duration(group), group[0].hardware, how(group))
        for group in representatives(groups)[:BEST_ROWS]
    ]
    return (
        f"{table(header, rows)}\n\n![Accuracy by time](docs/{PICTURE})\n\n"
        "Mean ± standard deviation over seeds. All results, with commits and runs: "
        "[docs/leaderboard.md](docs/leaderboard.md).\n"
    )


def page(groups: list[list[Result]]) -> str:
    """Return docs/leaderboard.md."""
    if not groups:
        return f"{ABOUT}{NONE_YET}\n"
    header = (
        "recipe", "model", "data", "seeds", "accuracy", "with TTA", "macro F1", "ECE", "time", "hardware",
    )  # fmt: skip
    rows = [
        (
            name_of(group),
            group[0].model,
            group[0].data,
            *accuracies(group),
            number([result.f1_macro for result in group]),
            number([result.ece for result in group]),
            duration(group),
            group[0].hardware,
        )
        for group in groups
    ]
    made = [
        (
            name_of(group),
            group[0].data,
            ", ".join(f"{result.seed}" for result in group),
            joined(result.date[:10] for result in group),
            joined(result.commit for result in group),
            ", ".join(f"`{result.run_id}`" for result in group if result.run_id) or "-",
            how(group),
        )
        for group in groups
    ]
    how_header = ("recipe", "data", "seeds", "date", "commit", "MLflow run", "command")
    tables = f"![Accuracy by time]({PICTURE})\n\n{table(header, rows)}\n{READING}{table(how_header, made)}\n"
    return ABOUT + tables


def name_of(group: list[Result]) -> str:
    return f"`{group[0].name}`" + (" (published script)" if group[0].is_peer else "")


def accuracies(group: list[Result]) -> tuple[str, str, str]:
    """Return the number of seeds, and the accuracy without and with test-time augmentation."""
    return (
        str(len(group)),
        percent([result.accuracy for result in group]),
        percent([result.accuracy_tta for result in group]),
    )


def how(group: list[Result]) -> str:
    """Return the command of a group, with its first seed."""
    return f"`{min(group, key=lambda result: result.seed).command}`"


def joined(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def number(values: Sequence[float | None]) -> str:
    middle, deviation = mean(values), spread(values)
    if middle is None:
        return "-"
    return f"{middle:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def duration(group: list[Result]) -> str:
    """Return the mean time of the epochs and, where measured, up to the end of the augmentation."""
    epochs, whole = (
        mean([result.train_seconds for result in group]),
        mean([result.seconds for result in group]),
    )
    text = time_text(epochs or 0.0)
    return text if whole is None else f"{text}; {time_text(whole)} with TTA"


def time_text(seconds: float) -> str:
    """Format a time with three digits below 100 s, else in minutes."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.3g} min"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def picture(groups: list[list[Result]]) -> Figure:
    """Draw the accuracy of each group by its time: ours as circles, scripts of others as squares.

    Times on two machines cannot be compared, so each has its colour. The accuracy is that with test-time
    augmentation only if the time of all its trainings includes it.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(group[0].hardware for group in groups))}
    data = list(dict.fromkeys(group[0].data for group in groups))
    for group in groups:
        first = group[0]
        with_tta = [(one.seconds, one.accuracy_tta) for one in group if one.seconds and one.accuracy_tta]
        without = [(one.train_seconds, one.accuracy) for one in group]
        seconds, values = zip(*(with_tta if len(with_tta) == len(group) else without), strict=True)
        x, y = fmean(seconds), fmean(values)
        deviation = spread(values)
        axes.errorbar(
            x,
            100 * y,
            yerr=None if deviation is None else 100 * deviation,
            marker="s" if first.is_peer else "o",
            color=colours[first.hardware],
            capsize=3,
        )
        label = first.name if first.is_peer or first.name == first.model else f"{first.name} ({first.model})"
        axes.annotate(
            label if len(data) == 1 else f"{label}\n{first.data}",
            (x, 100 * y),
            (9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.35, y=0.2)
    axes.set_xlabel("training time, seconds")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    title = f"{data[0]}: accuracy" if len(data) == 1 else "Accuracy"
    title += " and time include test-time augmentation where its time was measured"
    if any(group[0].is_peer for group in groups):
        title += "\ncircles: recipes of this project; squares: published scripts"
    axes.set_title(title, fontsize=9)
    for hardware, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=hardware)
    axes.legend(fontsize=8, loc="lower right")
    return figure
