"""A search as a user runs it: its results in MLflow, the data that it reads, and its options."""

import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from mlflow.entities import Run

from cifar_mlflow.cli import main
from tests.end_to_end.conftest import Project, open_project

# Trials that take a second: few epochs of a narrow network.
FEW = ("--epochs", "3", "--pruner", "asha")


def search(project: Project, *arguments: str, code: int = 0) -> str:
    return project.invoke("tune", *project.quick, *FEW, *arguments, code=code)


def parent_of(project: Project) -> Run:
    (run,) = [run for run in project.runs if run.data.tags["kind"] == "search"]
    return run


def trials_of(project: Project) -> list[Run]:
    """Return the nested runs, in order of their trials."""
    parent = parent_of(project).info.run_id
    runs = [run for run in project.runs if run.data.tags.get("mlflow.parentRunId") == parent]
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial"]))


def study_of(project: Project, name: str | None = None) -> optuna.Study:
    return optuna.load_study(
        study_name=name or project.images.name, storage=f"sqlite:///{project.folder}/optuna.db"
    )


@pytest.fixture(scope="module")
def untestable(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Return images whose test split is damaged: reading it is an error."""
    root = tmp_path_factory.mktemp("untestable")
    shutil.copytree(images, root / "train")
    for name in ("blue", "green", "red"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "damaged.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, untestable: Path, empty_store: Path, shared_cache: Path
) -> Iterator[tuple[Project, str]]:
    """Search 5 trials with two workers, on images with a damaged test split; yield project and output."""
    folder = tmp_path_factory.mktemp("searched")
    with open_project(folder, untestable, empty_store, shared_cache) as project:
        yield project, search(project, "--trials", "5", "--workers", "2", "--threads", "2")


@pytest.mark.slow
def test_a_search_never_reads_the_test_split(searched: tuple[Project, str]) -> None:
    project, _ = searched
    assert len(trials_of(project)) == 5
    assert not any(name.startswith("test/") for run in trials_of(project) for name in run.data.metrics)
    output = project.train(code=1)  # a training reads the test split and so finds the damage
    assert "damaged.png" in output


@pytest.mark.slow
def test_each_trial_is_a_run_below_the_study_with_what_a_training_has(searched: tuple[Project, str]) -> None:
    project, _ = searched
    parent, trials = parent_of(project), trials_of(project)
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["optuna.trial"] for run in trials] == [str(number) for number in range(5)]
    for run, trial in zip(trials, study_of(project).trials, strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.tags["optuna.state"] == trial.state.name
        assert (run.data.tags["optuna.sampler"], run.data.tags["optuna.pruner"]) == ("tpe", "asha")
        assert trial.user_attrs["run_id"] == run.info.run_id
        for name, value in trial.params.items():
            assert run.data.params[name.partition(".")[0]] == str(value)
        epochs = [m.value for m in project.client.get_metric_history(run.info.run_id, "val/accuracy")]
        assert len(trial.intermediate_values) == run.data.metrics["epochs"] <= len(epochs)
        assert project.artifacts(run.info.run_id) >= {
            "learning_curves.png",
            "val/confusion_matrix.png",
            "history.csv",
            "weights/model.safetensors",
        }
    assert {trial.state.name for trial in study_of(project).trials} <= {"COMPLETE", "PRUNED"}


@pytest.mark.slow
def test_the_run_of_the_study_has_its_results(searched: tuple[Project, str]) -> None:
    project, output = searched
    parent, study = parent_of(project), study_of(project)
    best = study.best_trial
    assert parent.data.tags["best.run_id"] == best.user_attrs["run_id"]
    assert float(parent.data.tags["best.value"]) == best.value
    assert parent.data.params["sampler"] == "tpe"
    points = project.client.get_metric_history(parent.info.run_id, "best/val/accuracy")
    assert {point.step for point in points} == {*range(5)}  # a curve, with a point for each trial
    table = pd.read_csv(project.client.download_artifacts(parent.info.run_id, "search/trials.csv"))
    assert len(table) == 5
    assert project.artifacts(parent.info.run_id) >= {
        "search/history.png",
        "search/study.html",
        "search/space.yaml",
        "data/samples.png",
    }
    assert "5 of 5 trials done, best " in output
    phases = (
        "Loading the libraries",
        "Opening the study",
        "Training the trials",
        "Drawing the plots of the ",
    )
    assert all(f" {phase}" in output for phase in phases)
    again = f"cifar-mlflow train --settings-of {best.user_attrs['run_id']}"
    assert f"{again}\n" in output
    assert "trial 0: cnn " in output  # the settings of the trial
    assert "the same command with --trials 10, the new total" in output
    assert parent.data.tags["trials"] == "5"
    assert f"{again} --epochs 9\n" in output
    assert f"cifar-mlflow register {best.user_attrs['run_id']} --promote" in output
    printed = project.invoke(*again.split()[1:], "--epochs", "7", "--print-config")
    settings = yaml.safe_load(printed)
    expected = {**best.user_attrs["settings"], "epochs": 7, "threads": 0, "test": True}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.slow
def test_the_first_trial_is_the_recipe(searched: tuple[Project, str]) -> None:
    project, _ = searched
    first = study_of(project).trials[0]
    assert first.user_attrs["origin"] == "recipe of cnn"
    assert (first.params["lr.muon"], first.params["label_smoothing"]) == (0.1, 0.2)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_same_command_does_nothing_and_more_trials_continue_the_study(
    searched: tuple[Project, str],
) -> None:
    project, _ = searched
    before = [run.info.run_id for run in trials_of(project)]
    assert "already has 5 trials" in search(project, "--trials", "5")
    output = search(project, "--trials", "6", "--retrain-best", code=1)  # which reads the test split
    assert "damaged.png" in output
    after = [run.info.run_id for run in trials_of(project) if "retrained" not in run.data.tags]
    assert after[:5] == before
    assert len(after) == 6
    assert not [run for run in project.runs if run.info.status == "RUNNING"]


@pytest.mark.slow
def test_a_study_is_not_continued_with_other_settings(
    searched: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = searched
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.env["MLFLOW_TRACKING_URI"])
    for different in (("--epochs", "4"), ("--sampler", "random"), ("--crop-padding", "2")):
        result = CliRunner().invoke(main, ["tune", *project.quick, *FEW, *different])
        assert result.exit_code == 2
        assert "has other settings" in result.output
        assert different[0][2:].replace("-", "_") in result.output


@pytest.mark.slow
@pytest.mark.thorough
def test_warm_start_enqueue_space_and_retrain_best(project: Project) -> None:
    """Prior runs count as trials, an enqueued run comes first, and the best trial is retrained and tested."""
    earlier = ("--label-smoothing", "0.1", "--dropout", "0.3", "--optimizer", "adamw", "--lr", "0.004")
    project.train(*earlier)
    project.train("--val-size", "0.2")  # another split: not comparable
    (other, run) = project.runs
    project.folder.joinpath("space.yaml").write_text(
        "model: cnn\n"
        "optimizer: [muon, adamw]\n"
        "lr:\n"
        "  - {low: 0.01, high: 0.2, log: true, when: {optimizer: muon}}\n"
        "  - {low: 0.001, high: 0.01, log: true, when: {optimizer: adamw}}\n"
        "dropout: {low: 0.0, high: 0.5}\n"
        "label_smoothing: [0.1, 0.2]\n"
        "replace: true\n"
    )
    output = search(
        project,
        *("--space", "space.yaml", "--warm-start", project.images.name, "--enqueue", run.info.run_id),
        *("--trials", "2", "--pruner", "none", "--sampler", "random", "--study", "warm"),
        *("--retrain-best", "--retrain-seeds", "2", "--serve-precision", "fp32"),
    )
    study = study_of(project, "warm")
    past, recipe, enqueued = study.trials
    assert past.user_attrs["run_id"] == run.info.run_id
    assert (past.user_attrs["origin"], past.value) == ("earlier run", run.data.metrics["val/accuracy"])
    assert recipe.user_attrs["origin"] == "recipe of cnn"
    assert enqueued.user_attrs["origin"] == f"run {run.info.run_id}"
    assert enqueued.params == past.params
    assert enqueued.params == {
        "optimizer": "adamw", "lr.adamw": 0.004, "dropout": 0.3, "label_smoothing": 0.1,
    }  # fmt: skip
    assert other.info.run_id not in output

    parent = parent_of(project)
    retrained = [run for run in project.runs if "retrained" in run.data.tags]
    assert [run.data.params["seed"] for run in reversed(retrained)] == ["0", "1"]
    for run in retrained:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["validation"] == "none: trained on all images"
        assert "test/accuracy" in run.data.metrics
    accuracies = [run.data.metrics["test/accuracy"] for run in retrained]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert "test/accuracy_std" in parent.data.metrics
    shown = re.findall(r"^Run retrain-\S+-seed-(\d) \((\w+)\)\n  test  accuracy \d", output, re.M)
    assert shown == [(run.data.params["seed"], run.info.run_id) for run in reversed(retrained)], output
    assert output.endswith(f" cifar-mlflow export {shown[0][1]} --format onnx --output exported\n")
    assert f"cifar-mlflow register {shown[0][1]} --serve-precision fp32 --promote\n" in output
    assert "What next, for trial" not in output

    search(  # the same again: nothing is done twice
        project,
        *("--space", "space.yaml", "--trials", "2", "--pruner", "none", "--sampler", "random"),
        *("--study", "warm", "--retrain-best", "--retrain-seeds", "2"),
    )
    assert len([run for run in project.runs if "retrained" in run.data.tags]) == 2


@pytest.mark.thorough
@pytest.mark.slow
def test_the_result_of_two_objectives_is_a_pareto_front(project: Project) -> None:
    output = search(
        project,
        *("--pruner", "none", "--second-objective", "latency", "--epochs-budget", "6", "--sampler", "qmc"),
    )
    trials = trials_of(project)
    assert len(trials) == 2  # of three epochs each
    for run, trial in zip(trials, study_of(project).trials, strict=True):
        assert trial.values == [run.data.metrics["val/accuracy"], run.data.metrics["latency_ms"]]
        assert trial.values[1] > 0
    assert "search/pareto_front.png" in project.artifacts(parent_of(project).info.run_id)
    assert "latency_ms" in output


def grid_of_learning_rates(project: Project, values: str) -> tuple[str, ...]:
    """Return arguments of a search with one trial per value, of which high ones diverge."""
    project.folder.joinpath("space.yaml").write_text(f"lr: {values}\nreplace: true\n")
    diverging = (
        "--optimizer",
        "sgd",
        "--momentum",
        "0.99",
        "--warmup",
        "0",
        "--schedule",
        "constant",
        "--epochs",
        "12",
    )
    return ("--sampler", "grid", "--space", "space.yaml", "--pruner", "none", *diverging)


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_fails_with_the_reason(project: Project) -> None:
    output = search(project, *grid_of_learning_rates(project, "[9.0, 10.0]"), code=1)
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert line.startswith("Error: all 2 trials failed; most frequent reason (")
    parent = parent_of(project)
    assert parent.info.status == "FAILED"
    assert line.removeprefix("Error: ").startswith(parent.data.tags["error"].rstrip("…"))
    assert parent.data.tags["trials.failed"] == "2"
    assert line in search(project, *grid_of_learning_rates(project, "[9.0, 10.0]"), code=1)  # nothing left


@pytest.mark.slow
def test_a_loss_that_becomes_nan_fails_only_its_trial(project: Project) -> None:
    search(project, *grid_of_learning_rates(project, "[0.05, 10.0]"))
    states = {trial.params["lr"]: trial.state.name for trial in study_of(project).trials}
    assert states == {0.05: "COMPLETE", 10.0: "FAIL"}
    (failed,) = [run for run in trials_of(project) if run.data.tags["optuna.state"] == "FAIL"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"].startswith("the ")
    assert parent_of(project).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.thorough
def test_a_network_too_large_for_the_memory_fails_only_its_trial(project: Project) -> None:
    project.folder.joinpath("space.yaml").write_text("model: cnn\nwidth: [0.25, 4.0]\nreplace: true\n")
    large = ("--image-size", "256", "--batch-size", "96", "--epochs", "1", "--threads", "1")
    images = ("--dataset", "folder", "--data-dir", str(project.images))
    process = project.start(
        *("tune", *images, *large, "--sampler", "grid", "--space", "space.yaml", "--pruner", "none"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (9 * 2**30, 9 * 2**30)),
    )
    assert process.wait(timeout=240) == 0, project.output()
    small, wide = sorted(study_of(project).trials, key=lambda trial: trial.params["width"])
    assert (small.state.name, wide.state.name) == ("COMPLETE", "FAIL")
    assert "memory" in wide.user_attrs["error"]
    assert "Traceback" not in project.output()
    run = project.client.get_run(wide.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["optuna.state"]) == ("FAILED", "FAIL")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--sampler", "annealing"), "sampler"),
        (("--trials", "0"), "--trials must be at least 1, not 0"),
        (("--storage", "nowhere"), "--storage: nowhere is not a database URL"),
        (("--space", "missing.yaml"), "missing.yaml"),
        (("--second-objective", "latency", "--pruner", "asha"), "--pruner none"),
        (("--sampler", "cmaes", "--pruner", "hyperband"), "cmaes"),
        (("--sampler", "grid"), "grid"),
        (("--val-size", "0"), "val_size"),
        (("--enqueue", "f" * 32), "enqueue"),
        (("--warm-start", "nothing"), "--warm-start: there is no experiment 'nothing'"),
        (
            ("--storage", "postgresql+psycopg://u:secret@127.0.0.1:9/x"),
            "--storage postgresql+psycopg://u:***@",
        ),
    ],
)
def test_a_wrong_search_is_refused_before_the_first_trial(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, ["tune", "--dataset", "folder", "--data-dir", str(images), *arguments], catch_exceptions=False
    )
    assert result.exit_code in (1, 2)
    assert complaint in result.output
    assert "secret" not in result.output


@pytest.mark.slow
def test_the_best_trial_of_a_search_is_promoted_if_it_is_better(
    project: Project,
) -> None:
    output = search(project, "--trials", "1", "--promote", "--serve-precision", "fp32")
    name = project.images.name
    assert f"Registered version 1 of {name}" in output
    champion = project.client.get_model_version_by_alias(name, "champion")
    assert champion.run_id == parent_of(project).data.tags["best.run_id"]
    assert champion.tags["precision"] == "fp32"
