"""The tables, plots, HTML report and tags in the run of a search, and the leaderboard in the terminal."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from mlflow.entities import Run
from optuna.trial import TrialState, create_trial
from PIL import Image

from cifar_mlflow.cli import main
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.names import counted
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.store import connect
from tests.tuning.studies import ONE, RUNNING, TWO, WAITING, make_study, search, trial
from tuning.report import leaderboard, log_study, reproduce_command, snapshot, trials_table
from tuning.results import best_trials


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(autouse=True)
def _one_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")


def logged(study: optuna.Study, folder: Path) -> tuple[Run, Path]:
    """Return the MLflow run of a study after its end, and a folder with its artifacts below `search/`."""
    connect("searches")
    with tracked_run(kind="search", name="made up", cache_dir=folder) as (run, _):
        log_study(run, snapshot(study))
    mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="search", dst_path=str(folder))
    return mlflow.MlflowClient().get_run(run.run_id), folder / "search"


class Page(HTMLParser):
    """The text of an HTML file, and the addresses that it would request."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.requests += [str(value) for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data + "\n"


def files_of(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


TABLES = {"trials.csv", "study.html"}
ALWAYS = TABLES | {"best.json", "history.png"}
PLOTS_OF_ONE = {f"{name}.png" for name in ("slices", "parallel_coordinates", "importances")}


def test_the_run_of_a_search_has_its_tables_and_plots(tmp_path: Path) -> None:
    study = make_study([*search(40), RUNNING, WAITING])
    run, folder = logged(study, tmp_path)
    assert files_of(folder) == ALWAYS | PLOTS_OF_ONE | {"intermediate_values.png"}
    for file in folder.glob("*.png"):
        picture = np.asarray(Image.open(file).convert("L"))
        assert picture.shape[1] >= 900
        assert picture.std() > 10

    best = study.best_trial
    facts = json.loads((folder / "best.json").read_text())
    assert facts["values"] == {"val/accuracy": best.value}
    assert (facts["params"], facts["run_id"]) == (best.params, best.user_attrs["run_id"])
    assert facts["command"] == reproduce_command(best.user_attrs["settings"])
    assert facts["settings"] == best.user_attrs["settings"]
    assert "pareto_front" not in facts

    table = pd.read_csv(folder / "trials.csv")
    assert len(table) == 42
    states = table["state"].value_counts().to_dict()
    assert (states["running"], states["waiting"]) == (1, 1)

    tags = run.data.tags
    for name in ("complete", "pruned", "failed"):
        assert tags[f"trials.{name}"] == str(states[name])
    assert (tags["best.trial"], tags["best.run_id"]) == (str(best.number), best.user_attrs["run_id"])
    assert (float(tags["best.value"]), float(tags["best.lr.sgd"])) == (best.value, best.params["lr.sgd"])
    note = tags["mlflow.note.content"]
    (command,) = re.findall(r"```\n(.*?)\n```", note, re.DOTALL)
    assert shlex.split(command.replace("\\\n", "")) == shlex.split(facts["command"])
    assert max(map(len, command.split("\n"))) <= 90  # a wider one hides the values of MLflow's page
    assert best.user_attrs["run_id"] in note
    in_table = re.findall(r"^\| (\d+)", note, re.MULTILINE)
    assert in_table == [str(t.number) for t in best_trials(study, 5)]
    assert "`lr.sgd`: 0.005 to 0.5 (log)" in note
    assert "`model`: cnn, resnet18" in note

    metrics = run.data.metrics
    assert (metrics["best/val/accuracy"], metrics["trials"]) == (best.value, 42)
    assert metrics["epochs"] == table["epochs"].sum()
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "best/val/accuracy")
    assert [metric.step for metric in history] == [39]  # the last finished trial


@pytest.mark.slow
def test_the_html_report_is_complete_and_makes_no_network_requests(tmp_path: Path) -> None:
    study = make_study([*search(40), RUNNING])
    _, folder = logged(study, tmp_path)
    page = Page(folder / "study.html")
    assert page.requests == []
    assert not {"link", "iframe", "img", "object", "b"} & {*page.tags}
    source = (folder / "study.html").read_text()
    assert source.count("Plotly.newPlot(") == 5
    assert source.count("plotly.js v") == 1
    assert source.count('"showSendToCloud": false') == 5
    best = study.best_trial
    for text in (
        best.user_attrs["run_id"],
        reproduce_command(best.user_attrs["settings"]),
        "the loss became <b>NaN</b>",
        "Pareto front: needs two objectives.",
        "validation split",
    ):
        assert text in page.text


NO_TRIAL = "needs a complete trial; there is none."


@pytest.mark.parametrize(
    "objectives", [ONE, pytest.param(TWO, marks=pytest.mark.slow)], ids=["one objective", "two objectives"]
)
@pytest.mark.parametrize(
    ("states", "expected", "reason"),
    [
        ([], TABLES, f"History: {NO_TRIAL}"),
        ([TrialState.RUNNING, TrialState.WAITING], TABLES, f"History: {NO_TRIAL}"),
        ([TrialState.FAIL] * 3, TABLES, "Value by parameter: needs 5 complete trials; there is none."),
        ([TrialState.COMPLETE], ALWAYS, "Parallel coordinates: needs 5 complete trials; there is one."),
        (
            [TrialState.COMPLETE] * 20,
            ALWAYS,
            "Importance of the parameters: needs 15 complete or pruned trials that are not all equally good.",
        ),
    ],
    ids=["empty", "just started", "all failed", "one trial", "all equal"],
)
def test_charts_that_need_more_trials_are_left_out_and_the_report_says_why(
    states: list[TrialState], expected: set[str], reason: str, objectives: tuple[str, ...], tmp_path: Path
) -> None:
    values = (0.5, 3.0)[: len(objectives)]
    study = make_study(
        [trial(state, values if state == TrialState.COMPLETE else None) for state in states], objectives
    )
    run, folder = logged(study, tmp_path)
    if len(objectives) == 2 and len(states) == 20:
        expected = expected | {"pareto_front.png"}
    assert files_of(folder) == expected
    assert reason in Page(folder / "study.html").text
    assert ("best.value" in run.data.tags) == ("best.json" in expected)
    assert run.data.metrics["trials"] == len(states)
    assert counted(len(states), "trial") in leaderboard(study)


def test_trials_without_attributes_are_shown(tmp_path: Path) -> None:
    bare = create_trial(state=TrialState.FAIL)
    study = make_study([bare, trial(values=(0.5,)), create_trial(value=0.6)])
    run, folder = logged(study, tmp_path)
    assert (run.data.tags["trials.failed"], run.data.tags["best.trial"]) == ("1", "2")
    assert trials_table(study).loc[0, ["run_id", "epochs", "error", "lr.sgd"]].isna().all()
    assert json.loads((folder / "best.json").read_text())["command"] is None
    assert leaderboard(study).count("cifar-mlflow train") == 1


@pytest.mark.slow
def test_with_two_objectives_the_pareto_front_is_the_result(tmp_path: Path) -> None:
    study = make_study(
        [
            trial(values=(0.6, 1.0), epochs=9, run_id="cheap"),
            trial(values=(0.5, 2.0), run_id="beaten"),
            trial(TrialState.FAIL, run_id="failed"),
            trial(values=(0.8, 3.5), epochs=9, run_id="good", params={"model": "cnn", "width": 1.25}),
            trial(values=(0.7, 2.0), run_id="between"),
        ],
        TWO,
    )
    front = ["good", "between", "cheap"]
    assert [t.user_attrs["run_id"] for t in best_trials(study, 10)] == front
    assert [t.user_attrs["run_id"] for t in best_trials(study, 2)] == front[:2]
    text = leaderboard(study)
    assert [text.index(name) for name in front] == sorted(text.index(name) for name in front)
    assert "beaten" not in text
    run, folder = logged(study, tmp_path)
    assert "pareto_front.png" in files_of(folder)
    assert run.data.tags["best.run_id"] == "good"
    assert (run.data.metrics["best/val/accuracy"], run.data.metrics["best/latency_ms"]) == (0.8, 3.5)
    facts = json.loads((folder / "best.json").read_text())
    assert [each["run_id"] for each in facts["pareto_front"]] == front


def test_a_pruned_trial_has_no_value_in_the_table() -> None:
    """Optuna's value of a pruned trial is its last report."""
    study = make_study([trial(TrialState.PRUNED, (0.99,), curve=(0.99,)), trial(values=(0.5,))])
    assert trials_table(study)["val/accuracy"].isna().tolist() == [True, False]


def test_integers_in_the_table_stay_integers_although_some_trials_lack_them(tmp_path: Path) -> None:
    study = make_study(
        [
            trial(values=(0.5,), params={"cutout": 8}, epochs=3, seconds=1.5),
            trial(values=(0.6,), params={"mixup": 0.25}),
        ]
    )
    _, folder = logged(study, tmp_path)
    assert (folder / "trials.csv").read_text().splitlines() == [
        "number,state,val/accuracy,epochs,seconds,run_id,origin,error,cutout,mixup",
        "0,complete,0.5,3,1.5,,sampler,,8,",
        "1,complete,0.6,,,,sampler,,,0.25",
    ]


def test_prior_runs_are_shown_but_not_counted_as_trials(tmp_path: Path) -> None:
    earlier = trial(values=(0.9,), epochs=100, origin="earlier run", run_id="from before")
    study = make_study([earlier, trial(values=(0.5,), epochs=9), trial(values=(0.6,), epochs=9)])
    run, _ = logged(study, tmp_path)
    assert (run.data.metrics["trials"], run.data.metrics["epochs"]) == (2, 18)
    assert run.data.tags["trials.complete"] == "2"
    assert run.data.tags["best.run_id"] == "from before"
    assert "2 trials (2 complete), and 1 earlier run." in leaderboard(study)


def test_epochs_of_an_interrupted_trial_count(tmp_path: Path) -> None:
    study = make_study([trial(TrialState.RUNNING, curve=(0.1, 0.2)), trial(values=(0.5,), epochs=9)])
    assert logged(study, tmp_path)[0].data.metrics["epochs"] == 11


def test_a_new_best_trial_replaces_all_tags_of_the_previous_one(tmp_path: Path) -> None:
    study = make_study([trial(values=(0.5,), params={"model": "cnn", "width": 1.25})])
    connect("searches")
    with tracked_run(kind="search", name="made up", cache_dir=tmp_path) as (run, _):
        log_study(run, snapshot(study))
        study.add_trial(trial(values=(0.6,), params={"model": "resnet18", "lr.sgd": 0.1}))
        log_study(run, snapshot(study))
    tags = mlflow.MlflowClient().get_run(run.run_id).data.tags
    assert (tags["best.model"], tags["best.width"], tags["best.lr.sgd"]) == ("resnet18", "not set", "0.1")


def test_a_tag_replaces_characters_of_a_parameter_that_mlflow_does_not_allow(tmp_path: Path) -> None:
    study = make_study([trial(values=(0.5,), params={"weight_decay.model=cnn+fast,optimizer=sgd": 1.25})])
    tags = logged(study, tmp_path)[0].data.tags
    assert tags["best.weight_decay.model_cnn_fast_optimizer_sgd"] == "1.25"


def test_the_leaderboard_ranks_trials_and_has_a_command_for_each_that_fits() -> None:
    long = "weight_decay.model=cnn+fast,optimizer=sgd"
    wide = trial(
        values=(0.99,), params={"model": "cnn", "lr.sgd": 0.0123, "mixup": 0.123, long: 1.25}, run_id="a"
    )
    study = make_study([*search(40), wide])
    lines = leaderboard(study, 3).splitlines()
    best = best_trials(study, 3)
    assert lines[0].startswith("Search made up: 41 trials (")
    rows = [line.split() for line in lines if line.split()[-1:] and line.split()[0].isdigit()]
    assert [row[:2] for row in rows] == [[str(rank), str(t.number)] for rank, t in enumerate(best, 1)]
    assert [row[2] for row in rows] == [f"{t.value:.4f}" for t in best]
    commands = [line.partition(": ")[2] for line in lines if "cifar-mlflow train" in line]
    assert commands == [f"cifar-mlflow train --settings-of {t.user_attrs['run_id']}" for t in best]
    assert max(map(len, lines)) <= 80


def test_the_table_in_mlflow_has_only_hyperparameters_that_differ(tmp_path: Path) -> None:
    trials = [trial(values=(i / 10,), params={"model": "cnn", "mixup": i / 4}, epochs=3) for i in (1, 2)]
    note = logged(make_study(trials), tmp_path)[0].data.tags["mlflow.note.content"]
    text = re.sub(r"\s*\|\s*", " | ", note)
    assert "| trial | val/accuracy | hyperparameters |" in text
    assert "| 1 | 0.2000 | mixup=0.5 |" in text
    assert "The same in these trials: model=cnn." in text


def test_the_recipe_is_named_if_it_is_the_best(tmp_path: Path) -> None:
    study = make_study([trial(values=(0.6,), origin="recipe of cnn", run_id="a"), trial(values=(0.5,))])
    run, folder = logged(study, tmp_path)
    text = "0 (recipe of cnn)"
    assert text in leaderboard(study)
    assert f"trial {text}, run `a`" in run.data.tags["mlflow.note.content"]
    assert text in Page(folder / "study.html").text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "cnn", "lr": 0.1 + 0.2, "weight_decay": 1.0000000000000002e-07, "batch_size": 64},
        {"lr": "0.030", "dataset": "sample", "recipe": "demo", "seed": 4294967295},
        {"deterministic": True, "test": False, "data_dir": "/a folder/it's $HOME", "run_name": "-x; rm *"},
        {"mirrors": ["https://a/x?y=1&z", 'https://b/"q"'], "run_name": None, "weights": None},
        {"recipe": "finetune", "data_dir": "/photos", "weights": None},
        {"model": "vgg16", "dropout": 0.1, "label_smoothing": 0.05, "flip": "alternating", "epochs": 3},
    ],
    ids=["nothing", "floats", "texts", "odd paths", "lists and nothing", "no weights", "a trial"],
)
def test_the_command_of_a_trial_gives_exactly_its_settings(settings: dict[str, Any]) -> None:
    program, *arguments = shlex.split(reproduce_command(settings))
    result = CliRunner().invoke(main, [*arguments, "--print-config"])
    assert (program, result.exit_code) == ("cifar-mlflow", 0), result.output
    printed = yaml.safe_load(result.output)
    expected = resolve_train_config(settings).model_dump(mode="json")
    assert {name: printed[name] for name in expected} == expected


def test_the_command_of_a_trial_does_not_depend_on_the_order_of_its_settings() -> None:
    settings = {"lr": 0.03, "deterministic": True, "batch_size": 64, "model": "cnn"}
    command = "cifar-mlflow train --model cnn --batch-size 64 --deterministic true --lr 0.03"
    assert reproduce_command(settings) == reproduce_command(dict(reversed(settings.items()))) == command
