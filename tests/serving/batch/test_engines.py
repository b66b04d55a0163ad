"""Ray and Spark, each as a real cluster of two workers, one of which is killed in the middle."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cifar_mlflow.cli import main
from serving.registry.mlflow_model import save_model
from tests.scorer_folders import colour_network, write_scorer_folder
from tests.serving.batch.test_classify import BLUE, GREEN, RED, paint

pytestmark = pytest.mark.slow

BAD = {"empty.jpg": (b"", "empty_image"), "text.png": (b"no image", "not_an_image")}
# The command lines of worker processes, and the options that start two of them.
WORKERS = {"ray": "ray::MapWorker", "spark": "CoarseGrainedExecutorBackend"}
# The same of a process that works on a part.
BUSY = {"ray": "MapWorker(MapBatches(PartScorer)).submit", "spark": "pyspark.daemon"}
CLUSTER = {"ray": (), "spark": ("--cluster", "local-cluster[2,1,1024]")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow model that takes a second or two for a thousand images."""
    root = tmp_path_factory.mktemp("engines")
    scorer = write_scorer_folder(root / "scorer")
    network = colour_network(scorer / "model.onnx", slow=True)
    card = json.loads((scorer / "scorer.json").read_text())
    card["files"] = {"model.onnx": hashlib.sha256(network.read_bytes()).hexdigest()}
    (scorer / "scorer.json").write_text(json.dumps(card))
    save_model(scorer, root / "model")
    return root / "model"


def descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, pending = [], [pid]
    while pending:
        below = parents.get(pending.pop(), [])
        found += below
        pending += below
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def write_photos(folder: Path, count: int) -> dict[str, str]:
    """Write `count` images, some of them bad; return the label or the error code of each."""
    expected = {}
    for name, (content, code) in BAD.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        expected[f"{folder.name}/{name}"] = code
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    originals = {label: paint(folder.parent / f"{label}.png", colour) for label, colour in colours.items()}
    for i in range(count - len(BAD)):
        label = ("red", "green", "blue")[i % 3]
        (folder / f"{i:05}.png").hardlink_to(originals[label])
        expected[f"{folder.name}/{i:05}.png"] = label
    return expected


def require(engine: str) -> None:
    pytest.importorskip({"ray": "ray", "spark": "pyspark"}[engine])
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Java is not installed (Debian: default-jre-headless)")


def start(arguments: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the command in `folder` and return after its first part, which is in `answers`."""
    # Two cores for Ray, whatever the machine has; time for its start on a busy machine.
    env = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "RAY_raylet_start_wait_time_s": "300"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cifar_mlflow", *arguments],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not list((folder / "answers").glob("part-*")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@pytest.mark.parametrize("count", [4_000, pytest.param(20_000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_each_image_has_one_row_although_a_worker_is_killed(
    engine: str, count: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(engine)
    expected = write_photos(tmp_path / "photos", count)
    arguments = [
        *("classify", "photos", "--model", str(model)),
        *("--engine", engine, *CLUSTER[engine], "--output", "answers"),
    ]
    log, answers = tmp_path / "log", tmp_path / "answers"
    process = start(arguments, tmp_path, log)
    try:
        workers = [pid for pid in descendants(process.pid) if WORKERS[engine] in command_line(pid)]
        assert workers, log.read_text()  # the second one may still be starting
        os.kill(workers[0], signal.SIGKILL)
        done = len(list(answers.glob("part-*")))
        assert done < count / 1_000, "all was done before the worker was killed"
        assert process.wait(timeout=600) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    for word in ("Traceback", "DeprecationWarning"):
        assert word not in log.read_text(), log.read_text()
    table = pd.read_parquet(answers)
    assert len(table) == count
    assert dict(zip(table["path"], table["label"].fillna(table["error_code"]), strict=True)) == expected

    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert f"{count:,} of {count:,} files were already in answers" in again.stdout


def start_long_job(engine: str, model: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start to classify 10,000 photos."""
    write_photos(folder / "photos", 10_000)
    arguments = [
        *("classify", "photos", "--model", str(model)),
        *("--engine", engine, *CLUSTER[engine], "--output", "answers"),
    ]
    return start(arguments, folder, log)


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_an_engine_whose_workers_always_die_gives_up(engine: str, model: Path, tmp_path: Path) -> None:
    """Images that need more memory than a worker has would otherwise be tried for ever."""
    require(engine)
    log = tmp_path / "log"
    process = start_long_job(engine, model, tmp_path, log)
    try:
        deadline = time.monotonic() + 150
        while process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            for pid in descendants(process.pid):
                if BUSY[engine] in command_line(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, log.read_text()
    assert f"Error: {engine.capitalize()} stopped: " in log.read_text()
    assert "the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_a_damaged_table_is_named(
    engine: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers find out: the planning reads the end of a table only."""
    require(engine)
    monkeypatch.chdir(tmp_path)
    image = paint(tmp_path / "red.png", RED).read_bytes()
    table = pa.table({"image": [image] * 3_000})
    pq.write_table(table, "photos.parquet", row_group_size=1_000, use_dictionary=False, compression="none")
    content = Path("photos.parquet").read_bytes()
    middle = content.find(image, len(content) // 2)
    Path("photos.parquet").write_bytes(content[: middle - 40] + b"\xff" * 40 + content[middle:])
    result = CliRunner().invoke(
        main,
        ["classify", "photos.parquet", "--model", str(model), "--engine", engine, "--output", "answers/"],
    )
    assert result.exit_code == 1, result.output
    problem = rf"{re.escape(str(tmp_path))}/photos\.parquet cannot be read as Parquet with images: "
    assert re.match(rf"Error: {engine.capitalize()} stopped: {problem}", result.stderr.splitlines()[-1])


@pytest.mark.thorough
def test_a_spark_master_that_cannot_be_used_is_named(model: Path, tmp_path: Path) -> None:
    require("spark")
    image = paint(tmp_path / "red.png", RED)
    result = CliRunner().invoke(
        main,
        [
            *("classify", str(image), "--model", str(model), "--engine", "spark", "--cluster", "nonsense"),
            *("--output", str(tmp_path / "answers")),
        ],
    )
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("Error: Spark at nonsense did not start: ")


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["ray", "spark"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_engine_with_the_hint_to_continue(
    signum: signal.Signals, engine: str, model: Path, tmp_path: Path
) -> None:
    require(engine)
    log = tmp_path / "log"
    process = start_long_job(engine, model, tmp_path, log)
    try:
        below = descendants(process.pid)
        # A terminal sends Ctrl-C to all processes of the command.
        (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
        assert process.wait(timeout=120) == 128 + signum, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert f"Stopped by {signum.name} after" in log.read_text()
    assert "the same command continues from there" in log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    deadline = time.monotonic() + 60
    while running := [command_line(pid) for pid in below if command_line(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.1)
