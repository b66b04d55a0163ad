"""Kills, signals and outages in the middle of a search: the same command goes on, and nothing is lost."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest

from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.errors import UsageError
from cifar_mlflow.pipeline import resumable_config
from tests.end_to_end.conftest import Project
from tests.end_to_end.postgres import Postgres, missing
from tests.end_to_end.test_interruptions import weights_of
from tests.end_to_end.test_tune import parent_of, study_of, trials_of
from tuning.report import reproduce_command

# Trials long enough to be hit in the middle, whose course depends on nothing but their own settings.
EPOCHS = 40
STEADY = ("--epochs", str(EPOCHS), "--pruner", "none", "--sampler", "random", "--optimizer", "sgd")


def command(project: Project, *arguments: str) -> tuple[str, ...]:
    return ("tune", *project.quick, *STEADY, *arguments)


def workers_of(parent: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers that a search has started."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if _field(path, 3) == str(parent.pid) and b"tuning.worker" in (path.parent / "cmdline").read_bytes()
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
    """Each trial was made once, from its first epoch to its last, and no run is left open."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed", ["all", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("parent", "worker"))]
)
def test_kill_9(project: Project, killed: str) -> None:
    """All: the same command continues each trial. The parent: its worker stops by itself. The worker: the
    parent starts another. In each case the trial goes on in its run, and ends with the very weights of an
    uninterrupted training.
    """
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 5)
    (worker,) = workers_of(process)
    if killed in ("all", "worker"):
        os.kill(worker, signal.SIGKILL)
    if killed in ("all", "parent"):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    project.wait_for(lambda: ended(worker), "the worker to stop")
    if killed == "worker":
        assert process.wait(timeout=240) == 0, project.output()
        assert "was killed (SIGKILL); starting it again" in project.output()
    else:
        (trial,) = trials_of(project)
        assert trial.info.status == ("KILLED" if killed == "parent" else "RUNNING")
        project.run(*command(project, "--trials", "2"))
    assert "trial 0: goes on from its checkpoint" in project.output()
    assert_nothing_is_lost(project, 2)

    if killed == "all":  # once is enough for the long comparison
        settings = study_of(project).trials[0].user_attrs["settings"]
        verb, *options = reproduce_command(settings).split()[1:]
        project.run(verb, *options, "--threads", "1", "--run-name", "uninterrupted")
        (again,) = [run for run in project.runs if run.info.run_name == "uninterrupted"]
        assert again.data.params["lr"] == str(resolve_train_config(settings).lr)
        assert weights_of(project, again.info.run_id) == weights_of(
            project, trials_of(project)[0].info.run_id
        )


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)])
def test_the_printed_command_goes_on(project: Project, signum: int) -> None:
    """After Ctrl-C the search itself prints it, after `kill -9` the next command."""
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 2)
    workers = workers_of(process)
    project.stop(process, signum)
    project.wait_for(lambda: all(map(ended, workers)), "the worker to stop")
    said = project.train() if signum == signal.SIGKILL else project.output()
    printed = {line.partition(" goes on with: ")[2] for line in said.splitlines() if "goes on with" in line}
    (again,) = printed  # the run of the search and that of its trial say the same
    project.run(*shlex.split(again)[1:])
    assert "trial 0: goes on from its checkpoint" in project.output()
    assert_nothing_is_lost(project, 2)


@pytest.mark.slow
@pytest.mark.thorough
def test_one_ctrl_c_saves_and_a_second_stops_at_once(project: Project) -> None:
    process = project.start(*command(project, "--trials", "2", "--workers", "2", "--threads", "2"))
    wait_for_epoch(project, 0, 2)
    wait_for_epoch(project, 1, 2)
    assert project.stop(process, signal.SIGINT) == 130
    output = project.output()
    assert "goes on with: cifar-mlflow tune --study folder" in output
    assert "Traceback" not in output
    assert [run.info.status for run in trials_of(project)] == ["KILLED", "KILLED"]
    assert parent_of(project).info.status == "KILLED"
    run_id = trials_of(project)[0].info.run_id
    with pytest.raises(UsageError, match="is a trial of a study; its study goes on with"):
        resumable_config(run_id, {"cache_dir": project.env["CIFAR_MLFLOW_CACHE"]})

    process = project.start(*command(project, "--trials", "2", "--workers", "2", "--threads", "2"))
    project.wait_for(lambda: project.output().count("goes on from its checkpoint") == 2, "both to go on")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # the two must not become one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in project.output()
    assert not [run for run in project.runs if run.info.status == "RUNNING"]

    project.run(*command(project, "--trials", "2"))  # one worker takes up both
    assert_nothing_is_lost(project, 2)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_trial_that_kills_its_process_again_and_again_is_given_up(project: Project) -> None:
    # Of a study of the same name, whose storage is gone: its trial 0 is none of ours.
    experiment = project.client.create_experiment("cifar10")
    tags = {"optuna.study": "folder", "optuna.trial": "0", "mlflow.parentRunId": "f" * 32}
    other = project.client.create_run(experiment, tags=tags).info.run_id
    process = project.start(*command(project, "--trials", "2", "--batch-size", "1"))

    def begun(times: int) -> bool:
        return project.output().count("trial 0: Run trial-") == times

    for attempt in (1, 2, 3):
        project.wait_for(partial(begun, attempt), f"attempt {attempt}")
        os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(timeout=240) == 0, project.output()
    assert "its process was killed 3 times" in project.output()
    first, second = study_of(project).trials
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert project.client.get_run(other).info.lifecycle_stage == "active"


@pytest.fixture
def postgres(free_port: int) -> Iterator[Postgres]:
    if reason := missing():
        pytest.skip(reason)
    server = Postgres(free_port)
    yield server
    server.remove()


@pytest.mark.slow
def test_commands_on_several_machines_share_a_postgresql_that_may_go_away(
    project: Project, postgres: Postgres
) -> None:
    """Two commands of two workers each, as two machines would; all trials are made, each of them once."""
    arguments = (
        *("tune", *project.quick, "--epochs", "6", "--sampler", "random", "--pruner", "asha"),
        *("--storage", postgres.url, "--trials", "12", "--workers", "2", "--threads", "2"),
    )
    first = project.start(*arguments)
    log = project.folder / "first"
    (project.folder / "output").rename(log)
    second = project.start(*arguments)
    project.wait_for(
        lambda: "epoch 2/6 " in log.read_text() and "epoch 2/6 " in project.output(), "both to have trials"
    )
    postgres.stop()
    project.wait_for(lambda: "does not answer" in log.read_text() + project.output(), "the outage")
    postgres.start()
    assert (first.wait(timeout=240), second.wait(timeout=240)) == (0, 0), log.read_text() + project.output()
    assert (log.read_text() + project.output()).count("Joining the search of run") == 1

    study = optuna.load_study(study_name="folder", storage=postgres.url)
    assert [trial.number for trial in study.trials] == list(range(12))
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    runs = trials_of(project)
    assert [run.data.tags["optuna.trial"] for run in runs] == [str(number) for number in range(12)]
    assert [trial.user_attrs["run_id"] for trial in study.trials] == [run.info.run_id for run in runs]
    assert not [run for run in project.runs if run.info.status != "FINISHED"]
    makers = log.read_text().count(": complete") + log.read_text().count(": pruned")
    assert 0 < makers < 12  # both had a part


@pytest.mark.slow
@pytest.mark.thorough
def test_the_trial_of_a_machine_that_is_lost_is_begun_anew_by_another(project: Project) -> None:
    project.env["CIFAR_MLFLOW_GRACE"] = "3"
    process = project.start(*command(project, "--trials", "2"))
    wait_for_epoch(project, 0, 2)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = study_of(project)
    optuna.Trial(study, study.trials[0]._trial_id).set_user_attr("host", "elsewhere")
    time.sleep(4)
    project.run(*command(project, "--trials", "2"))

    lost, again, other = study_of(project).trials
    assert (lost.state.name, again.state.name, other.state.name) == ("FAIL", "COMPLETE", "COMPLETE")
    assert again.params == lost.params
    run = project.client.get_run(lost.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["error"]) == (
        "KILLED",
        "its machine was lost; begun anew as trial 1",
    )
    assert not [run for run in project.runs if run.info.status == "RUNNING"]
