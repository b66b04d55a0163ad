"""`cifar-mlflow monitor`: from a request log to a run in an MLflow store."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow.entities import Run

from cifar_mlflow.cli import main
from serving.monitoring.drift import reference_of
from serving.monitoring.records import Record
from serving.monitoring.request_log import RequestLog
from tests.serving.app.conftest import Store
from tests.serving.monitoring.request_logs import UNLIMITED

pytestmark = pytest.mark.slow

LOG = "sqlite:///requests.db"
CLASSES = ("red", "green", "blue")
HOUR = 3600.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Store:
    """Return three versions: with a reference of validation images, of training images, and without one."""
    store = Store(tmp_path_factory.mktemp("store"), empty_store)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), 500)
    for split in ("val", "train"):
        store.add(reference=reference_of(images, probabilities, CLASSES, split))
    store.add()
    return store


@pytest.fixture
def log(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return a function that writes records and feedback to a request log beside a copy of the store."""
    shutil.copy(store.folder / "mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("CIFAR_MLFLOW_CACHE", str(tmp_path / "cache"))

    def write(*records: Record, feedback: dict[str, dict[str, Any]] | None = None) -> None:
        requests = RequestLog(LOG, **UNLIMITED)
        for record in records:
            requests.put(record)
        for request_id, given in (feedback or {}).items():
            assert requests.feedback(request_id, 0, **{"correct": None, "label": None, **given})
        requests.close()
        assert requests.dropped == 0

    return write


def answer(number: int, *, age: float = HOUR, version: str = "cifar10/1", **fields: Any) -> Record:
    rng = np.random.default_rng(number)
    known: dict[str, Any] = {
        "request_id": f"{version.replace('/', '-')}-{number}", "time": time.time() - age, "route": "/predict",
        "status": 200, "model_version": version, "label": CLASSES[number % 3],
        "confidence": float(rng.uniform(0.4, 1)), "uncertain": number % 4 == 0,
        "brightness": float(rng.uniform(0.2, 0.4)), "contrast": float(rng.uniform(0.1, 0.15)),
        "decode_ms": 1.0, "score_ms": 3.0, "total_ms": 5.0 + number % 100,
    }  # fmt: skip
    return Record(**(known | fields))


def refusal(number: int, status: int, code: str) -> Record:
    return Record(
        request_id=f"refused-{number}", time=time.time() - HOUR, route="/predict", status=status,
        error_code=code, total_ms=0.5,
    )  # fmt: skip


def monitor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["monitor", *arguments])


def the_run() -> Run:
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.kind = 'monitor'")
    assert run.info.status == "FINISHED"
    return client.get_run(run.info.run_id)  # a search leaves the models out


def files(run: Run, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, folder):
        found |= files(run, file.path) if file.is_dir else {file.path}
    return found


def table(run: Run, path: str) -> pd.DataFrame:
    return pd.read_csv(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path))


def test_the_report_has_traffic_latency_drift_and_accuracy(log: Callable[..., None]) -> None:
    records = [answer(number, age=HOUR * (1 + number % 5)) for number in range(300)]
    given: dict[str, dict[str, Any]] = {f"cifar10-1-{number}": {"correct": True} for number in range(6)}
    given |= {"cifar10-1-6": {"correct": False}, "cifar10-1-7": {"label": "blue"}}
    log(*records, refusal(1, 503, "overloaded"), refusal(2, 413, "too_large"), feedback=given)
    result = monitor("--since", "1d")
    assert result.exit_code == 0, result.output
    run = the_run()
    assert f"({run.info.run_id}) in experiment colours: python -m cifar_mlflow" in result.output
    assert mlflow.get_experiment(run.info.experiment_id).name == "colours"  # the data of the model

    metrics = run.data.metrics
    assert metrics["requests"] == 302
    assert metrics["error_share"] == pytest.approx(1 / 302)
    assert metrics["refused_share"] == pytest.approx(1 / 302)
    assert metrics["pictures"] == 300
    assert metrics["uncertain_share"] == pytest.approx(0.25)
    assert metrics["p50_ms"] == pytest.approx(54.5)
    assert metrics["p99_ms"] == pytest.approx(103, abs=1.5)
    assert metrics["live/feedbacks"] == 8
    assert metrics["live/accuracy"] == pytest.approx(6 / 8)
    assert 0 < metrics["live/f1_macro"] < 1
    assert {"psi/label", "psi/confidence", "psi/brightness", "psi/contrast"} <= metrics.keys()
    assert {
        "traffic.png", "latency.png", "drift.png", "cifar10-1/class_mix.png", "cifar10-1/confidence.png",
        "cifar10-1/brightness_contrast.png", "cifar10-1/live_confusion.png",
    } <= files(run)  # fmt: skip
    traffic = table(run, "traffic.csv")
    assert (traffic["answered"].sum(), traffic["failed"].sum(), traffic["refused"].sum()) == (300, 1, 1)
    assert table(run, "cifar10-1/label.csv")["live"].tolist() == pytest.approx([1 / 3] * 3)
    confusion = table(run, "cifar10-1/live_confusion.csv").set_index("true")
    assert confusion.loc["blue", "green"] == 1  # number 7 was classified as green
    assert confusion.to_numpy().sum() == 7  # the true class of number 6 is unknown
    assert "overloaded 1" in result.output
    assert "cifar10/1: 25.0% of 300 answers uncertain; 10.0% on the validation images" in result.output
    assert table(run, "cifar10-1/drift.csv")["what"].tolist() == [
        "label",
        "confidence",
        "brightness",
        "contrast",
    ]
    assert "of 8 answers with feedback, 75.0% were right" in run.data.tags["mlflow.note.content"]


def test_versions_are_reported_separately(log: Callable[..., None]) -> None:
    log(
        *(answer(number, age=2 * HOUR, label="red") for number in range(250)),
        *(answer(number, age=HOUR, version="cifar10/2") for number in range(240)),
    )
    result = monitor()
    assert result.exit_code == 0, result.output
    run = the_run()
    versions = table(run, "versions.csv").set_index("version")
    assert versions["pictures"].to_dict() == {"cifar10/1": 250, "cifar10/2": 240}
    assert versions["psi/label"]["cifar10/1"] > 0.25
    assert run.data.metrics["psi/label"] == pytest.approx(versions["psi/label"]["cifar10/2"])
    assert run.data.tags["model_version"] == "cifar10/2"
    evaluated = {mlflow.get_logged_model(each.model_id).name for each in run.inputs.model_inputs}
    assert evaluated == {"scorer1", "scorer2"}
    assert result.output.count("the reference consists of training images") == 1  # of version 2
    assert {"cifar10-1/class_mix.png", "cifar10-2/class_mix.png"} <= files(run)


def test_all_versions_can_be_compared_with_one_model(log: Callable[..., None]) -> None:
    log(*(answer(number, version="cifar10/77") for number in range(250)))
    assert "drift is unknown" in monitor("--run-name", "without").output
    result = monitor("--model-uri", "models:/cifar10/1", "--run-name", "with")
    assert "drift (PSI): label" in result.output
    assert monitor("--model-uri", "models:/cifar10/99").exit_code == 2


def test_a_version_without_a_reference_has_no_drift(log: Callable[..., None]) -> None:
    log(*(answer(number, version="cifar10/3") for number in range(250)))
    result = monitor()
    assert result.exit_code == 0, result.output
    assert "registered without a reference" in result.output
    run = the_run()
    assert not [name for name in run.data.metrics if name.startswith("psi/")]
    assert "drift.png" not in files(run)
    assert run.data.metrics["requests"] == 250


def test_too_few_images_and_missing_feedback_are_reported(log: Callable[..., None]) -> None:
    log(*(answer(number) for number in range(20)))
    result = monitor()
    assert result.exit_code == 0, result.output
    assert "too few images to compute drift (20)" in result.output
    assert "no feedback" in result.output
    assert not [name for name in the_run().data.metrics if name.startswith(("psi/", "live/"))]


def test_a_report_on_failed_requests_only(log: Callable[..., None]) -> None:
    log(*(refusal(number, 503, "overloaded") for number in range(3)))
    result = monitor()
    assert result.exit_code == 0, result.output
    assert "100.00% failed" in result.output
    assert "No image was classified" in result.output


def test_a_report_on_feedback_only(log: Callable[..., None]) -> None:
    log(answer(1, age=30 * HOUR), feedback={"cifar10-1-1": {"correct": True}})
    result = monitor("--since", "1h")
    assert result.exit_code == 0, result.output
    assert "of 1 answer with feedback, 100.0% were right" in result.output


def test_a_window_without_requests_creates_no_run(log: Callable[..., None]) -> None:
    log(answer(1, age=30 * HOUR))
    result = monitor("--since", "2h")
    assert result.exit_code == 0
    assert "has no requests from" in result.output
    client = mlflow.MlflowClient()
    assert not client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "tags.kind = 'monitor'"
    )


def test_a_request_with_several_images_is_one_request(log: Callable[..., None]) -> None:
    now = time.time()
    log(*(answer(1, item=item, time=now - 60) for item in range(5)))
    assert monitor().exit_code == 0
    assert the_run().data.metrics["requests"] == 1
    assert the_run().data.metrics["pictures"] == 5


def test_frames_of_live_views_are_left_out_by_default(log: Callable[..., None]) -> None:
    photos = [answer(number) for number in range(250)]
    frames = [
        answer(number, request_id=f"frame-{number}", label="red", confidence=0.99, live=True)
        for number in range(2000)
    ]
    log(*photos, *frames)
    result = monitor("--run-name", "without")
    assert result.exit_code == 0, result.output
    assert "Left out: 2,000 frames of live views" in result.output
    assert "Drift" not in result.output
    metrics = the_run().data.metrics
    assert (metrics["requests"], metrics["pictures"]) == (250, 250)
    assert metrics["psi/label"] < 0.1
    assert "versions.csv" in files(the_run())
    assert table(the_run(), "versions.csv")["pictures"].tolist() == [250]

    assert monitor("--live-frames", "--run-name", "with").exit_code == 0
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="run_name = 'with'", output_format="list"
    )
    assert run.data.metrics["requests"] == 2250
    assert run.data.metrics["psi/label"] > 0.25


def test_a_window_with_nothing_but_live_frames_is_reported(log: Callable[..., None]) -> None:
    log(*(answer(number, live=True) for number in range(3)))
    result = monitor()
    assert result.exit_code == 0, result.output
    assert "apart from 3 frames of live views" in result.output


def test_feedback_that_was_corrected_counts_once(log: Callable[..., None]) -> None:
    log(answer(1), answer(2), feedback={"cifar10-1-1": {"correct": True}, "cifar10-1-2": {"correct": True}})
    log(feedback={"cifar10-1-1": {"correct": False, "label": "red"}})
    result = monitor()
    assert result.exit_code == 0, result.output
    assert the_run().data.metrics["live/accuracy"] == 0.5
    assert the_run().data.metrics["live/feedbacks"] == 2
    confusion = table(the_run(), "cifar10-1/live_confusion.csv").set_index("true")
    assert confusion.loc["red", "green"] == 1  # number 1 was classified as green


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--request-log", "sqlite:///nowhere.db"], 1, "there is no request log sqlite:///nowhere.db"),
        (["--request-log", "nothing"], 2, "not a database URL"),
        (["--since", "yesterday"], 2, "since: give a span such as"),
        (["--since", "999999w"], 2, "since: give a span such as"),
        (["--since", "0001-01-01T00:00+14:00"], 2, "since: give a span such as"),
    ],
)
def test_invalid_settings_are_reported(
    log: Callable[..., None], arguments: list[str], exit_code: int, message: str
) -> None:
    result = monitor(*arguments)
    assert result.exit_code == exit_code
    assert message in result.output


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hush@127.0.0.1:9/requests",
        "postgresql+psycopg://user@127.0.0.1:9/requests?password=hush",
        "postgresql+psycopg://user:hush@127.0.0.1:wrong/requests",
    ],
)
def test_a_password_is_not_printed(
    log: Callable[..., None], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_REQUEST_LOG", url)
    result = monitor()
    assert result.exit_code in (1, 2), result.exception
    assert isinstance(result.exception, SystemExit)
    assert "hush" not in result.output


def test_a_password_is_neither_in_the_output_nor_in_the_run(
    log: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    url = f"{postgres_url}?password=hush".replace("tester@", "tester:hush@")
    requests = RequestLog(url, **UNLIMITED)
    requests.put(answer(1))
    requests.close()
    result = monitor("--request-log", url)
    assert result.exit_code == 0, result.output
    assert "tester:***@" in result.output
    assert "hush" not in result.output
    run = the_run()
    assert run.data.params["request_log"] in result.output
    assert b"hush" not in (tmp_path / "mlflow.db").read_bytes()
