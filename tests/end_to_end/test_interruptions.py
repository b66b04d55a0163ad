"""Signals, kill -9, an outage of the tracking server: no run stays RUNNING, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cifar_mlflow.export import load_model_file
from tests.end_to_end.conftest import Project

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EPOCHS = 30
LONG = ("--epochs", str(EPOCHS))


def weights_of(project: Project, run_id: str) -> dict[str, list[float]]:
    file = project.client.download_artifacts(run_id, "weights/model.safetensors")
    classifier, _ = load_model_file(Path(file))
    return {name: tensor.flatten().tolist() for name, tensor in classifier.state_dict().items()}


def epochs_in(project: Project, run_id: str) -> list[int]:
    return [metric.step for metric in project.client.get_metric_history(run_id, "val/accuracy")]


def wait_for_epoch(project: Project, epoch: int) -> None:
    project.wait_for(lambda: f"epoch {epoch}/{EPOCHS}  " in project.output(), f"epoch {epoch}")


@pytest.mark.thorough
def test_an_interrupted_demo_tells_how_to_get_the_rest(project: Project) -> None:
    cache = project.folder / "my cache"
    named = ("--registered-model", "my photos")
    process = project.start("demo", *project.quick, *LONG, *named, "--cache-dir", str(cache))
    wait_for_epoch(project, 1)
    assert project.stop(process, signal.SIGINT) == 130
    (run,) = project.runs
    assert f"train --resume {run.info.run_id} --cache-dir '{cache}'\n" in project.output()
    rest = project.output().partition("To continue it instead:\n")[2]
    assert [line.partition("#")[0].strip() for line in rest.splitlines()] == [
        f"cifar-mlflow train --resume RUN_ID --cache-dir '{cache}' --register --registered-model 'my photos'",
        "cifar-mlflow promote --registered-model 'my photos'",
        "cifar-mlflow serve --model-uri 'models:/my photos@champion'",
    ]


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_ends_the_run_as_killed_and_resuming_gives_the_weights_of_an_uninterrupted_run(
    project: Project, signum: int, code: int
) -> None:
    process = project.start("train", *project.quick, *LONG)
    wait_for_epoch(project, 3)
    assert project.stop(process, signum) == code
    assert "Traceback" not in project.output()
    (run,) = project.runs
    assert run.info.status == "KILLED"
    assert f"train --resume {run.info.run_id}" in project.output()

    project.invoke("train", "--resume", run.info.run_id)
    resumed = project.client.get_run(run.info.run_id)
    assert resumed.info.status == "FINISHED"
    assert sorted(set(epochs_in(project, run.info.run_id))) == list(range(1, EPOCHS + 1))
    assert resumed.data.metrics["test/accuracy"] == 1.0

    if signum == signal.SIGTERM:  # the comparison is slow; once is enough
        project.train(*LONG)
        assert weights_of(project, project.runs[0].info.run_id) == weights_of(project, run.info.run_id)


@pytest.mark.parametrize("begun", ["epoch 1/", pytest.param("Exporting", marks=pytest.mark.thorough)])
def test_impatient_ctrl_c_stops_at_once(project: Project, begun: str) -> None:
    length = LONG if begun == "epoch 1/" else ("--epochs", "1")
    process = project.start("train", *project.quick, *length)
    project.wait_for(lambda: begun in project.output(), begun)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(timeout=60) in (130, -signal.SIGINT)  # a shell calls both 130
    assert "Traceback" not in project.output()
    (run,) = project.runs
    assert run.info.status == "KILLED"
    assert run.data.tags["error"] == "stopped by SIGINT" or begun == "epoch 1/"


def test_a_run_killed_by_sigkill_is_closed_and_can_be_resumed(project: Project) -> None:
    process = project.start("train", *project.quick, *LONG)
    wait_for_epoch(project, 3)
    project.stop(process, signal.SIGKILL)
    (run,) = project.runs
    assert run.info.status == "RUNNING"

    output = project.train("--epochs", "1")  # any later training finds it
    assert f"train --resume {run.info.run_id}" in output
    killed = project.client.get_run(run.info.run_id)
    assert (killed.info.status, killed.data.tags["error"]) == ("KILLED", "its process was killed")

    project.invoke("train", "--resume", run.info.run_id)
    resumed = project.client.get_run(run.info.run_id)
    assert resumed.info.status == "FINISHED"
    assert "error" not in resumed.data.tags
    assert sorted(set(epochs_in(project, run.info.run_id))) == list(range(1, EPOCHS + 1))


@pytest.mark.thorough
def test_a_live_run_is_neither_closed_nor_resumed_by_another_process(project: Project) -> None:
    process = project.start("train", *project.quick, *LONG, "--epochs", "5000")
    project.wait_for(lambda: "epoch 2/5000  " in project.output(), "epoch 2")
    (run,) = project.runs
    project.train("--epochs", "1")
    assert project.client.get_run(run.info.run_id).info.status == "RUNNING"
    refusal = project.invoke("train", "--resume", run.info.run_id, code=1)
    assert "is being trained by another process" in refusal
    assert project.client.get_run(run.info.run_id).info.status == "RUNNING"
    assert project.stop(process, signal.SIGTERM) == 143


def test_ctrl_c_in_mlflow_run_saves_the_checkpoint_and_prints_how_to_resume(project: Project) -> None:
    """The terminal interrupts MLflow and the training at once, and MLflow also sends a SIGTERM.

    The training ends its run as KILLED; `mlflow run` then overwrites the status with FAILED, so the tag has
    the reason.
    """
    parameters = [
        f"-P{name[2:]}={value}"
        for name, value in zip(project.quick[::2], project.quick[1::2], strict=True)
        if name != "--epochs"
    ]
    with (project.folder / "output").open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local",
                *parameters, f"-Pepochs={EPOCHS}",
            ],
            cwd=project.folder, stdout=output, stderr=output, start_new_session=True,
            env=project.env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    wait_for_epoch(project, 3)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    (run,) = project.runs
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "stopped by SIGINT")
    assert f"train --resume {run.info.run_id}" in project.output()
    assert Path(project.env["CIFAR_MLFLOW_CACHE"], "runs", run.info.run_id, "checkpoint.pt").exists()


class Server:
    """A real `mlflow server` that can be stopped and started again."""

    def __init__(self, project: Project, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._store = project.env["MLFLOW_TRACKING_URI"]
        self._folder = project.folder
        self.port = port
        project.env["MLFLOW_TRACKING_URI"] = self.uri
        self.start()

    def start(self) -> None:
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store,
                    "--artifacts-destination", str(self._folder / "served"),
                    "--port", str(self.port), "--workers", "1",
                ],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
                # its dozen job processes are not needed for tracking
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def server(project: Project, free_port: int) -> Iterator[Server]:
    running = Server(project, free_port)
    yield running
    running.stop()


@pytest.mark.thorough
def test_training_continues_during_an_outage_of_the_tracking_server(project: Project, server: Server) -> None:
    process = project.start("train", *project.quick, *LONG)
    wait_for_epoch(project, 2)
    server.stop()
    project.wait_for(lambda: "its metrics are kept" in project.output(), "the outage to be noticed")
    epoch = project.output().count(f"/{EPOCHS}  ")
    wait_for_epoch(project, epoch + 3)  # the training goes on
    server.start()
    assert process.wait(timeout=240) == 0, project.output()
    assert "MLflow is back" in project.output() or "trying again" in project.output()
    (run,) = project.runs
    address = f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert f"What next:\n  compare   {address}" in project.output()
    assert run.info.status == "FINISHED"
    assert epochs_in(project, run.info.run_id)[:EPOCHS] == list(range(1, EPOCHS + 1))
    assert "test/confusion_matrix.png" in project.artifacts(run.info.run_id)


@pytest.mark.thorough
def test_the_password_of_the_server_is_neither_shown_nor_stored(project: Project, server: Server) -> None:
    project.env["MLFLOW_TRACKING_URI"] = server.uri.replace("http://", "http://alice:secret@")
    process = project.start("train", *project.quick, *LONG, "--mirrors", "http://bob:secret@host/x")
    wait_for_epoch(project, 2)
    project.stop(process, signal.SIGKILL)
    (run,) = project.runs
    local = Path(project.env["CIFAR_MLFLOW_CACHE"], "runs", run.info.run_id)
    assert "secret" not in (local / "owner.json").read_text()
    for file in ("owner.json", "checkpoint.pt"):
        assert (local / file).stat().st_mode & 0o077 == 0

    output = project.output() + project.invoke("train", "--resume", run.info.run_id)
    assert f"http://alice:***@127.0.0.1:{server.port}/#/experiments/" in output
    assert "secret" not in output
    finished = project.client.get_run(run.info.run_id)
    assert finished.info.status == "FINISHED"
    assert "secret" not in str(finished.data.to_dictionary())
    settings = project.client.download_artifacts(run.info.run_id, "config.yaml")
    assert yaml.safe_load(Path(settings).read_text())["mirrors"] == ["http://bob:***@host/x"]


@pytest.mark.thorough
def test_a_lasting_outage_is_an_error_that_says_how_to_complete_the_run(
    project: Project, server: Server
) -> None:
    project.env["CIFAR_MLFLOW_PATIENCE"] = "2"
    process = project.start("train", *project.quick, *LONG)
    wait_for_epoch(project, 2)
    server.stop()
    assert process.wait(timeout=240) == 1
    output = project.output()
    assert "Traceback" not in output
    assert "does not answer" in output
    assert "Nothing is lost; continue with: cifar-mlflow train --resume" in output

    server.start()
    (run,) = project.runs
    project.invoke("train", "--resume", run.info.run_id)
    completed = project.client.get_run(run.info.run_id)
    assert completed.info.status == "FINISHED"
    assert sorted(set(epochs_in(project, run.info.run_id))) == list(range(1, EPOCHS + 1))
    assert "test/accuracy" in completed.data.metrics
