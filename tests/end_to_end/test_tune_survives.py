"""Kills, signals and outages during a search: the same command continues, and nothing is lost."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import optuna
import pytest

from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.resume import resumable_config
from tests.end_to_end.conftest import Project
from tests.end_to_end.postgres import Postgres, missing
from tests.end_to_end.test_interruptions import weights_of
from tests.end_to_end.test_tune import parent_of, study_of, trials_of
from tuning.report import reproduce_command

pytestmark = pytest.mark.slow

# Trials long enough to be interrupted, whose results depend on nothing but their own settings.
EPOCHS = 20
STEADY = ("--epochs", str(EPOCHS), "--pruner", "none", "--sampler", "random", "--optimizer", "sgd")


def command(project: Project, *arguments: str) -> tuple[str, ...]:
    return ("tune", *project.quick, *STEADY, *arguments)


def workers_of(parent: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the workers of a search."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if _field(path, 3) == str(parent.pid)
        and b"tuning.worker_main" in (path.parent / "cmdline").read_bytes()
    ]


def _field(stat: Path, index: int) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[index - 2]
    except OSError:
        return ""


def wait_for_epoch(project: Project, trial: int, epoch: int) -> None:
    what = f"trial {trial}: epoch {epoch}/{EPOCHS} "
    project.wait_for(lambda: what in project.output(), what)


def assert_nothing_is_lost(project: Project, trials: int) -> None:
    """Assert that each trial was trained once, from its first epoch to its last, and that all runs ended."""
    assert not [run for run in project.runs if run.info.status == "RUNNING"]
    assert parent_of(project).info.status == "FINISHED"
    runs = trials_of(project)
    assert [run.data.tags["optuna.trial"] for run in runs] == [str(number) for number in range(trials)]
    for run, trial in zip(runs, study_of(project).trials, strict=True):
        assert (run.info.status, trial.state.name) == ("FINISHED", "COMPLETE")
        assert trial.user_attrs["run_id"] == run.info.run_id
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
        losses = project.client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted({metric.step for metric in losses}) == list(range(1, EPOCHS + 1))
        assert project.artifacts(run.info.run_id) >= {"learning_curves.png", "val/confusion_matrix.png"}


def ended(pid: int) -> bool:
    try:
        return _field(Path(f"/proc/{pid}/stat"), 2) in ("", "Z")
    except OSError:
        return True


@pytest.mark.parametrize(
    "killed", ["worker", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("parent", "all"))]
)
def test_kill_9(project: Project, killed: str) -> None:
    """A killed worker is restarted by its parent, and the worker of a killed parent stops.

    In each case, the trial continues in its run and ends with exactly the weights of an uninterrupted one.
    """
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 2)  # early, so that the trial does not end before the kill
    (worker,) = workers_of(process)
    if killed in ("all", "worker"):
        os.kill(worker, signal.SIGKILL)
    if killed in ("all", "parent"):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    project.wait_for(lambda: ended(worker), "the worker to stop")
    if killed == "worker":
        assert process.wait(timeout=240) == 0, project.output()
        assert "was killed (SIGKILL); restarting it" in project.output()
    else:
        (trial,) = trials_of(project)
        assert trial.info.status == ("KILLED" if killed == "parent" else "RUNNING")
        project.run(*command(project, "--trials", "2"))
    assert "trial 0: continues from its checkpoint" in project.output()
    assert_nothing_is_lost(project, 2)

    if killed == "all":  # the comparison takes long; once is enough
        settings = study_of(project).trials[0].user_attrs["settings"]
        verb, *options = reproduce_command(settings).split()[1:]
        project.run(verb, *options, "--threads", "1", "--run-name", "uninterrupted")
        (again,) = [run for run in project.runs if run.info.run_name == "uninterrupted"]
        assert again.data.params["lr"] == str(resolve_train_config(settings).lr)
        assert weights_of(project, again.info.run_id) == weights_of(
            project, trials_of(project)[0].info.run_id
        )


@pytest.mark.thorough
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_the_printed_command_continues_the_search(project: Project, signum: int) -> None:
    """After Ctrl-C the search itself prints it; after `kill -9`, the next command does."""
    process = project.start(*command(project, "--trials", "1"))
    wait_for_epoch(project, 0, 2)
    workers = workers_of(process)
    project.stop(process, signum)
    project.wait_for(lambda: all(map(ended, workers)), "the worker to stop")
    output = project.train() if signum == signal.SIGKILL else project.output()
    hint = "continue its study with: "
    (again,) = [line.partition(hint)[2] for line in output.splitlines() if hint in line]
    project.run(*shlex.split(again)[1:])
    assert "trial 0: continues from its checkpoint" in project.output()
    assert_nothing_is_lost(project, 1)


@pytest.mark.thorough
def test_one_ctrl_c_saves_and_a_second_stops_at_once(project: Project) -> None:
    process = project.start(*command(project, "--trials", "2", "--workers", "2", "--threads", "2"))
    wait_for_epoch(project, 0, 2)
    wait_for_epoch(project, 1, 2)
    assert project.stop(process, signal.SIGINT) == 130
    output = project.output()
    assert "continue its study with: cifar-mlflow tune --storage sqlite:" in output
    assert "Traceback" not in output
    assert [run.info.status for run in trials_of(project)] == ["KILLED", "KILLED"]
    assert parent_of(project).info.status == "KILLED"
    run_id = trials_of(project)[0].info.run_id
    with pytest.raises(UsageError, match="is a trial of a study; continue its study with"):
        resumable_config(run_id, {"cache_dir": project.env["CIFAR_MLFLOW_CACHE"]})

    process = project.start(*command(project, "--trials", "2", "--workers", "2", "--threads", "2"))
    project.wait_for(lambda: project.output().count("continues from its checkpoint") == 2, "both to continue")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # two signals at once would be one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in project.output()
    assert not [run for run in project.runs if run.info.status == "RUNNING"]

    project.run(*command(project, "--trials", "2"))  # one worker continues both
    assert_nothing_is_lost(project, 2)


@pytest.mark.thorough
def test_a_trial_that_kills_its_process_repeatedly_is_given_up(project: Project) -> None:
    # Trial 0 of another study of the same name, whose storage is gone.
    experiment = project.client.create_experiment(project.images.name)
    tags = {"optuna.study": project.images.name, "optuna.trial": "0", "mlflow.parentRunId": "f" * 32}
    other = project.client.create_run(experiment, tags=tags).info.run_id
    process = project.start(*command(project, "--trials", "2", "--batch-size", "1"))

    def started(times: int) -> bool:
        return project.output().count("trial 0: Training trial-") == times

    for attempt in (1, 2, 3):
        project.wait_for(partial(started, attempt), f"attempt {attempt}")
        os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(timeout=240) == 0, project.output()
    assert "its process was killed 3 times" in project.output()
    first, second = study_of(project).trials
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert project.client.get_run(other).info.lifecycle_stage == "active"


@pytest.mark.thorough
def test_a_database_deleted_during_the_search_is_reported_as_lost(project: Project) -> None:
    """The error says what is lost and what is kept, and the remedy that it names works."""
    process = project.start(*command(project, "--trials", "3"))
    wait_for_epoch(project, 1, 2)
    (project.folder / "optuna.db").unlink()
    assert process.wait(timeout=60) == 1, project.output()
    output = project.output()
    assert "Nothing is lost" not in output
    assert "Traceback" not in output
    error = output[output.index("Error: ") :]
    assert f"study folder no longer exists in {project.folder}/optuna.db" in error
    assert "Lost: Optuna's record of the trials" in error
    assert f"--warm-start {project.images.name}" in error
    assert not [run for run in project.runs if run.info.status == "RUNNING"]
    first = trials_of(project)[0]
    assert first.info.status == "FINISHED"

    project.run(*command(project, "--trials", "1", "--warm-start", project.images.name))
    prior, new = study_of(project).trials
    assert (prior.user_attrs["run_id"], prior.user_attrs["origin"]) == (first.info.run_id, "earlier run")
    assert prior.value == first.data.metrics["val/accuracy"]
    assert new.state.name == "COMPLETE"


@pytest.fixture
def postgres(free_port: int) -> Iterator[Postgres]:
    if reason := missing():
        pytest.skip(reason)
    server = Postgres(free_port)
    yield server
    server.remove()


@pytest.mark.thorough
def test_commands_on_several_machines_share_a_postgresql_that_may_go_away(
    project: Project, postgres: Postgres
) -> None:
    """Two commands of two workers each, as on two machines: each trial is run exactly once."""
    arguments = (
        *("tune", *project.quick, "--epochs", "6", "--sampler", "random", "--pruner", "asha"),
        *("--storage", postgres.url, "--trials", "8", "--workers", "2", "--threads", "2"),
    )
    first = project.start(*arguments)
    log = project.folder / "first"
    (project.folder / "output").rename(log)
    second = project.start(*arguments)
    project.wait_for(
        lambda: "epoch 1/6 " in log.read_text() and "epoch 1/6 " in project.output(), "both to have trials"
    )
    postgres.stop()
    project.wait_for(lambda: "does not answer" in log.read_text() + project.output(), "the outage")
    postgres.start()
    assert (first.wait(timeout=240), second.wait(timeout=240)) == (0, 0), log.read_text() + project.output()
    assert (log.read_text() + project.output()).count("Joining the search of run") == 1

    study = optuna.load_study(study_name=project.images.name, storage=postgres.url)
    assert [trial.number for trial in study.trials] == list(range(8))
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    runs = trials_of(project)
    assert [run.data.tags["optuna.trial"] for run in runs] == [str(number) for number in range(8)]
    assert [trial.user_attrs["run_id"] for trial in study.trials] == [run.info.run_id for run in runs]
    assert not [run for run in project.runs if run.info.status != "FINISHED"]
    trained = log.read_text().count(": complete") + log.read_text().count(": pruned")
    assert 0 < trained < 8  # both took part


@pytest.mark.thorough
def test_the_trial_of_a_lost_machine_is_restarted_by_another(project: Project) -> None:
    project.env["CIFAR_MLFLOW_GRACE"] = "3"
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 2)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    storage = optuna.storages.RDBStorage(f"sqlite:///{project.folder}/optuna.db")
    study_id = storage.get_study_id_from_name(project.images.name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    storage.set_trial_user_attr(trial_id, "host", "elsewhere")
    time.sleep(4)
    project.run(*command(project, "--trials", "2"))

    lost, again, other = study_of(project).trials
    assert (lost.state.name, again.state.name, other.state.name) == ("FAIL", "COMPLETE", "COMPLETE")
    assert again.params == lost.params
    run = project.client.get_run(lost.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["error"]) == (
        "KILLED",
        "its machine was lost; restarted as trial 1",
    )
    assert not [run for run in project.runs if run.info.status == "RUNNING"]


@pytest.mark.thorough
def test_passwords_are_stored_and_printed_nowhere(
    project: Project, postgres: Postgres, request: pytest.FixtureRequest
) -> None:
    """Those of the database, of the tracking server and of a mirror, also after errors."""
    secrets = {name: f"S3cret/{name}@x" for name in ("storage", "mlflow", "mirror")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", project.env["MLFLOW_TRACKING_URI"]),
            *("--artifacts-destination", str(project.folder / "artifacts")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it starts further processes
    )
    request.addfinalizer(lambda: stop_group(server))
    address = f"127.0.0.1:{port}"
    project.wait_for(lambda: is_healthy(address), "MLflow's server")
    cache = project.folder / "cache"
    project.env["CIFAR_MLFLOW_CACHE"] = str(cache)
    project.env["MLFLOW_TRACKING_URI"] = f"http://alice:{quote(secrets['mlflow'], safe='')}@{address}"
    url = postgres.url.replace("tester@", f"tester:{quote(secrets['storage'], safe='')}@")
    mirror = f"https://bob:{secrets['mirror']}@127.0.0.1:9/cifar-10-python.tar.gz"
    arguments = command(project, "--storage", url, "--mirrors", mirror, "--trials", "1")
    process = project.start(*arguments)
    wait_for_epoch(project, 0, 2)
    project.stop(process, signal.SIGINT)
    output = project.output()
    stop_group(server)
    project.env["CIFAR_MLFLOW_PATIENCE"] = "0"
    output += project.run(*arguments, code=1)  # the server is gone
    postgres.stop()
    output += project.run(*arguments, code=1)
    postgres.start()

    study = optuna.load_study(study_name=project.images.name, storage=postgres.url)
    texts = {"output": output, "study": repr([study.user_attrs, *study.trials])}
    for folder in (cache, project.folder):
        texts |= {
            str(path): path.read_bytes().decode(errors="replace")
            for path in folder.rglob("*")
            if path.is_file()
        }
    assert {"command", "mlflow.db"} <= {Path(name).name for name in texts}
    leaks = [
        (name, secret)
        for name, text in texts.items()
        for secret in secrets
        if "S3cret/" + secret in text or "S3cret%2F" + secret in text
    ]
    assert leaks == []


def stop_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_healthy(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/health", timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.thorough
def test_a_search_continues_after_its_folder_was_moved(project: Project, tmp_path: Path) -> None:
    """Database, tracking store and artifacts are in the folder; the checkpoint is in the cache."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (project.folder / "mlflow.db").rename(before / "mlflow.db")
    home = project.folder
    project.folder = before
    del project.env["MLFLOW_TRACKING_URI"]
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 2)
    project.stop(process, signal.SIGINT)
    before.rename(after)
    project.folder = after
    output = project.run(*command(project, "--trials", "2"), code=1)
    assert str(before) in output
    assert not before.exists()

    before.symlink_to(after)  # one of the ways that the error shows
    project.run(*command(project, "--trials", "2"))
    assert "trial 0: continues from its checkpoint" in project.output()
    project.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{after}/mlflow.db"
    assert_nothing_is_lost(project, 2)
    project.folder = home
