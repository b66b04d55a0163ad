"""`classify`: the files that it finds, the answers, and the summary."""

import io
import logging
import os
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image, features

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.scorer.predictor import Scorer
from cifar_mlflow.scorer.preprocess import MAX_BYTES
from serving.batch import Summary, classify, load_scorer, print_summary
from serving.batch.rows import Outcome
from tests.scorer_folders import write_scorer_folder

RED, GREEN, BLUE, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 200), (0, 0, 0)


@pytest.fixture(scope="session")
def scorer(scorer_folder: Path) -> Scorer:
    return load_scorer(str(scorer_folder))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reads_all() -> bool:
    """Return whether this process may read files without permission, as root may."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return os.access(file.name, os.R_OK)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def paint(path: str | Path, colour: tuple[int, int, int] = RED) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def labels(summary: Summary) -> dict[str, str | None]:
    return {path: outcome.label for path, outcome in summary.outcomes.items()}


def errors(summary: Summary) -> dict[str, str]:
    return {error.path: error.code for error in summary.errors}


def printed(summary: Summary, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    print_summary(summary)
    return capsys.readouterr().out


def test_many_files_are_counted_by_class_with_a_hint_at_the_single_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counted = Summary(files=59, labels=Counter(cat=59), uncertain=Counter(cat=14))
    said = printed(counted, capsys)
    assert said.split()[:5] == ["label", "files", "not", "sure", "share"]
    assert "--output answers.csv" in said
    counted.output = "answers.csv"
    assert "add --output" not in printed(counted, capsys)


def test_an_uncertain_answer_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {
        "a.png": Outcome("cat", 0.5, True, None),
        "b.png": Outcome("cat", 0.98, True, None),
        "c.png": Outcome("cat", 0.98, False, None),
    }
    summary = Summary(files=3, labels=Counter(cat=3), outcomes=outcomes, confidence_below=0.6)
    lines = {line.split()[0]: line for line in printed(summary, capsys).splitlines() if ".png" in line}
    assert "not sure: below 60.0%" in lines["a.png"]
    assert "not sure: unlike the training images" in lines["b.png"]
    assert "not sure" not in lines["c.png"]


# Finding files


def test_the_images_in_a_folder_are_sorted_by_name(scorer: Scorer) -> None:
    for name in ("b.png", "a.JPG", "z/1.webp", "c/2.bmp", "c/d/3.gif", "c/4.jpeg"):
        paint(Path("photos", name))
    paint("photos/notes.txt.png").rename("photos/notes.txt")
    summary = classify(["photos"], scorer)
    assert list(labels(summary)) == [
        "photos/a.JPG",
        "photos/b.png",
        "photos/c/2.bmp",
        "photos/c/4.jpeg",
        "photos/c/d/3.gif",
        "photos/z/1.webp",
    ]
    assert (summary.files, summary.failed, summary.exit_code) == (6, 0, 0)


def test_photos_with_a_less_usual_suffix_are_found(scorer: Scorer) -> None:
    for suffix in ("jfif", "jpe", "mpo"):
        paint(f"photos/{suffix}.jpg").rename(f"photos/{suffix}.{suffix}")
    assert list(labels(classify(["photos"], scorer))) == [
        "photos/jfif.jfif",
        "photos/jpe.jpe",
        "photos/mpo.mpo",
    ]


def test_hidden_files_and_folders_are_skipped_unless_named(scorer: Scorer) -> None:
    paint("photos/a.png")
    paint("photos/.b.png")
    paint("photos/.thumbnails/c.png")
    assert list(labels(classify(["photos"], scorer))) == ["photos/a.png"]
    assert list(labels(classify(["photos/.b.png", "photos/.thumbnails"], scorer))) == [
        "photos/.b.png",
        "photos/.thumbnails/c.png",
    ]


@pytest.mark.parametrize(("format_name", "suffix"), [("AVIF", "avif"), ("HEIF", "HEIC")])
def test_phone_photos_are_read(scorer: Scorer, format_name: str, suffix: str) -> None:
    if format_name == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Path("photos").mkdir()
    for name, colour in {"r": RED, "b": BLUE}.items():
        Image.new("RGB", (40, 30), colour).save(f"photos/{name}.{suffix}", format_name, quality=95)
    summary = classify(["photos"], scorer)
    assert labels(summary) == {f"photos/b.{suffix}": "blue", f"photos/r.{suffix}": "red"}


def avif(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), RED).save(file, "AVIF", **options)
    return file.getvalue()


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


@needs_avif
def test_phone_photos_have_the_limits_of_other_photos(scorer: Scorer) -> None:
    size = b"".join(side.to_bytes(4) for side in (300, 200))
    larger = b"".join(side.to_bytes(4) for side in (9000, 6000))
    Path("wide.avif").write_bytes(avif().replace(size, larger))
    Path("long.avif").write_bytes(avif() + bytes(MAX_BYTES))
    summary = classify(["wide.avif", "long.avif"], scorer)
    assert errors(summary) == {"wide.avif": "too_many_pixels", "long.avif": "too_many_bytes"}


@pytest.mark.parametrize("format_name", [pytest.param("AVIF", marks=needs_avif), "HEIF"])
def test_damaged_exif_data_do_not_matter(
    scorer: Scorer, format_name: str, recwarn: pytest.WarningsRecorder
) -> None:
    if format_name == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    for cut in (20, 24):
        Image.new("RGB", (40, 30), RED).save(f"{cut}.photo", format_name, exif=exif.tobytes()[:cut])
    recwarn.clear()
    assert labels(classify(["20.photo", "24.photo"], scorer)) == {"20.photo": "red", "24.photo": "red"}
    assert not recwarn.list


def test_a_named_file_may_have_any_suffix(scorer: Scorer) -> None:
    paint("photo.png").rename("upload")
    assert labels(classify(["upload"], scorer)) == {"upload": "red"}


def test_patterns_are_expanded_like_in_a_shell(scorer: Scorer) -> None:
    for name in ("a.png", "b.jpg", "c/a.png", "c/d/a.png", "odd[1].png"):
        paint(Path("photos", name))
    assert list(labels(classify(["photos/*.png"], scorer))) == ["photos/a.png", "photos/odd[1].png"]
    assert list(labels(classify(["photos/**/a.png"], scorer))) == [
        "photos/a.png",
        "photos/c/a.png",
        "photos/c/d/a.png",
    ]
    assert list(labels(classify(["photos/odd[1].png"], scorer))) == ["photos/odd[1].png"]
    with pytest.raises(UsageError, match=r"photos/\*\.gif matches no file"):
        classify(["photos/a.png", "photos/*.gif"], scorer)


def test_a_tilde_in_quotes_is_the_home_folder(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    paint("home/photos/a.png")
    assert classify(["~/photos/*.png"], scorer).files == 1


def test_a_file_that_is_reached_twice_is_classified_once(scorer: Scorer) -> None:
    photo = paint("photos/b.png")
    Path("photos/a.png").symlink_to("b.png")
    Path("link").symlink_to("photos")
    Path("copy").mkdir()
    Path("copy/hard.png").hardlink_to(photo)  # a hard link is a file of its own in the results
    summary = classify(
        ["photos/b.png", "photos", "link", str(photo.absolute()), "./photos/*", "copy"], scorer
    )
    assert list(labels(summary)) == ["photos/b.png", "copy/hard.png"]


def test_links_to_folders_are_followed_and_loops_end(scorer: Scorer) -> None:
    paint("elsewhere/a.png")
    paint("photos/sub/b.png")
    Path("photos/more").symlink_to("../elsewhere")
    for i in range(10):  # two loops already give endlessly many paths
        Path(f"photos/sub/up{i}").symlink_to("..")
    Path("photos/self").symlink_to("self")
    assert list(labels(classify(["photos"], scorer))) == ["photos/more/a.png", "photos/sub/b.png"]


def test_an_unreadable_folder_is_reported_and_the_rest_classified(
    scorer: Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint("photos/z.png")
    os.chdir("photos")
    for _ in range(25):  # the path of the innermost folder exceeds the limit of the kernel
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    os.chdir(tmp_path)
    summary = classify(["photos"], scorer)
    assert labels(summary) == {"photos/z.png": "red"}
    assert [(error.path.count("/"), error.code) for error in summary.errors] == [(21, "unreadable")]
    assert "d: File name too long" in printed(summary, capsys)


@pytest.mark.parametrize(
    ("paths", "error", "words"),
    [
        (["nowhere.png"], UsageError, "nowhere.png: no such file or folder"),
        (["photos/a.png", "nowhere"], UsageError, "nowhere: no such file or folder"),
        (["empty"], CifarError, r"no images in empty \(looked for .jpg"),
        (["texts", "empty"], CifarError, "no images in texts, empty"),
    ],
)
def test_paths_without_images_are_named_in_the_error(
    paths: list[str], error: type[CifarError], words: str, scorer: Scorer
) -> None:
    paint("photos/a.png")
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("a")
    with pytest.raises(error, match=words):
        classify(paths, scorer, output=Path("out.csv"))
    assert not Path("out.csv").exists()


# Answers and summary


def test_each_file_is_listed_with_its_label(scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in {"r": RED, "g": GREEN, "b": BLUE, "dark": BLACK}.items():
        paint(f"photos/{name}.png", colour)
    summary = classify(["photos"], scorer)
    assert labels(summary) == {
        "photos/b.png": "blue",
        "photos/dark.png": "red",
        "photos/g.png": "green",
        "photos/r.png": "red",
    }
    lines = printed(summary, capsys).splitlines()
    assert [line.split() for line in lines if "photos/" in line] == [
        ["photos/b.png", "blue", "99.9%"],
        ["photos/dark.png", "red", "33.3%", "not", "sure:", "below", "60.0%"],
        ["photos/g.png", "green", "99.9%"],
        ["photos/r.png", "red", "99.9%"],
    ]


def test_many_files_are_counted_by_class(scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(60):
        paint(f"photos/{i}.png", RED if i < 40 else GREEN if i < 55 else BLACK)
    summary = classify(["photos"], scorer)
    assert (summary.labels, summary.uncertain.total()) == ({"red": 45, "green": 15}, 5)
    output = printed(summary, capsys)
    assert "photos/" not in output
    assert [line.split() for line in output.splitlines() if "%" in line] == [
        ["red", "45", "5", "11%"],
        ["green", "15", "0", "0%"],
        ["all", "60", "5", "8%"],
    ]


def test_rows_are_in_the_order_of_the_files_across_batches_and_bad_files(scorer: Scorer) -> None:
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    expected = {}
    for i in range(200):
        path = f"photos/{i:03}.png"
        label = ("red", "green", "blue")[i * i % 3]
        paint(path, colours[label])
        expected[path] = label
        if i % 7 == 0:
            Path(path).write_bytes(b"")
            expected[path] = ""
    classify(["photos"], scorer, output=Path("out.csv"))
    table = pd.read_csv("out.csv", keep_default_na=False)
    assert dict(zip(table["path"], table["label"], strict=True)) == expected


def test_bad_files_are_reported_with_the_reason_and_the_rest_classified(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    paint("photos/good.png")
    paint("photos/cut.png")
    Path("photos/cut.png").write_bytes(Path("photos/cut.png").read_bytes()[:60])
    Path("photos/empty.jpg").touch()
    Path("photos/text.jpg").write_text("no image")
    Path("photos/dangling.png").symlink_to("nowhere")
    os.mkfifo("photos/pipe.png")
    summary = classify(["photos"], scorer)
    assert labels(summary) == {"photos/good.png": "red"}
    assert errors(summary) == {
        "photos/cut.png": "truncated_image",
        "photos/dangling.png": "unreadable",
        "photos/empty.jpg": "empty_image",
        "photos/pipe.png": "not_a_file",
        "photos/text.jpg": "not_an_image",
    }
    assert (summary.files, summary.failed, summary.exit_code) == (6, 5, 0)
    output = printed(summary, capsys)
    assert (
        "5 could not be classified (truncated_image 1, unreadable 1, empty_image 1, not_a_file 1, "
        "not_an_image 1):" in output
    )
    assert "photos/dangling.png: It cannot be read: No such file or directory." in output


def test_without_a_single_answer_the_exit_code_is_1(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("[red]bad.png").write_text("no image")
    summary = classify(["[red]bad.png"], scorer)
    assert summary.exit_code == 1
    assert "[red]bad.png: This is not a picture" in printed(summary, capsys)


def test_only_the_first_hundred_bad_files_are_listed(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad").mkdir()
    for i in range(130):
        Path(f"bad/{i:03}.png").touch()
    output = printed(classify(["bad"], scorer, output=Path("out.csv")), capsys)
    assert output.count("The picture is empty") == 100
    assert "130 could not be classified (empty_image 130):" in output
    assert "and 30 more: see out.csv" in output


@pytest.mark.skipif(reads_all(), reason="root may read everything")
def test_files_and_folders_without_permission_are_reported(scorer: Scorer) -> None:
    paint("photos/a.png")
    paint("photos/secret.png").chmod(0)
    paint("photos/private/b.png")
    Path("photos/private").chmod(0)
    summary = classify(["photos"], scorer)
    Path("photos/private").chmod(0o700)
    assert errors(summary) == {"photos/private": "unreadable", "photos/secret.png": "unreadable"}
    assert labels(summary) == {"photos/a.png": "red"}


NAMES = [
    "日本 ü.png",
    "two\nlines.png",
    "carriage\rreturn.png",
    'quote" and, comma.png',
    "[red]bold.png",
    "\x1b[2J.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_printed_in_one_line_without_control_characters(
    name: str, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(name)
    summary = classify([name], scorer)
    assert labels(summary) == {name: "red"}
    output = printed(summary, capsys)
    assert sum("99.9%" in line for line in output.splitlines()) == 1
    assert name.encode("unicode_escape").decode() in output or name in output
    assert not set("\x1b\r") & set(output)


def test_a_file_name_that_is_not_utf8_is_written_with_escapes(scorer: Scorer) -> None:
    path = os.fsdecode(b"caf\xe9.png")
    paint(path)
    assert labels(classify([path], scorer)) == {"caf\\xe9.png": "red"}


@pytest.mark.parametrize("top_k", [0, 4, 99])
def test_a_top_k_without_that_many_classes_is_refused(top_k: int, scorer: Scorer) -> None:
    paint("a.png")
    with pytest.raises(UsageError, match=rf"--top-k must be from 1 to 3, .* \(got {top_k}\)"):
        classify(["a.png"], scorer, output=Path("out.jsonl"), top_k=top_k)
    assert not Path("out.jsonl").exists()


def test_by_default_a_model_with_two_classes_lists_both(tmp_path: Path) -> None:
    scorer = load_scorer(str(write_scorer_folder(tmp_path / "two", classes=["red", "green"])))
    paint("a.png")
    classify(["a.png"], scorer, output=Path("out.jsonl"))
    (ranking,) = pd.read_json("out.jsonl", lines=True)["top_k"]
    assert [entry["label"] for entry in ranking] == ["red", "green"]


def test_without_a_terminal_the_progress_is_logged(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batch.progress.SECONDS_BETWEEN_LOG_LINES", 0)
    for i in range(100):
        paint(f"photos/{i}.png")
    written = io.StringIO()
    logger = logging.getLogger("cifar_mlflow.classify")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(written)])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    classify(["photos"], scorer)
    assert [line.rpartition(", ")[0] for line in written.getvalue().splitlines()] == [
        "Classified 64 of 100 files",
        "Classified 100 of 100 files",
    ]
