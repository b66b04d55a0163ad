"""Copies sorted by class: nothing is overwritten and nothing is copied twice."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch import classify, load_scorer
from tests.scorer_folders import write_scorer_folder
from tests.serving.batch.test_classify import BLACK, BLUE, GREEN, RED, files_at_most, paint


@pytest.fixture(scope="module")
def scorer(scorer_folder: Path) -> Scorer:
    return load_scorer(str(scorer_folder))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(folder: str) -> dict[str, bytes]:
    """Return the content of all files below a folder, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_copies_go_to_one_folder_per_class_or_to_not_sure(scorer: Scorer) -> None:
    originals = [
        paint("photos/a.png", RED),
        paint("photos/b.jpg", GREEN),
        paint("photos/sub/c.png", BLUE),
        paint("photos/dark.png", BLACK),
    ]
    paint("photos/bad.png").write_text("no image")
    os.utime(originals[0], (1_000_000_000, 1_000_000_000))
    before = files("photos")
    classify(["photos"], scorer, sort_into=Path("sorted/by class"))
    assert files("sorted/by class") == {
        "red/a.png": originals[0].read_bytes(),
        "green/b.jpg": originals[1].read_bytes(),
        "blue/c.png": originals[2].read_bytes(),
        "not_sure/dark.png": originals[3].read_bytes(),
    }
    assert Path("sorted/by class/red/a.png").stat().st_mtime == 1_000_000_000
    assert files("photos") == before


def test_a_copy_whose_name_is_taken_gets_a_number(scorer: Scorer) -> None:
    for i in range(1, 4):
        paint(f"photos/{i}/a.png", (200, i, 0))
    paint("photos/4/a.png", (200, 1, 0))  # the content of the first
    Path("sorted/red").mkdir(parents=True)
    Path("sorted/red/a.png").write_text("mine")
    Path("sorted/red/a-3.png").symlink_to("nowhere")
    for _ in range(2):
        classify(["photos"], scorer, sort_into=Path("sorted"))
        assert files("sorted") == {
            "red/a.png": b"mine",
            "red/a-2.png": Path("photos/1/a.png").read_bytes(),
            "red/a-4.png": Path("photos/2/a.png").read_bytes(),
            "red/a-5.png": Path("photos/3/a.png").read_bytes(),
        }
    assert Path("sorted/red/a-3.png").is_symlink()


def test_files_with_equal_size_and_date_are_both_copied(scorer: Scorer) -> None:
    for i in range(2):
        path = Path(f"photos/{i}/a.bmp")
        paint(path, (200, i, 0))
        os.utime(path, (1_000_000_000, 1_000_000_000))
    classify(["photos"], scorer, sort_into=Path("sorted"))
    assert list(files("sorted")) == ["red/a-2.bmp", "red/a.bmp"]


def test_files_with_earlier_results_are_sorted_as_well(scorer: Scorer) -> None:
    paint("photos/a.png", RED)
    paint("photos/dark.png", BLACK)
    classify(["photos"], scorer, output=Path("out.csv"))
    classify(["photos"], scorer, output=Path("out.csv"), sort_into=Path("sorted"))
    assert list(files("sorted")) == ["not_sure/dark.png", "red/a.png"]


def test_a_folder_of_copies_among_the_images_is_excluded(scorer: Scorer) -> None:
    paint("photos/a.png")
    paint("photos/sorted.png")
    for paths in (["photos"], ["photos"], ["photos/**"]):
        summary = classify(paths, scorer, sort_into=Path("photos/sorted"))
        assert list(summary.outcomes) == ["photos/a.png", "photos/sorted.png"]
    Path("photos/link").symlink_to("sorted/red")
    assert classify(["photos"], scorer, sort_into=Path("photos/sorted")).files == 2


@pytest.mark.parametrize("path", ["photos", "photos/sub", "photos/a.png", "link"])
def test_images_in_the_folder_of_copies_are_refused(path: str, scorer: Scorer) -> None:
    paint("photos/a.png")
    paint("photos/sub/b.png")
    Path("link").symlink_to("photos")
    before = files("photos")
    with pytest.raises(UsageError, match=f"{path} is in photos, where --sort-into writes"):
        classify([path], scorer, sort_into=Path("photos"))
    assert files("photos") == before


@pytest.mark.parametrize(
    "classes",
    [
        ["../../up", "..", "."],
        ["/absolute", "a/b", "a_b"],
        ["not_sure", "not_sure-2", ".hidden"],
        ["", " ", "_"],
        ["long " * 100, "long " * 99, "trailing. "],
        ["nul\0", "new\nline", "日本" * 100],
        ["a\\b", "a:b", 'a"b'],
    ],
)
def test_any_class_name_gives_one_valid_folder(classes: list[str], tmp_path: Path) -> None:
    scorer = load_scorer(str(write_scorer_folder(tmp_path / "model", classes=classes)))
    for name, colour in {"0": RED, "1": GREEN, "2": BLUE, "dark": BLACK}.items():
        paint(f"photos/{name}.png", colour)
    summary = classify(["photos"], scorer, sort_into=Path("root/a/sorted"))
    assert [outcome.label for outcome in summary.outcomes.values()][:3] == classes
    copies = [Path(name) for name in files("root")]
    assert len({path.parent for path in copies}) == len(copies) == 4
    for path in copies:
        assert path.parts[:2] == ("a", "sorted")
        assert len(path.parts) == 4
        assert not path.parts[2].startswith(".")
        assert path.parts[2].isprintable()
        assert (path.parts[2] == "not_sure") == (path.name == "dark.png")


def test_valid_class_names_are_folder_names(tmp_path: Path) -> None:
    classes = ["cat", "Polar bear", "pêche (fruit)"]
    scorer = load_scorer(str(write_scorer_folder(tmp_path / "model", classes=classes)))
    for name, colour in {"0": RED, "1": GREEN, "2": BLUE}.items():
        paint(f"photos/{name}.png", colour)
    classify(["photos"], scorer, sort_into=Path("sorted"))
    assert sorted(path.name for path in Path("sorted").iterdir()) == sorted(classes)


def test_a_copy_that_fails_is_reported_and_leaves_no_file(scorer: Scorer) -> None:
    paint("photos/a.png")
    Path("sorted").mkdir()
    Path("sorted/red").write_text("a file")
    with pytest.raises(CifarError, match=r"photos/a\.png cannot be copied to sorted/red"):
        classify(["photos"], scorer, output=Path("out.csv"), sort_into=Path("sorted"))
    assert files("sorted") == {"red": b"a file"}
    # The file is not finished, so a second run copies it.
    Path("sorted/red").unlink()
    classify(["photos"], scorer, output=Path("out.csv"), sort_into=Path("sorted"))
    assert list(files("sorted")) == ["red/a.png"]


def test_a_full_disk_leaves_no_partial_copy(scorer: Scorer) -> None:
    Image.new("RGB", (300, 300), RED).save("a.bmp")
    with files_at_most(100_000), pytest.raises(CifarError, match=r"a\.bmp cannot be copied .*File too large"):
        classify(["a.bmp"], scorer, sort_into=Path("sorted"))
    assert files("sorted") == {}
