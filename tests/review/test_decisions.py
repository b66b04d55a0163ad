"""`review --apply`: the decisions that a table may contain; any other table is refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cifar_mlflow.cli import main
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import CIFAR10_CLASSES, load_dataset
from tests.review.conftest import write_cifar10

HEAD = "image,label,decision\n"


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuse(photos: Path, *options: str) -> str:
    """Return the only line of an error."""
    command = ("review", "--dataset", "folder", "--data-dir", str(photos))
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert not Path("cleaned").exists()
    return line


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (
            "train/red/00.png,red,keep\ntrain/red/01.png,red,bleu\n",
            "row 3 of review.csv: unknown decision 'bleu': did you mean blue?",
        ),
        ("train/red/00.png,red,x\n", "use keep, drop or a class: blue, green, red"),
        ("train/red/none.png,red,drop\n", "row 2 of review.csv: there is no image 'train/red/none.png' in"),
        ("train/red/00.png,cat,drop\n", "has the label red in photos, but cat in the table"),
        ("train/red/00.png,red,blue\ntrain/red/00.png,red,green\n", "is to be both blue and green"),
        ("".join(f"train/red/{n:02}.png,red,drop\n" for n in range(24)), "no training image of class red is"),
    ],
)
def test_a_wrong_table_is_refused(photos: Path, table: str, complaint: str) -> None:
    Path("review.csv").write_text(HEAD + table)
    assert complaint in refuse(photos, "--apply", "review.csv", "--output", "cleaned")


def test_one_message_names_all_wrong_rows(photos: Path) -> None:
    rows = ["00.png,red,bleu", "01.png,red,drop", "none.png,red,drop", "02.png,rot,drop"]
    Path("review.csv").write_text(HEAD + "".join(f"train/red/{row}\n" for row in rows))
    done = CliRunner().invoke(
        main,
        [
            *("review", "--dataset", "folder", "--data-dir", str(photos)),
            *("--apply", "review.csv", "--output", "cleaned"),
        ],
    )
    assert done.exit_code == 2, done.output
    named = re.findall(r"apply: row (\d+) of review.csv", done.stderr)
    assert named == ["2", "4", "5"]
    Path("review.csv").write_text(HEAD + "train/red/00.png,red,x\n" * 12)
    assert refuse(photos, "--apply", "review.csv", "--output", "cleaned")


def test_empty_rows_count_in_the_number_of_a_wrong_row(photos: Path) -> None:
    Path("review.csv").write_text(f"{HEAD}train/red/00.png,red,drop\n\n,,\ntrain/red/01.png,red,bleu\n")
    assert "row 5 of review.csv" in refuse(photos, "--apply", "review.csv", "--output", "cleaned")


def test_empty_rows_below_the_table_are_ignored(photos: Path) -> None:
    Path("review.csv").write_text("decision;image;label\r\ndrop;train/red/00.png;red\r\n;;\r\n;;\r\n")
    command = ("review", "--dataset", "folder", "--data-dir", str(photos), "--apply", "review.csv")
    done = CliRunner().invoke(main, [*command, "--output", "cleaned"])
    assert done.exit_code == 0, done.output
    assert not Path("cleaned/train/red/00.png").exists()
    assert Path("cleaned/train/red/01.png").exists()


def test_a_table_without_decisions_is_refused(photos: Path) -> None:
    Path("review.csv").write_text("image,label\ntrain/red/00.png,red\n")
    line = refuse(photos, "--apply", "review.csv", "--output", "cleaned")
    assert "review.csv has no column decision" in line
    Path("review.csv").write_text("")
    line = refuse(photos, "--apply", "review.csv", "--output", "cleaned")
    assert "review.csv has no column image, label, decision" in line


def test_places_that_are_taken_or_missing_are_refused(photos: Path) -> None:
    Path("review.csv").write_text(HEAD)
    assert "review.csv exists and may hold decisions" in refuse(photos)
    assert "name a new folder for it with --output" in refuse(photos, "--apply", "review.csv")
    inside = ("--apply", "review.csv", "--output", str(photos / "cleaned"))
    assert "which stays as it is" in refuse(photos, *inside)
    Path("full").mkdir()
    Path("full/file").touch()
    assert "full exists" in refuse(photos, "--apply", "review.csv", "--output", "full")


def test_drop_wins_and_an_empty_cell_keeps(photos: Path) -> None:
    rows = ("00.png,red,blue", "00.png,red,drop", "01.png,red,", "02.png,red,keep", "02.png,red,green")
    Path("review.csv").write_text(HEAD + "".join(f"train/red/{row}\n" for row in rows))
    command = ("review", "--dataset", "folder", "--data-dir", str(photos), "--apply", "review.csv")
    done = CliRunner().invoke(main, [*command, "--output", "cleaned"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in Path("cleaned/train/red").glob("0[012].png")} == {"01.png"}
    assert Path("cleaned/train/green/02-2.png").exists()  # there is another 02.png


def test_classes_that_are_numbers_may_have_lost_their_zeros_in_a_spreadsheet(photos: Path) -> None:
    for split in ("train", "test"):
        for name, number in (("blue", "001"), ("green", "002"), ("red", "010")):
            (photos / split / name).rename(photos / split / number)
    Path("review.csv").write_text(HEAD + "train/001/00.png,1,10\ntrain/010/00.png,10,drop\n")
    command = ("review", "--dataset", "folder", "--data-dir", str(photos), "--apply", "review.csv")
    done = CliRunner().invoke(main, [*command, "--output", "fixed"])
    assert done.exit_code == 0, done.output
    assert len(list(Path("fixed/train/001").iterdir())) == 23
    assert len(list(Path("fixed/train/010").iterdir())) == 24

    Path("review.csv").write_text(HEAD + "train/001/00.png,1,3\n")
    assert "unknown decision '3'" in refuse(photos, "--apply", "review.csv", "--output", "cleaned")


def test_a_decision_that_is_also_the_name_of_a_class_is_refused(photos: Path) -> None:
    for split in ("train", "test"):
        (photos / split / "green").rename(photos / split / "drop")
    Path("review.csv").write_text(HEAD + "train/red/00.png,red,drop\n")
    line = refuse(photos, "--apply", "review.csv", "--output", "cleaned")
    assert "row 2 of review.csv: 'drop' is a class and a decision: rename the class" in line


def test_hidden_files_of_a_table_are_visible_in_the_cleaned_folder(photos: Path) -> None:
    rows = []
    for path in sorted(photos.rglob("*.png")):
        if path.name in ("00.png", "01.png"):
            path = path.rename(path.with_name(f".{path.name}"))
        split, name = path.parts[-3:-1]
        rows.append(f"{path},{name},{split}\n")
    Path("table.csv").write_text("path,label,split\n" + "".join(rows))
    Path("review.csv").write_text(HEAD)
    command = ("review", "--dataset", "folder", "--data-dir", "table.csv", "--apply", "review.csv")
    done = CliRunner().invoke(main, [*command, "--output", "cleaned"])
    assert done.exit_code == 0, done.output
    dataset = load_dataset(DataConfig(dataset="folder", data_dir=Path("cleaned")))
    assert (len(dataset.split("train")), len(dataset.split("test"))) == (72, 24)


def test_images_without_files_become_png_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40) % 10
    write_cifar10(tmp_path / "data", train=(images[:30], labels[:30]), test=(images[30:], labels[30:]))
    Path("review.csv").write_text(HEAD + "train/00000,airplane,drop\ntest/00003,cat,dog\n")
    command = ("review", "--data-dir", "data", "--apply", "review.csv", "--output", "cleaned")
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    dataset = load_dataset(DataConfig(dataset="folder", data_dir=Path("cleaned/labels.csv")))
    assert str(Path("cleaned/labels.csv")) in done.output  # no cat is left in the test split
    assert dataset.classes == CIFAR10_CLASSES
    train, test = dataset.split("train"), dataset.split("test")
    np.testing.assert_array_equal(train.images, images[1:30])
    np.testing.assert_array_equal(train.labels, labels[1:30])
    np.testing.assert_array_equal(test.labels, [0, 1, 2, 5, 4, 5, 6, 7, 8, 9])
