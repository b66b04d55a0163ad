"""The results file: rows are complete, unique and of one model, however the writing process ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch import classify, load_scorer
from tests.scorer_folders import colour_network, write_scorer_folder
from tests.serving.batch.test_classify import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    errors,
    files_at_most,
    needs_avif,
    paint,
    reads_all,
)

SUFFIXES = ["csv", "jsonl", "parquet"]
COLUMNS = [
    "path", "label", "class_index", "confidence", "uncertain", "top_k", "error_code", "error_message",
    "size", "modified", "model",
]  # fmt: skip


@pytest.fixture
def scorer(scorer_folder: Path) -> Scorer:
    """Return a scorer for one test only, because its engine counts the images."""
    return load_scorer(str(scorer_folder))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest) -> Path:
    return Path(f"results/out.{request.param}")


def read(output: Path) -> pd.DataFrame:
    if output.suffix == ".csv":
        return pd.read_csv(output)
    return pd.read_json(output, lines=True) if output.suffix == ".jsonl" else pd.read_parquet(output)


def labels(output: Path) -> dict[str, str]:
    table = read(output)
    assert table["path"].is_unique
    return dict(zip(table["path"], table["label"].fillna(""), strict=True))


def test_pandas_reads_every_column_of_every_format(scorer: Scorer, output: Path) -> None:
    photos = {"a.png": GREEN, "b\nü.png": BLACK, "c, d.png": BLUE}
    for name, colour in photos.items():
        paint(f"photos/{name}", colour)
    Path("photos/e.png").write_text("no image")
    classify(["photos"], scorer, output=output, top_k=2)
    table = read(output)
    assert list(table) == COLUMNS
    assert list(table["path"]) == ["photos/a.png", "photos/b\nü.png", "photos/c, d.png", "photos/e.png"]
    assert list(table["label"][:3]) == ["green", "red", "blue"]
    assert list(table["class_index"][:3]) == [1, 0, 2]
    assert table["confidence"][0] == pytest.approx(0.9992, abs=1e-4)
    assert [bool(value) for value in table["uncertain"][:3]] == [False, True, False]
    top = json.loads(table["top_k"][0]) if output.suffix == ".csv" else list(table["top_k"][0])
    assert [entry["label"] for entry in top] == ["green", "red"]
    assert top[0]["confidence"] == pytest.approx(table["confidence"][0])
    assert table["error_code"].isna().tolist() == [True, True, True, False]
    broken = table.iloc[3]
    assert broken["error_code"] == "not_an_image"
    assert "not a picture" in broken["error_message"]
    assert broken[["label", "class_index", "confidence", "uncertain", "top_k"]].isna().all()
    assert list(table["size"]) == [Path(path).stat().st_size for path in table["path"]]
    assert list(Path("results").iterdir()) == [output]


def test_batches_that_are_computed_side_by_side_have_their_rows_in_order(
    scorer_folder: Path, output: Path
) -> None:
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    expected = {}
    for i in range(400):
        label = list(colours)[i % 3]
        paint(f"photos/{i:03}.png", colours[label])
        expected[f"photos/{i:03}.png"] = label
    Path("photos/007.png").write_bytes(b"")
    expected["photos/007.png"] = ""
    classify(["photos"], load_scorer(str(scorer_folder), 1), output=output)
    assert list(labels(output).items()) == list(expected.items())


def test_a_second_run_classifies_only_new_files(scorer: Scorer, output: Path) -> None:
    for i in range(5):
        paint(f"photos/{i}.png", RED)
    paint("photos/bad.png").write_bytes(b"bad")
    classify(["photos"], scorer, output=output)
    before = output.read_bytes()
    again = classify(["photos"], scorer, output=output)
    assert scorer.engine.images == 5
    assert output.read_bytes() == before
    assert list(Path("results").iterdir()) == [output]
    assert (again.earlier, again.labels, again.failed, again.exit_code) == (6, {"red": 5}, 1, 0)
    assert [error.code for error in again.errors] == ["not_an_image"]

    paint("photos/a.png", BLUE)
    paint("more/b.png", GREEN)
    added = classify(["photos", "more"], scorer, output=output)
    assert scorer.engine.images == 7
    assert (added.files, added.earlier) == (8, 6)
    assert labels(output) == {
        **{f"photos/{i}.png": "red" for i in range(5)},
        "photos/bad.png": "",
        "photos/a.png": "blue",
        "more/b.png": "green",
    }


def test_the_row_of_a_changed_file_is_replaced(scorer: Scorer, output: Path) -> None:
    for name in ("a", "b", "c"):
        paint(f"photos/{name}.png", RED)
    classify(["photos"], scorer, output=output)
    paint("photos/a.png", BLUE)
    date = Path("photos/b.png").stat()
    Path("photos/b.png").write_bytes(Path("photos/b.png").read_bytes() + b"\0")
    os.utime("photos/b.png", ns=(date.st_atime_ns, date.st_mtime_ns))  # only its size differs
    summary = classify(["photos"], scorer, output=output)
    assert summary.earlier == 1
    assert labels(output) == {"photos/c.png": "red", "photos/a.png": "blue", "photos/b.png": "red"}
    assert list(Path("results").iterdir()) == [output]


@pytest.mark.skipif(reads_all(), reason="root may read everything")
def test_an_unreadable_file_is_tried_again(scorer: Scorer, output: Path) -> None:
    paint("photos/a.png")
    paint("photos/b.png").chmod(0)
    classify(["photos"], scorer, output=output)
    assert labels(output) == {"photos/a.png": "red", "photos/b.png": ""}
    Path("photos/b.png").chmod(0o600)
    classify(["photos"], scorer, output=output)
    assert labels(output) == {"photos/a.png": "red", "photos/b.png": "red"}


@needs_avif
def test_a_photo_whose_decoder_was_missing_is_tried_again(
    scorer: Scorer, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("photos/a.png")
    paint("photos/b.avif")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PIL.AvifImagePlugin", None)
        summary = classify(["photos"], scorer, output=output)
        assert errors(summary) == {"photos/b.avif": "no_avif_decoder"}
        assert "AVIF cannot be read here" in summary.errors[0].message
        assert classify(["photos"], scorer, output=output).earlier == 2  # it is still missing
    summary = classify(["photos"], scorer, output=output)
    assert summary.earlier == 1
    assert labels(output) == {"photos/a.png": "red", "photos/b.avif": "red"}


@pytest.mark.parametrize("output", ["csv", "jsonl"], indirect=True)
def test_a_results_file_truncated_anywhere_is_completed(scorer: Scorer, output: Path) -> None:
    paint("photos/a\nü,\n.png", RED)
    paint("photos/b.png", BLUE)
    paint("photos/c\n.png").write_bytes(b"bad")
    classify(["photos"], scorer, output=output)
    whole = output.read_bytes()
    line_ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]  # also within file names
    for length in {*range(0, len(whole), 5), *line_ends}:
        output.write_bytes(whole[:length])
        classify(["photos"], scorer, output=output)
        assert output.read_bytes() == whole, length


def test_duplicate_rows_are_removed(scorer: Scorer, output: Path) -> None:
    """They are left by a process that was killed while it finished the file."""
    paint("a.png")
    paint("b.png", BLUE)
    classify(["a.png", "b.png"], scorer, output=output)
    rows = Path("rows.jsonl")
    classify(["b.png"], scorer, output=rows)
    if output.suffix == ".parquet":
        rows.rename(f"{output}.part.jsonl")
    else:
        output.write_bytes(output.read_bytes() + output.read_bytes().splitlines(keepends=True)[-1])
    classify(["a.png", "b.png"], scorer, output=output)
    assert labels(output) == {"a.png": "red", "b.png": "blue"}


def test_a_full_disk_is_reported_and_a_later_run_continues(scorer: Scorer, output: Path) -> None:
    for i in range(60):
        paint(f"photos/{i}.png")
    with files_at_most(10_000), pytest.raises(CifarError, match=r"cannot be written \(File too large\)"):
        classify(["photos"], scorer, output=output)
    summary = classify(["photos"], scorer, output=output)
    assert 0 < summary.earlier < 60
    assert labels(output) == {f"photos/{i}.png": "red" for i in range(60)}
    assert list(Path("results").iterdir()) == [output]


def test_rows_of_two_models_are_never_mixed(scorer: Scorer, output: Path, tmp_path: Path) -> None:
    paint("a.png")
    classify(["a.png"], scorer, output=output)
    before = output.read_bytes()
    other = load_scorer(str(write_scorer_folder(tmp_path / "other", temperature=1.1)))
    paint("b.png")
    with pytest.raises(UsageError, match=r"answers of another model .*choose another --output"):
        classify(["a.png", "b.png"], other, output=output)
    with pytest.raises(UsageError, match=r"3 classes per file, not 1: .*--top-k 3"):
        classify(["a.png", "b.png"], scorer, output=output, top_k=1)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\na.png,cat\n",
        b'{"path": 3}\n',
        b'{"path": "a.png", "label": "cat"}\n',
        b"notes\n",
        b"PAR1",
        b"no line end",
        pd.DataFrame({"path": ["a.png"]}).to_parquet(),
    ],
)
def test_a_file_with_other_content_is_not_changed(content: bytes, scorer: Scorer, output: Path) -> None:
    paint("a.png")
    output.parent.mkdir()
    output.write_bytes(content)
    with pytest.raises(UsageError, match="exists and cannot be continued"):
        classify(["a.png"], scorer, output=output)
    assert output.read_bytes() == content


@pytest.mark.parametrize("output", ["csv", "jsonl"], indirect=True)
@pytest.mark.parametrize("damage", [b'"x"\n', b'"a"b\n', b"\0\n"])
def test_a_results_file_with_a_damaged_row_is_not_changed(
    damage: bytes, scorer: Scorer, output: Path
) -> None:
    for i in range(3):
        paint(f"photos/{i}.png")
    classify(["photos"], scorer, output=output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:-2], damage, *lines[-1:]]))
    damaged = output.read_bytes()
    with pytest.raises(UsageError, match="damaged"):
        classify(["photos"], scorer, output=output)
    assert output.read_bytes() == damaged


def test_other_suffixes_are_refused_at_once(scorer: Scorer) -> None:
    paint("a.png")
    for name in ("out.txt", "out", "out.csv.gz"):
        with pytest.raises(UsageError, match=r"out.*must end in \.csv, \.jsonl or \.parquet"):
            classify(["a.png"], scorer, output=Path(name), sort_into=Path("sorted"))
    assert list(Path().iterdir()) == [Path("a.png")]


def test_a_path_that_cannot_be_written_is_named(scorer: Scorer, output: Path) -> None:
    paint("a.png")
    Path("results").write_text("a file")
    with pytest.raises(CifarError, match=r"results/out\.\w+: cannot be"):
        classify(["a.png"], scorer, output=output)


# A separate process, which is interrupted or killed

DRIVER = """
import sys
from pathlib import Path
from cifar_mlflow.console import set_up_logging
from cifar_mlflow.interrupt import Interrupted
from serving.batch import classify, load_scorer

set_up_logging()
try:
    classify(["photos"], load_scorer("slow"), output=Path(sys.argv[1]))
except Interrupted as interruption:
    sys.exit(128 + interruption.signum)
"""
FILES = 800  # 13 batches of 0.1 s


class Job:
    """A background process that classifies 800 images with a slow network."""

    def __init__(self, output: Path) -> None:
        self._text = Path(f"{output}.part.jsonl") if output.suffix == ".parquet" else output
        self._log = Path("log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(output)], stdout=log, stderr=log
            )

    def wait_for_a_batch(self) -> None:
        """Wait until the file has one batch more than at the start."""
        size = self._text.stat().st_size if self._text.exists() else 0
        deadline = time.monotonic() + 120
        while not (self._text.exists() and self._text.stat().st_size > size + 5_000):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def stop(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(timeout=120)

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def slow(tmp_path: Path) -> Scorer:
    """Return a slow scorer in the folder `slow`, and write FILES images to `photos`."""
    folder = write_scorer_folder(tmp_path / "slow")
    model = colour_network(folder / "model.onnx", slow=True)
    card = json.loads((folder / "scorer.json").read_text())
    card["files"] = {"model.onnx": hashlib.sha256(model.read_bytes()).hexdigest()}
    (folder / "scorer.json").write_text(json.dumps(card))
    original = paint("photos/0000.png", RED).read_bytes()
    for i in range(1, FILES):
        Path(f"photos/{i:04}.png").write_bytes(original)
    return load_scorer(str(folder))


def complete(scorer: Scorer, output: Path) -> int:
    """Finish the job in this process; return the number of files that had a row before."""
    summary = classify(["photos"], scorer, output=output)
    assert scorer.engine.images == FILES - summary.earlier
    assert labels(output) == {f"photos/{i:04}.png": "red" for i in range(FILES)}
    assert list(Path("results").iterdir()) == [output]
    return summary.earlier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "signum"),
    [("csv", signal.SIGINT), ("jsonl", signal.SIGINT), ("parquet", signal.SIGTERM)],
    indirect=["output"],
)
def test_after_a_signal_finished_work_is_kept_and_the_log_says_how_to_continue(
    signum: signal.Signals, slow: Scorer, output: Path
) -> None:
    job = Job(output)
    job.wait_for_a_batch()
    with pytest.raises(CifarError, match="is being written by another process"):
        classify(["photos"], slow, output=output)
    assert job.stop(signum) == 128 + signum
    assert f"Stopped by {signum.name} after " in job.log
    assert "of 800 files; they are in the output, and the same command continues from there" in job.log
    assert "Traceback" not in job.log
    assert 64 <= complete(slow, output) < FILES


@pytest.mark.slow
@pytest.mark.parametrize("output", ["csv", "parquet"], indirect=True)
def test_finished_work_survives_two_kills(slow: Scorer, output: Path) -> None:
    for _ in range(2):
        job = Job(output)
        job.wait_for_a_batch()
        job.stop(signal.SIGKILL)
    assert 128 <= complete(slow, output) < FILES
