"""`python -m benchmarks folds [--fold-seed N] PHOTOS [OPTIONS of train]`: cross-validate on your own photos.

Each photo is in the test split of one of five trainings, one after the other in this process, as
`cifar-mlflow train` runs them. The balanced accuracy (the mean recall of the classes) is computed over the
answers of all five.
"""

import csv
import os
import tempfile
import time
from pathlib import Path

import click

FOLDS = 5


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--fold-seed", default=0, show_default=True, help="Seed of the division into folds.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def folds(photos: Path, fold_seed: int, options: tuple[str, ...]) -> None:
    """Cross-validate `cifar-mlflow train OPTIONS` on a folder of photos, in five folds."""
    from cifar_mlflow.cli import main

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        os.chdir(scratch)
        tables = _write_tables(photos.absolute(), Path(scratch), fold_seed)
        start = time.perf_counter()
        for table in tables:
            arguments = ["train", *options, "--dataset", "folder", "--data-dir", str(table)]
            if code := main(arguments, standalone_mode=False):  # it has printed the reason
                raise SystemExit(code)
        seconds = time.perf_counter() - start
        click.echo(_row(options, seconds))


def _write_tables(photos: Path, folder: Path, seed: int) -> list[Path]:
    """Write a table for each fold, with path, label and split of all photos, and return their paths."""
    from sklearn.model_selection import StratifiedKFold

    from cifar_mlflow.data.image_files import SUFFIXES

    files = sorted(path for path in photos.glob("*/*") if path.suffix.lower() in SUFFIXES)
    labels = [path.parent.name for path in files]
    tables = []
    division = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(division.split(files, labels)):
        splits = ["train"] * len(files)
        for position in test:
            splits[position] = "test"
        tables.append(folder / f"fold{number}.csv")
        with tables[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("path", "label", "split"), *zip(files, labels, splits, strict=True)])
    return tables


def _row(options: tuple[str, ...], seconds: float) -> str:
    """Return a row of a Markdown table: options, balanced accuracy, accuracy, time of training and in all."""
    import mlflow
    import pandas as pd
    from sklearn.metrics import balanced_accuracy_score

    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    tables = [
        mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/test/predictions.csv") for run in runs
    ]
    # As text: a class may be called 001 or NA.
    answers = pd.concat(pd.read_csv(table, dtype=str, keep_default_na=False) for table in tables)
    balanced = balanced_accuracy_score(answers["label"], answers["answer"])
    accuracy = (answers["label"] == answers["answer"]).mean()
    training = sum(run.data.metrics["train_seconds"] for run in runs)
    return (
        f"| `{' '.join(options)}` | {balanced:.1%} | {accuracy:.1%} | {training:.0f} s | {seconds:.0f} s "
        f"({len(answers)} photos, {len(runs)} folds) |"
    )
