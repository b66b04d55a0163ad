"""A folder as output: one row for each image of any kind of input, however often the command is run."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from cifar_mlflow.cli import main
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.extras import install_command
from serving.batch import Summary, classify, classify_on_engine, load_scorer
from serving.batch.answer import ScorerAnswerer
from serving.batch.dataset import Dataset, write_part
from serving.batch.find import find_images
from serving.batch.pipeline import model_digest
from serving.batch.worker import Job, classify_part
from tests.deploy.files import DEPLOY
from tests.scorer_folders import write_scorer_folder
from tests.serving.batch.test_classify import BLUE, GREEN, RED, errors, needs_avif, paint

GOOD = {"photos/a.png": "red", "photos/b.png": "green", "photos/c.png": "blue", "photos/d.png": "red"}


@pytest.fixture
def model(scorer_folder: Path) -> str:
    return str(scorer_folder)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit parts to two files, so that a few files make several parts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serving.batch.dataset.PART_FILES", 2)


@pytest.fixture
def _photos() -> None:
    for path, colour in zip(GOOD, (RED, GREEN, BLUE, RED), strict=True):
        paint(path, colour)


@pytest.fixture
def bucket() -> Any:
    """Return an empty file system in memory."""
    system = fsspec.filesystem("memory")
    if system.exists("/"):
        system.rm("/", recursive=True)
    return system


def read(folder: str) -> pd.DataFrame:
    """Read the dataset as any user of Parquet would."""
    return pd.read_parquet(folder)


def labels(folder: str) -> dict[str, str]:
    table = read(folder)
    assert table["path"].is_unique
    return dict(zip(table["path"], table["label"].fillna(""), strict=True))


def files(folder: str) -> dict[str, int]:
    """Return the time of writing of each part."""
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("part-*")}


def run(*paths: str, model: str, output: str = "out/", **options: Any) -> Summary:
    return classify_on_engine(paths, model, output, **options)


def write_table(path: str, images: list[Any], column: str = "image", **options: Any) -> None:
    pq.write_table(pa.table({"id": range(len(images)), column: images}), path, **options)


@pytest.mark.usefixtures("_photos")
def test_the_example_of_the_documentation_counts_labels_and_reasons(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DEPLOY.parent / "docs/serving.md").read_text(encoding="utf-8").partition("### Millions")[2]
    Path("photos/empty.jpg").touch()
    run("photos", model=model, output="answers/")
    capsys.readouterr()
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(example, {})
    printed = capsys.readouterr().out
    assert re.search(r"red +2\n", printed)
    assert re.search(r"empty_image +1\n", printed)
    table = page.partition("| column |")[2].partition("\n\n")[0]
    columns = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert columns == read("answers").columns.tolist()


# Inputs


@pytest.mark.usefixtures("_photos")
def test_every_kind_of_input_gives_the_rows_that_a_single_file_has(model: str, bucket: Any) -> None:
    good = Path("photos/a.png").read_bytes()
    Path("photos/cut.png").write_bytes(good[:60])
    Path("photos/empty.jpg").touch()
    Path("photos/dangling.png").symlink_to("nowhere")
    os.mkfifo("photos/pipe.png")
    write_table("hub.parquet", [{"bytes": good, "path": "x"}, {"bytes": b"no", "path": "y"}, None], "img")
    write_table("plain.parquet", [good, None, b""])
    bucket.pipe({"/in/x.png": good, "/in/bad.jpg": b"no", "/in/.hidden.png": good, "/in/notes.txt": b"no"})
    bucket.pipe("/more/y.png", good)
    Path("list.txt").write_text(
        "photos/a.png\r\nphotos/missing.png\n\nmemory://more/y.png\nmemory://more/z.png\n",
        encoding="utf-8-sig",  # as some editors write it
    )
    inputs = [
        *("photos", "hub.parquet", "plain.parquet", "memory://in", "memory://mor*/y.png", "list.txt"),
        f"file://{Path('photos/b.png').absolute()}",
    ]
    summary = run(*inputs, model=model)
    errors = {
        "photos/cut.png": "truncated_image",
        "photos/dangling.png": "unreadable",
        "photos/empty.jpg": "empty_image",
        "photos/missing.png": "unreadable",
        "photos/pipe.png": "not_a_file",
        "hub.parquet#1": "not_an_image",
        "hub.parquet#2": "missing_image",
        "plain.parquet#1": "missing_image",
        "plain.parquet#2": "empty_image",
        "memory:///in/bad.jpg": "not_an_image",
        "memory://more/z.png": "unreadable",
    }
    in_memory = ["memory:///in/x.png", "memory:///more/y.png"]
    reds = [*in_memory, "memory://more/y.png", "hub.parquet#0", "plain.parquet#0"]
    table = read("out").set_index("path")
    assert labels("out") == {**GOOD, **dict.fromkeys(reds, "red"), **dict.fromkeys(errors, "")}
    assert table["error_code"].dropna().to_dict() == errors
    assert (summary.files, summary.done, summary.failed) == (len(table), len(table), len(errors))
    classify(inputs, load_scorer(model), output=Path("single.parquet"))
    single = pd.read_parquet("single.parquet").set_index("path")
    pd.testing.assert_frame_equal(table.sort_index(), single.sort_index())


@pytest.mark.usefixtures("_photos")
def test_a_single_file_continues_with_urls_and_tables(model: str, bucket: Any) -> None:
    good = Path("photos/a.png").read_bytes()
    bucket.pipe("/in/x.png", good)
    write_table("rows.parquet", [good, b"no"])
    inputs = ["memory://in/x.png", "rows.parquet"]
    scorer = load_scorer(model)
    assert classify(inputs, scorer, output=Path("out.csv")).earlier == 0
    assert classify(inputs, scorer, output=Path("out.csv")).earlier == 3
    assert pd.read_csv("out.csv")["path"].tolist() == [
        "memory:///in/x.png",
        "rows.parquet#0",
        "rows.parquet#1",
    ]


def test_row_groups_are_divided_among_parts_and_rows_keep_their_numbers(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.tables.MIN_ROWS", 5)
    photos = [paint(f"{i}.png", (RED, GREEN, BLUE)[i]).read_bytes() for i in range(3)]
    write_table("rows.parquet", [photos[i % 3] for i in range(20)], row_group_size=3)
    run("rows.parquet", model=model)
    assert labels("out") == {f"rows.parquet#{i}": ("red", "green", "blue")[i % 3] for i in range(20)}
    assert sorted(pq.read_metadata(path).num_rows for path in Path("out").glob("part-*")) == [2, 6, 6, 6]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("memory://nothing", "memory://nothing: no such file or folder"),
        ("memory://empty/*.png", r"memory://empty/\*.png: no such file, or no images there"),
        ("nosuch://a", "nosuch://a cannot be used: Protocol not known"),
        ("other.parquet", "other.parquet has no column image or img; it has id, picture"),
        ("broken.parquet", "broken.parquet cannot be read as Parquet"),
        ("latin.txt", "latin.txt is not a list of paths: it is not UTF-8"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(path: str, words: str, model: str, bucket: Any) -> None:
    write_table("other.parquet", [b""], "picture")
    Path("broken.parquet").write_bytes(b"PAR1 broken PAR1")
    Path("latin.txt").write_bytes(b"caf\xe9.png\n")
    with pytest.raises(UsageError, match=words):
        run(path, model=model)


def test_copies_are_made_of_local_files_only(model: str, bucket: Any) -> None:
    bucket.pipe("/in/x.png", paint("a.png").read_bytes())
    with pytest.raises(UsageError, match="--sort-into copies local files only"):
        classify(["memory://in"], load_scorer(model), sort_into=Path("sorted"))


# The output


@pytest.mark.usefixtures("_photos")
def test_the_output_may_be_at_a_url(model: str, bucket: Any) -> None:
    assert run("photos", model=model, output="memory://answers/").labels.total() == 4
    names = [path.rpartition("/")[2] for path in bucket.ls("/answers", detail=False)]
    assert Counter(name.partition("-")[0] for name in names) == {"part": 2, "_manifest.parquet": 1}
    assert run("photos", model=model, output="memory://answers/").earlier == 4


@pytest.mark.usefixtures("_photos")
def test_finished_parts_are_skipped_and_the_folder_follows_its_input(model: str) -> None:
    assert run("photos", model=model).earlier == 0
    before = files("out")
    assert len(before) == 2
    assert run("photos", model=model).earlier == 4
    assert files("out") == before

    paint("photos/0.png", BLUE)  # sorted first: the others keep their parts
    summary = run("photos", model=model)
    assert (summary.files, summary.earlier) == (5, 4)
    assert files("out").items() > before.items()

    paint("photos/a.png", GREEN)
    assert run("photos", model=model).earlier == 3
    Path("photos/d.png").unlink()
    assert run("photos", model=model).earlier == 3
    assert labels("out") == {
        "photos/0.png": "blue", "photos/a.png": "green", "photos/b.png": "green", "photos/c.png": "blue",
    }  # fmt: skip


@pytest.mark.usefixtures("_photos")
def test_an_unreadable_file_is_tried_again(model: str) -> None:
    Path("photos/e.png").symlink_to("nowhere")
    run("photos", model=model)
    assert labels("out") == {**GOOD, "photos/e.png": ""}
    paint("photo.png").rename("photos/nowhere")
    assert run("photos", model=model).earlier == 4
    assert labels("out") == {**GOOD, "photos/e.png": "red"}


@needs_avif
def test_parts_are_kept_while_the_decoder_of_a_photo_is_missing(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("photos/a.avif")
    paint("photos/b.png")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PIL.AvifImagePlugin", None)
        assert errors(run("photos", model=model)) == {"photos/a.avif": "no_avif_decoder"}
        assert run("photos", model=model).earlier == 2
    run("photos", model=model)
    assert labels("out") == {"photos/a.avif": "red", "photos/b.png": "red"}


@pytest.mark.usefixtures("_photos")
def test_rows_of_two_models_are_never_mixed(model: str, tmp_path: Path) -> None:
    run("photos", model=model)
    before = files("out")
    other = str(write_scorer_folder(tmp_path / "other", temperature=1.1))
    for given in ({"model": other}, {"model": model, "top_k": 1}):
        with pytest.raises(UsageError, match=r"answers of another model or another --top-k .*choose another"):
            run("photos", **given)
    assert files("out") == before


@pytest.mark.usefixtures("_photos")
@pytest.mark.parametrize("size", [0, 100])
def test_a_part_that_was_cut_short_is_computed_again(size: int, model: str) -> None:
    run("photos", model=model)
    damaged, kept = sorted(Path("out").glob("part-*"))
    os.truncate(damaged, size)
    before = kept.stat().st_mtime_ns
    assert run("photos", model=model).earlier == 2
    assert labels("out") == GOOD
    assert kept.stat().st_mtime_ns == before


@pytest.mark.usefixtures("_photos")
def test_a_list_of_parts_that_was_cut_short_is_named(model: str) -> None:
    run("photos", model=model)
    before = files("out")
    os.truncate("out/_manifest.parquet", 50)
    with pytest.raises(UsageError, match=r"out: _manifest.parquet is damaged .*: choose another --output"):
        run("photos", model=model)
    assert files("out") == before


@pytest.mark.usefixtures("_photos")
def test_a_disk_that_becomes_full_is_named(model: str, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("photos/a.png", "photos/b.png", model=model, output="memory://out")

    def refuse(self: MemoryFileSystem, path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(MemoryFileSystem, "pipe_file", refuse)
        with pytest.raises(
            CifarError, match=r"memory://out: the storage answered: .*No space left on device"
        ):
            write_part("memory://out", "name", [])
    assert len(bucket.glob("/out/part-*")) == 1


@pytest.mark.usefixtures("_photos")
@pytest.mark.parametrize(
    ("path", "output"), [("ftp://127.0.0.1:1/photos", "out/"), ("photos", "ftp://127.0.0.1:1/out")]
)
def test_a_server_that_does_not_answer_is_named(path: str, output: str, model: str) -> None:
    with pytest.raises(CifarError, match=r"ftp://127.0.0.1:1/\w+: the storage answered: .*refused"):
        run(path, model=model, output=output)


@pytest.mark.usefixtures("_photos")
def test_a_folder_with_other_files_is_not_changed(model: str) -> None:
    with pytest.raises(UsageError, match=r"photos holds other files \(a.png\): choose another --output"):
        run("photos", model=model, output="photos/")
    assert sorted(path.name for path in Path("photos").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]
    with pytest.raises(CifarError, match=r"photos/a\.png"):
        run("photos", model=model, output="photos/a.png/")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "ray"), "--engine ray needs --output FOLDER"),
        (("--engine", "spark", "--output", "out.csv"), "writes a folder"),
        (("--cluster", "host:6379", "--output", "out/"), "--cluster needs --engine ray or --engine spark"),
        (("--output", "out/", "--sort-into", "sorted"), "--sort-into needs a result file as --output"),
        (("--output", "out/", "--explain", "reasons"), "--explain needs a result file as --output"),
        (("--engine", "dask", "--output", "out/"), "dask"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, ["classify", "photos", *options])
    assert result.exit_code == 2
    assert words in result.output
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("spark", "pyspark")])
@pytest.mark.usefixtures("_photos")
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    engine: str, package: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UsageError, match=f"needs the package {package}, .*: {re.escape(install_command(engine))}$"
    ):
        run("photos", model=model, engine=engine)


@pytest.mark.usefixtures("_photos")
def test_missing_java_is_named_with_the_package_that_has_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"--engine spark needs Java, .*default-jre-headless"):
        run("photos", model=model, engine="spark")


@pytest.mark.usefixtures("_photos")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_ray_cluster_that_does_not_answer_is_named_at_once(address: str, model: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(CifarError, match=rf"Ray at {address} did not start: .*refused"):
        run("photos", model=model, engine="ray", cluster=address)


@pytest.mark.usefixtures("_photos")
def test_two_jobs_cannot_write_one_folder_at_the_same_time(model: str) -> None:
    digest = model_digest(load_scorer(model))
    with Dataset("out", digest, 1), pytest.raises(CifarError, match="is being written by another process"):
        run("photos", model=model)
    run("photos", model=model)
    assert labels("out") == GOOD


@pytest.mark.usefixtures("_photos")
def test_a_part_that_two_workers_compute_at_the_same_time_exists_once(model: str) -> None:
    """An engine gives the part of a worker that seems to be lost to another one."""
    scorer = load_scorer(model)
    job = Job(str(Path("out").absolute()), model, "", model_digest(scorer), 1)
    both = Barrier(2, timeout=60)

    class OneOfTwo(ScorerAnswerer):
        def answers(self, images: list[Any]) -> list[dict[str, Any]]:
            both.wait()
            return super().answers(images)

    with Dataset(job.output, job.digest, job.top_k) as dataset, ThreadPoolExecutor(2) as workers:
        _, (part, _) = dataset.plan(find_images(["photos"]))
        names = list(workers.map(lambda _: classify_part(part, job, OneOfTwo(scorer, 1)), range(2)))
    assert names == [part.name, part.name]
    assert labels("out") == {path: GOOD[path] for path in ("photos/a.png", "photos/b.png")}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)])
def test_finished_parts_survive_the_end_of_the_process(signum: signal.Signals, model: str) -> None:
    original = paint("photos/0000.png").read_bytes()
    for i in range(1, 4_000):
        Path(f"photos/{i:04}.png").write_bytes(original)
    command = [
        *(sys.executable, "-m", "cifar_mlflow", "classify", "photos"),
        "--model",
        model,
        "--output",
        "out/",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(Path("out").glob("part-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    _, log = process.communicate(timeout=120)
    if signum == signal.SIGTERM:
        assert "of 4,000 files; they are in the output, and the same command continues from there" in log
    before = files("out")
    assert 1 <= len(before) < 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{1_000 * len(before):,} of 4,000 files were already in out/" in done.stdout
    assert files("out").items() > before.items()
    assert labels("out") == {f"photos/{i:04}.png": "red" for i in range(4_000)}
    assert not list(Path("out").glob("*.tmp"))
