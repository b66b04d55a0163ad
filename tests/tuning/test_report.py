"""What a search shows: tables, pictures, page and tags of its run, and the leaderboard of the terminal."""

import json
import math
import shlex
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
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image

from cifar_mlflow.cli import main
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.tracking.run import connect, tracked_run

from tuning.report import leaderboard, log_study, reproduce_command, trials_table
from tuning.results import best_trials

EPOCHS = 9
SPACE: dict[str, BaseDistribution] = {
    "model": CategoricalDistribution(["cnn", "resnet18"]),
    "width": FloatDistribution(0.5, 1.5, log=True),  # of cnn only
    "lr.sgd": FloatDistribution(0.005, 0.5, log=True),
    "cutout": IntDistribution(0, 16, step=4),
    "mixup": FloatDistribution(0, 1),
}
ONE = ("val/accuracy",)
TWO = ("val/accuracy", "latency_ms")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _one_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds to make a new database."""
    monkeypatch.chdir(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")


def make_study(trials: list[FrozenTrial], objectives: tuple[str, ...] = ONE) -> optuna.Study:
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(objectives)]
    study = optuna.create_study(study_name="made up", directions=directions)
    study.set_user_attr("objectives", list(objectives))
    study.add_trials(trials)
    return study


def trial(
    state: TrialState = TrialState.COMPLETE,
    values: tuple[float, ...] | None = None,
    params: dict[str, Any] | None = None,
    curve: tuple[float, ...] = (),
    **attrs: Any,
) -> FrozenTrial:
    params = {"model": "resnet18", "lr.sgd": 0.05} if params is None else params
    settings = {"dataset": "sample", "epochs": EPOCHS} | {
        name.split(".")[0]: value for name, value in params.items()
    }
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={"settings": settings, "origin": "sampler", **attrs},
    )


def search(count: int) -> list[FrozenTrial]:
    """Accuracy depends on the learning rate alone; bad trials are pruned, and a high rate diverges."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        params: dict[str, Any] = {
            "model": ["cnn", "resnet18"][rng.integers(2)],
            "lr.sgd": float(10 ** rng.uniform(-2.3, -0.31)),
            "cutout": int(4 * rng.integers(5)),
            "mixup": float(rng.uniform()),
        }
        if params["model"] == "cnn":
            params["width"] = float(rng.uniform(0.5, 1.5))
        attrs: dict[str, Any] = {"run_id": f"{number:032x}", "seconds": 12.5}
        accuracy = 0.9 - 0.3 * abs(math.log10(params["lr.sgd"] / 0.05))
        curve = tuple(accuracy * (1 - 0.7**epoch) for epoch in range(1, EPOCHS + 1))
        if params["lr.sgd"] > 0.4:
            attrs["error"] = "the loss became <b>NaN</b>"
            trials.append(trial(TrialState.FAIL, None, params, (0.1,), epochs=1, **attrs))
        elif accuracy < 0.8:
            trials.append(trial(TrialState.PRUNED, (curve[2],), params, curve[:3], epochs=3, **attrs))
        else:
            trials.append(trial(TrialState.COMPLETE, (accuracy,), params, curve, epochs=EPOCHS, **attrs))
    return trials


RUNNING = trial(TrialState.RUNNING, None, {"model": "cnn"}, run_id="f" * 32)
WAITING = create_trial(state=TrialState.WAITING, user_attrs={"origin": "recipe cnn"})


def logged(study: optuna.Study, folder: Path) -> tuple[Run, Path]:
    """The MLflow run of a study after its end, and a folder with what is below `search/`."""
    connect("searches")
    with tracked_run(kind="search", name="made up", cache_dir=folder) as (run, _):
        log_study(run, study)
    mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="search", dst_path=str(folder))
    return mlflow.MlflowClient().get_run(run.run_id), folder / "search"


class Page(HTMLParser):
    """What a page says, and what it would ask the network for."""

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
PICTURES_OF_ONE = {f"{name}.png" for name in ("slices", "parallel_coordinates", "importances")}


def test_the_run_of_a_search_holds_its_tables_and_pictures(tmp_path: Path) -> None:
    study = make_study([*search(40), RUNNING, WAITING])
    run, folder = logged(study, tmp_path)
    assert files_of(folder) == ALWAYS | PICTURES_OF_ONE | {"intermediate_values.png"}
    for file in folder.glob("*.png"):
        picture = np.asarray(Image.open(file).convert("L"))
        assert picture.shape[1] == 900
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
    assert facts["command"] in note
    assert all(t.user_attrs["run_id"] in note for t in best_trials(study, 5))
    assert best_trials(study, 6)[5].user_attrs["run_id"] not in note
    assert "`lr.sgd`: 0.005 to 0.5 (log)" in note
    assert "`model`: cnn, resnet18" in note

    metrics = run.data.metrics
    assert (metrics["best/val/accuracy"], metrics["trials"]) == (best.value, 42)
    assert metrics["epochs"] == table["epochs"].sum()
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "best/val/accuracy")
    assert [metric.step for metric in history] == [40]


def test_the_page_is_one_file_that_says_everything_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one objective", "two objectives"])
@pytest.mark.parametrize(
    ("states", "expected", "reason"),
    [
        ([], TABLES, f"History: {NO_TRIAL}"),
        ([TrialState.RUNNING, TrialState.WAITING], TABLES, f"History: {NO_TRIAL}"),
        ([TrialState.FAIL] * 3, TABLES, "Value by parameter: needs two complete trials; there is none."),
        ([TrialState.COMPLETE], ALWAYS, "Parallel coordinates: needs two complete trials; there is one."),
        (
            [TrialState.COMPLETE] * 20,
            ALWAYS | {"slices.png", "parallel_coordinates.png"},
            "Importance of the parameters: needs 15 complete or pruned trials that are not all equally good.",
        ),
    ],
    ids=["empty", "just begun", "all failed", "one trial", "all equal"],
)
def test_what_needs_more_trials_is_left_out_and_the_page_says_so(
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
    assert f"{len(states)} trials" in leaderboard(study)


def test_trials_that_noted_nothing_about_themselves_are_shown_as_well(tmp_path: Path) -> None:
    bare = create_trial(state=TrialState.FAIL)
    study = make_study([bare, trial(values=(0.5,)), create_trial(value=0.6)])
    run, folder = logged(study, tmp_path)
    assert (run.data.tags["trials.failed"], run.data.tags["best.trial"]) == ("1", "2")
    assert trials_table(study).loc[0, ["run_id", "epochs", "error", "lr.sgd"]].isna().all()
    assert json.loads((folder / "best.json").read_text())["command"] is None
    assert leaderboard(study).count("cifar-mlflow train") == 1


def test_of_two_objectives_the_pareto_front_is_the_result(tmp_path: Path) -> None:
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


def test_only_complete_trials_can_be_the_best() -> None:
    pruned = trial(TrialState.PRUNED, (0.99,), curve=(0.99,))
    study = make_study(
        [
            pruned,
            trial(values=(0.5,)),
            trial(TrialState.FAIL),
            trial(values=(0.7,)),
            trial(values=(0.7,)),
            RUNNING,
        ]
    )
    assert [t.number for t in best_trials(study, 10)] == [3, 4, 1]
    assert [t.number for t in best_trials(study, 1)] == [3]
    table = trials_table(study)
    assert table["val/accuracy"].idxmax() == 3
    assert table.loc[0, "state"] == "pruned"


def test_the_table_of_trials_keeps_whole_numbers_whole_where_a_parameter_is_missing(tmp_path: Path) -> None:
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


def test_importance_finds_what_matters_also_where_most_bad_trials_were_pruned() -> None:
    study = make_study(search(60))
    shares = importances(study)
    assert next(iter(shares)) == "lr.sgd"
    assert shares["lr.sgd"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert "width" in shares
    complete = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    assert importances(make_study(complete)).get("lr.sgd", 0) < shares["lr.sgd"]


def test_importances_are_the_same_each_time() -> None:
    study = make_study(search(60))
    assert [*importances(study).items()] == [*importances(make_study(search(60))).items()]


def test_a_parameter_that_few_trials_have_is_not_judged() -> None:
    with_mixup = [trial(values=(0.9 + i / 100,), params={"cutout": 4, "mixup": 0.5}) for i in range(4)]
    others = [trial(values=(i / 100,), params={"cutout": 8}) for i in range(20)]
    assert [*importances(make_study(with_mixup + others))] == ["cutout"]


def test_runs_from_before_the_study_are_shown_but_not_counted_as_its_work(tmp_path: Path) -> None:
    earlier = trial(values=(0.9,), epochs=100, origin="earlier run", run_id="from before")
    study = make_study([earlier, trial(values=(0.5,), epochs=9), trial(values=(0.6,), epochs=9)])
    run, _ = logged(study, tmp_path)
    assert (run.data.metrics["trials"], run.data.metrics["epochs"]) == (2, 18)
    assert run.data.tags["trials.complete"] == "2"
    assert run.data.tags["best.run_id"] == "from before"
    assert "2 trials (2 complete), and 1 earlier runs" in leaderboard(study)


def test_epochs_of_a_trial_that_was_interrupted_count(tmp_path: Path) -> None:
    study = make_study([trial(TrialState.RUNNING, curve=(0.1, 0.2)), trial(values=(0.5,), epochs=9)])
    assert logged(study, tmp_path)[0].data.metrics["epochs"] == 11


def test_a_new_best_trial_leaves_nothing_of_the_former_one_in_the_tags(tmp_path: Path) -> None:
    study = make_study([trial(values=(0.5,), params={"model": "cnn", "width": 1.25})])
    connect("searches")
    with tracked_run(kind="search", name="made up", cache_dir=tmp_path) as (run, _):
        log_study(run, study)
        study.add_trial(trial(values=(0.6,), params={"model": "resnet18", "lr.sgd": 0.1}))
        log_study(run, study)
    tags = mlflow.MlflowClient().get_run(run.run_id).data.tags
    assert (tags["best.model"], tags["best.width"], tags["best.lr.sgd"]) == ("resnet18", "not set", "0.1")


def test_a_parameter_may_have_a_name_that_mlflow_does_not_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "width.model=cnn+fast,optimizer=sgd"
    monkeypatch.setitem(SPACE, name, FloatDistribution(0.5, 1.5))
    study = make_study([trial(values=(0.5,), params={name: 1.25})])
    tags = logged(study, tmp_path)[0].data.tags
    assert tags["best.width.model_cnn_fast_optimizer_sgd"] == "1.25"


def test_trials_that_learned_nothing_do_not_press_the_others_together() -> None:
    accuracies = [0.1, 0.80, 0.81, 0.82, 0.83, 0.84]
    axes = history(make_study([trial(values=(accuracy,)) for accuracy in accuracies])).axes[0]
    low, high = axes.get_ylim()
    assert high - low < 0.2
    drawn = {
        str(line.get_label()): np.asarray(line.get_xydata())
        for line in axes.lines
        if np.size(line.get_xydata())
    }
    assert drawn["complete"].tolist() == [[number, accuracies[number]] for number in range(1, 6)]
    ((number, height),) = drawn["complete, lower than shown"]
    assert number == 0
    assert low < height < 0.8


def test_a_picture_tells_apart_how_trials_ended() -> None:
    study = make_study([*search(40), trial(TrialState.RUNNING, curve=(0.3, 0.4))])
    table = trials_table(study)
    for figure in (history(study), intermediate_values(study)):
        assert "validation split" in figure.get_suptitle()
    strip = history(study).axes[1]
    counts = table["state"].value_counts()
    labels = [label.get_text() for label in strip.get_yticklabels()]
    assert labels == [f"{state} ({counts[state]})" for state in ("pruned", "failed", "running")]
    endings = {
        line.get_label(): (line.get_marker(), line.get_color())
        for line in intermediate_values(study).axes[0].lines
    }
    assert endings[f"pruned ({counts['pruned']})"][0] == "x"
    assert len({color for _, color in endings.values()}) == len(endings) == 5


def test_the_leaderboard_ranks_trials_and_tells_how_to_do_each_again() -> None:
    study = make_study(search(40))
    lines = leaderboard(study, 3).splitlines()
    best = best_trials(study, 3)
    assert lines[0].startswith("Search made up: 40 trials (")
    rows = [line.split() for line in lines if line.split()[-1:] and len(line.split()[-1]) == 32]
    assert [row[:2] for row in rows] == [[str(rank), str(t.number)] for rank, t in enumerate(best, 1)]
    assert [row[2] for row in rows] == [f"{t.value:.4f}" for t in best]
    commands = [line.partition(": ")[2] for line in lines if "cifar-mlflow train" in line]
    assert commands == [reproduce_command(t.user_attrs["settings"]) for t in best]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "cnn", "lr": 0.1 + 0.2, "weight_decay": 1.0000000000000002e-07, "batch_size": 64},
        {"lr": "0.030", "dataset": "sample", "recipe": "demo", "seed": 4294967295},
        {"deterministic": True, "test": False, "data_dir": "/a folder/it's $HOME", "run_name": "-x; rm *"},
        {"mirrors": ["https://a/x?y=1&z", 'https://b/"q"'], "run_name": None, "weights": None},
        {"model": "vgg16", "dropout": 0.1, "label_smoothing": 0.05, "flip": "alternating", "epochs": 3},
    ],
    ids=["nothing", "floats", "texts", "switches and odd paths", "lists and nothing", "a trial"],
)
def test_the_command_to_reproduce_gives_exactly_the_same_settings(settings: dict[str, Any]) -> None:
    program, *arguments = shlex.split(reproduce_command(settings))
    result = CliRunner().invoke(main, [*arguments, "--print-config"])
    assert (program, result.exit_code) == ("cifar-mlflow", 0), result.output
    printed = yaml.safe_load(result.output)
    expected = resolve_train_config(settings).model_dump(mode="json")
    assert {name: printed[name] for name in expected} == expected


def test_the_command_to_reproduce_does_not_depend_on_the_order_of_the_settings() -> None:
    settings = {"lr": 0.03, "deterministic": True, "batch_size": 64, "model": "cnn"}
    command = "cifar-mlflow train --model cnn --batch-size 64 --deterministic true --lr 0.03"
    assert reproduce_command(settings) == reproduce_command(dict(reversed(settings.items()))) == command
