"""The launcher of deploy/search on several nodes: each with its own host name, cache, folder and clock."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.deploy.files import ROOT
from tests.end_to_end.conftest import Project
from tests.end_to_end.postgres import Postgres, missing
from tests.end_to_end.test_tune_survives import is_healthy, stop_group

TRIALS = 8
EPOCHS = 30
GRACE_SECONDS = 24
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
NAMESPACES = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Node:
    """The batch script in namespaces of its own, as in a container."""

    def __init__(self, name: str, clock: str, project: Project) -> None:
        self.name = name
        folder = project.folder / name
        (folder / "tmp").mkdir(parents=True)
        (folder / "deploy").symlink_to(ROOT / "deploy")  # the script is run in the root of the repository
        self._log = folder / "log"
        assert FAKETIME
        env = {
            **project.env,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(folder / "tmp"),
            "USER": "tester",
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME": clock,
        }
        options = [*project.quick, "--epochs", str(EPOCHS), "--sampler", "random", "--pruner", "none"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(*NAMESPACES, "sh", "-c", f'hostname {name} && exec bash "$0" "$@"'),
                    *("deploy/search/slurm.sbatch", *options, "--optimizer", "sgd"),
                ],
                cwd=folder, env=env, text=True, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        project.processes.append(self.process)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def trains(self) -> bool:
        assert self.process.poll() is None, self.log
        return "epoch 2/" in self.log

    def vanish(self) -> None:
        """Kill every process of the node: the kernel does so when the first process of a namespace dies."""
        self.process.kill()
        self.process.wait()

    def time_is_up(self) -> None:
        """Send SIGTERM to the batch shell alone, as SLURM does before the end of the time."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGTERM)


@pytest.fixture
def postgres(free_port: int) -> Iterator[Postgres]:
    if reason := missing():
        pytest.skip(reason)
    server = Postgres(free_port)
    yield server
    server.remove()


@pytest.fixture
def _mlflow_server(project: Project) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", project.env["MLFLOW_TRACKING_URI"]),
            *("--artifacts-destination", str(project.folder / "artifacts")),
        ],
        cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    (project.folder / "output").touch()
    project.wait_for(lambda: is_healthy(f"127.0.0.1:{port}"), "MLflow's server")
    project.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    yield
    stop_group(server)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.usefixtures("_mlflow_server")
def test_each_trial_is_run_once_although_nodes_and_the_database_come_and_go(
    project: Project, postgres: Postgres
) -> None:
    """One node vanishes, the time of another is up, one joins late, and PostgreSQL is restarted."""
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACES, "true"], check=False).returncode:
        pytest.skip("namespaces are not permitted here")
    project.env |= {
        "STUDY_STORAGE": postgres.url,
        "STUDY_NAME": "nodes",
        "STUDY_TRIALS": str(TRIALS),
        "CIFAR_MLFLOW_GRACE": str(GRACE_SECONDS),
    }
    del project.env["CIFAR_MLFLOW_CACHE"]  # the script chooses one per node
    stays = Node("stays", "+0", project)
    project.wait_for(lambda: "Search nodes: run" in stays.log, "the search that the others join")
    vanishes, stops = Node("vanishes", "+120", project), Node("stops", "-120", project)
    project.wait_for(lambda: stays.trains() and vanishes.trains() and stops.trains(), "trials", 300)
    vanishes.vanish()
    late = Node("late", "+120", project)
    stops.time_is_up()
    assert stops.process.wait(timeout=120) == 143, stops.log
    assert "continue its study with: cifar-mlflow tune --study nodes" in stops.log
    project.wait_for(late.trains, "the late node", 300)
    postgres.stop()
    project.wait_for(lambda: "does not answer" in stays.log + late.log, "the outage", 300)
    postgres.start()
    for node in (stays, late):
        assert node.process.wait(timeout=600) == 0, node.log
        assert "Traceback" not in node.log

    study = optuna.load_study(study_name="nodes", storage=postgres.url)
    states = Counter(trial.state.name for trial in study.trials)
    assert states == {"COMPLETE": TRIALS, "FAIL": 2}, stays.log + late.log  # the lost ones were run again
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    lost = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert {trial.user_attrs["host"] for trial in lost} == {"vanishes", "stops"}
    assert all(any(trial.params == again.params for again in complete) for trial in lost)
    assert {trial.user_attrs["host"] for trial in complete} >= {"stays", "late"}
    runs = {run.info.run_id: run for run in project.runs if "mlflow.parentRunId" in run.data.tags}
    assert len(runs) == len(study.trials)
    for trial in complete:
        run = runs.pop(trial.user_attrs["run_id"])
        assert (run.info.status, run.data.tags["optuna.trial"]) == ("FINISHED", str(trial.number))
        losses = project.client.get_metric_history(run.info.run_id, "train/loss")
        assert [metric.step for metric in losses] == list(range(1, EPOCHS + 1))
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert not [run for run in project.runs if run.info.status == "RUNNING"]
