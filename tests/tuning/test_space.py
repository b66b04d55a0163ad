"""The search space: files as users write them, sampled by real Optuna studies."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, QMCSampler, RandomSampler, TPESampler

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.errors import UsageError
from tuning.space import SEARCHABLE, Space

# Every kind of entry: integer and float ranges, with log and with steps, lists, one value, and conditions on
# conditional settings.
EVERY_KIND = """
replace: true
model: [vgg11, cnn, resnet34]
batch_size: {low: 32, high: 512, log: true}
schedule: linear
crop_padding: {low: 0, high: 6}
cutout: {low: 2, high: 16, step: 2}
warmup: {low: 0.1, high: 0.4, step: 0.1}
lr: {low: 1e-3, high: 0.1, log: true}
width: {low: 0.5, high: 1.5, log: true}
dropout: {low: 0.0, high: 0.5}
optimizer:
  - {values: [sgd, muon], when: {model: cnn}}
  - {values: [sgd, adamw], when: {model: [vgg11]}}
aux_lr: {low: 0.01, high: 1, log: true, when: {optimizer: muon}}
mixup: {values: [0.1, 0.2], when: {optimizer: [sgd, adamw, muon]}}
momentum:
  - {low: 0.5, high: 0.9, when: {optimizer: [sgd, muon], model: cnn}}
  - {values: [0.8, 0.9], when: {optimizer: [sgd], model: vgg11}}
  - {values: 0.95, when: {optimizer: adamw}}
"""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Return a function that reads a text as the file space.yaml."""

    def read_text(text: str) -> Space:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return Space.read(path)

    return read_text


def read_dict(space: Space, folder: Path) -> Space:
    """Return the space after writing it to a file and reading that, as a worker does."""
    path = folder / "written.yaml"
    path.write_text(yaml.safe_dump({**space.to_dict(), "replace": True}, sort_keys=False))
    return Space.read(path)


def ask(space: Space, trials: int, sampler: BaseSampler | None = None) -> list[Any]:
    """Return settings and trial of a number of finished trials."""
    study = optuna.create_study(sampler=sampler or RandomSampler(seed=0))
    asked = []
    for i in range(trials):
        trial = study.ask()
        asked.append((space.suggest(trial), trial))
        study.tell(trial, float(i % 7))
    return asked


def model_dump(chosen: dict[str, Any]) -> dict[str, Any]:
    return resolve_train_config(chosen).model_dump(mode="json")


def test_searchable_settings_are_those_of_model_and_optimization() -> None:
    assert {"model", "width", "flip", "mixup", "optimizer", "lr", "ema"} <= set(SEARCHABLE)
    assert not {"weights", "epochs", "seed", "precision", "val_size", "device", "tta"} & set(SEARCHABLE)


# The default space


@pytest.mark.parametrize("model", ["cnn", "fast", "resnet18", "vgg16"])
def test_the_default_space_contains_the_recipe_of_each_family(model: str) -> None:
    space = Space.default()
    recipe = model_dump({"model": model})

    params = space.params_of(recipe)

    assert params is not None, space.misfit(recipe)
    study = optuna.create_study()
    study.enqueue_trial(params)
    assert model_dump(space.suggest(study.ask())) == recipe


def test_the_default_space_has_all_families_and_optimizers() -> None:
    space = Space.default()
    assert space.models == ["cnn", "fast", "resnet18", "vgg16"]
    assert {"lr.sgd", "lr.adamw", "lr.muon", "aux_lr", "batch_size", "width", "dropout"} <= {
        *space.distributions
    }


def test_the_default_space_can_be_written_and_read(tmp_path: Path) -> None:
    space = Space.default()
    assert read_dict(space, tmp_path) == space
    assert json.loads(json.dumps(space.to_dict())) == space.to_dict()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_suggested_settings_are_valid_and_lead_back_to_the_params(seed: int) -> None:
    space = Space.default()
    for chosen, trial in ask(space, 2, RandomSampler(seed=seed)):
        config = model_dump(chosen)
        assert {name: config[name] for name in chosen} == json.loads(json.dumps(chosen))
        assert space.params_of(config) == trial.params


@pytest.mark.parametrize(
    "make_sampler",
    [
        partial(RandomSampler, seed=0),
        partial(TPESampler, multivariate=True, group=True, n_startup_trials=5, seed=0),
        partial(QMCSampler, scramble=True, seed=0),
        partial(CmaEsSampler, n_startup_trials=5, seed=0),
    ],
    ids=["random", "tpe", "qmc", "cmaes"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_kind_of_entry_gives_settings_that_lead_back_to_the_params(
    make_sampler: Callable[[], BaseSampler], read: Any
) -> None:
    space = read(EVERY_KIND)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # samplers that fall back to independent draws say so

    for chosen, trial in ask(space, 40, make_sampler()):
        config = model_dump(chosen)
        assert {name: config[name] for name in chosen} == json.loads(json.dumps(chosen))
        assert space.params_of(config) == trial.params
        assert all(type(value) in (int, float, str) for value in chosen.values())
        optuna.trial.create_trial(
            params=trial.params,
            distributions={name: space.distributions[name] for name in trial.params},
            value=0.0,
        )


# When a setting applies


def test_each_model_gets_only_its_own_settings() -> None:
    active = {chosen["model"]: set(chosen) for chosen, _ in ask(Space.default(), 60)}
    assert {"width", "dropout"} <= active["cnn"]
    assert "width" in active["fast"]
    assert "dropout" not in active["fast"]
    assert "dropout" in active["vgg16"]
    assert "width" not in active["vgg16"]
    assert not {"width", "dropout"} & active["resnet18"]


def test_each_optimizer_has_its_own_range_and_param(read: Any) -> None:
    space = read(
        """
        lr:
          - {low: 0.1, high: 0.2, when: {optimizer: sgd}}
          - {low: 0.01, high: 0.02, when: {optimizer: [adamw, muon]}}
        """
    )
    for chosen, trial in ask(space, 30):
        if chosen["optimizer"] == "sgd":
            assert chosen["lr"] == trial.params["lr.sgd"]
            assert 0.1 <= chosen["lr"] <= 0.2
        else:
            assert chosen["lr"] == trial.params["lr.adamw+muon"]
            assert 0.01 <= chosen["lr"] <= 0.02


def test_a_setting_without_an_applying_entry_is_left_to_the_recipe(read: Any) -> None:
    space = read("lr: {low: 0.5, high: 0.6, when: {optimizer: sgd}}")
    assert {"lr" in chosen for chosen, _ in ask(space, 20)} == {True, False}
    assert all(("lr" in chosen) == (chosen["optimizer"] == "sgd") for chosen, _ in ask(space, 20))


def test_an_entry_does_not_apply_if_the_setting_it_depends_on_does_not(read: Any) -> None:
    space = read(EVERY_KIND)
    seen = [chosen for chosen, _ in ask(space, 60)]
    resnets = [chosen for chosen in seen if chosen["model"] == "resnet34"]
    assert resnets
    assert not any({"optimizer", "momentum", "aux_lr", "mixup"} & set(chosen) for chosen in resnets)
    assert all("mixup" in chosen for chosen in seen if chosen["model"] != "resnet34")
    assert {chosen["momentum"] for chosen in seen if chosen.get("optimizer") == "adamw"} == {0.95}
    assert {chosen.get("optimizer") for chosen in seen if "aux_lr" in chosen} == {"muon"}


def test_the_order_of_a_file_does_not_matter(read: Any) -> None:
    space = read(EVERY_KIND)
    forms = yaml.safe_load(EVERY_KIND)
    for other_order in (
        yaml.safe_dump(forms),
        yaml.safe_dump(dict(reversed(forms.items())), sort_keys=False),
    ):
        other = read(other_order)
        assert other == space
        for (chosen, _), (chosen_by_other, _) in zip(ask(space, 10), ask(other, 10), strict=True):
            assert list(chosen.items()) == list(chosen_by_other.items())


# Settings that are fixed on the command line


def test_a_fixed_setting_is_not_searched_and_has_its_value_in_every_trial() -> None:
    space = Space.default().fixed({"batch_size": 96, "optimizer": "adamw", "dataset": "sample", "seed": 3})
    assert not {"batch_size", "optimizer", "aux_lr", "dataset", "seed"} & set(space.distributions)
    assert space.distributions["lr"] == Space.default().distributions["lr.adamw"]
    for chosen, trial in ask(space, 5):
        assert chosen["batch_size"] == 96
        assert chosen["optimizer"] == "adamw"
        assert not {"dataset", "seed", "aux_lr"} & set(chosen)
        assert space.params_of(model_dump(chosen)) == trial.params


def test_a_fixed_model_removes_the_settings_that_it_does_not_have() -> None:
    resnet = Space.default().fixed({"model": "resnet50"})
    assert resnet.models == ["resnet50"]
    assert not {"width", "dropout"} & {*resnet.distributions, *resnet.to_dict()}
    assert {"lr.sgd", "lr.muon"} <= set(resnet.distributions)

    cnn = Space.default().fixed({"model": "cnn"})
    assert all({"width", "dropout"} <= set(chosen) for chosen, _ in ask(cnn, 5))


def test_a_fixed_width_applies_to_the_models_that_have_one() -> None:
    space = Space.default().fixed({"width": 0.75})
    asked = [chosen for chosen, _ in ask(space, 30)]
    assert {chosen.get("width") for chosen in asked if chosen["model"] in ("cnn", "fast")} == {0.75}
    assert {chosen.get("width") for chosen in asked if chosen["model"] in ("resnet18", "vgg16")} == {None}


@pytest.mark.parametrize(
    "fixed",
    [{"model": "cnn"}, {"model": "resnet18", "optimizer": "sgd"}, {"width": 1.0}, {"optimizer": "muon"}],
)
def test_a_space_with_fixed_settings_is_the_same_in_another_process(
    fixed: dict[str, Any], tmp_path: Path
) -> None:
    space = Space.default().fixed(fixed)
    again = read_dict(space, tmp_path)
    assert again == space
    assert again.fixed(fixed) == space
    assert [list(chosen) for chosen, _ in ask(again, 5)] == [list(chosen) for chosen, _ in ask(space, 5)]


def test_different_fixed_values_are_different_spaces() -> None:
    space = Space.default()
    assert space.fixed({"batch_size": 64}) != space.fixed({"batch_size": 128})
    assert space.fixed({"batch_size": 64}).to_dict() != space.to_dict()


def test_a_space_without_a_choice_is_refused(read: Any) -> None:
    space = read("{replace: true, model: [cnn, fast], lr: 0.1}")
    with pytest.raises(UsageError, match="nothing is left to search"):
        space.fixed({"model": "cnn"})
    with pytest.raises(UsageError, match=r"space\.yaml: nothing is left to search"):
        read("{replace: true, model: cnn}")


# From settings back to params


def test_settings_outside_of_the_space_have_a_reason(read: Any) -> None:
    space = read("{replace: true, model: [cnn, fast], lr: {low: 0.1, high: 0.2}, ema: 0.9}")
    good = model_dump({"model": "cnn", "lr": 0.1, "ema": 0.9})
    assert space.params_of(good) == {"model": "cnn", "lr": 0.1}
    assert space.misfit(good) is None

    for name, value, reason in [
        ("model", "resnet18", "model is resnet18, but the space has cnn or fast"),
        ("lr", 0.3, "lr is 0.3, but the space has 0.1 to 0.2"),
        ("ema", 0.5, "ema is 0.5, but the space has 0.9"),
    ]:
        assert space.params_of({**good, name: value}) is None
        assert space.misfit({**good, name: value}) == reason


def test_a_value_between_two_steps_is_outside(read: Any) -> None:
    space = read(
        "{replace: true, cutout: {low: 2, high: 8, step: 3}, warmup: {low: 0, high: 0.3, step: 0.1}}"
    )
    assert space.params_of(model_dump({"cutout": 5, "warmup": 0.1})) == {"cutout": 5, "warmup": 0.1}
    assert space.params_of(model_dump({"cutout": 6, "warmup": 0.1})) is None
    assert space.params_of(model_dump({"cutout": 5, "warmup": 0.15})) is None


# Files


def test_a_file_narrows_the_default_space(read: Any) -> None:
    space = read(
        """
        model: [cnn, fast]
        batch_size: 128
        label_smoothing: {low: 0.0, high: 0.1, step: 0.05}
        width: {low: 0.6, high: 0.8, log: true}
        optimizer: [sgd, adamw]
        weight_decay: null
        """
    )
    default = Space.default().distributions
    assert space.models == ["cnn", "fast"]
    assert not {"batch_size", "weight_decay.sgd", "aux_lr", "lr.muon"} & set(space.distributions)
    assert space.distributions["lr.sgd"] == default["lr.sgd"]
    assert space.distributions["cutout"] == default["cutout"]
    for chosen, _ in ask(space, 10):
        assert chosen["batch_size"] == 128
        assert 0.6 <= chosen["width"] <= 0.8
        assert chosen["label_smoothing"] in (0.0, 0.05, 0.1)
        assert "weight_decay" not in chosen


def test_with_replace_nothing_else_is_searched(read: Any) -> None:
    space = read("{replace: true, lr: {low: 1e-4, high: 1e-2, log: true}, momentum: [0.9, 0.95]}")
    assert set(space.distributions) == {"lr", "momentum"}
    assert space.distributions["lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert space.models == [TrainConfig.model_fields["model"].default]


def test_integers_stay_integers(read: Any) -> None:
    space = read("{replace: true, batch_size: {low: 32, high: 1024, log: true}, cutout: [0, 8.0]}")
    for chosen, _ in ask(space, 10):
        assert type(chosen["batch_size"]) is int
        assert type(chosen["cutout"]) is int


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        # names
        ("lrr: 0.1", "unknown setting lrr: did you mean lr?"),
        ("replce: true", "unknown setting replce: did you mean replace?"),
        ("3: 0.1", "unknown setting 3: known: model, width"),
        ("epochs: [10, 20]", "epochs cannot be searched"),
        ("dataset: sample", "dataset cannot be searched"),
        ("replace: maybe", "replace: must be true or false (got 'maybe')"),
        # values
        ("lr: [0.1, 20]", "--lr must be at most 10, not 20"),
        ("model: [cnn, resnet]", "--model must be 'cnn', 'fast'"),
        ("model: [cnn, resnet]", "not resnet"),
        ("batch_size: [64, 0.5]", "--batch-size must be a whole number"),
        ("batch_size: true", "batch_size: must be a finite number (got True)"),
        ("grad_clip: [1, .inf]", "grad_clip: must be a finite number (got inf)"),
        ("lr: [fast]", "--lr must be a number"),
        ("lr: [0.1, {low: 0.2, high: 0.3}]", "--lr must be a number"),
        ("lr: []", "lr: the list of values is empty"),
        ("lr: [0.1, 1e-1]", "lr: 0.1 is listed twice"),
        # ranges
        ("lr: {low: 0.1, high: 20}", "--lr must be at most 10, not 20"),
        ("dropout: {low: -1, high: 0.5}", "--dropout must be at least 0, not -1"),
        ("lr: {low: 0.2, high: 0.1}", "lr: low must be below high (got low 0.2, high 0.1)"),
        ("lr: {low: 0.1, high: 0.1}", "lr: low must be below high"),
        ("ema: {low: 0, high: 0.9, log: true}", "ema: with log, low must be above 0 (got 0.0)"),
        ("cutout: {low: 0, high: 8, log: true}", "cutout: with log, low must be above 0 (got 0)"),
        ("lr: {low: 0.1, high: 0.5, log: sure}", "lr: log must be true or false (got 'sure')"),
        ("lr: {low: 0.1, high: 0.5, log: true, step: 0.1}", "lr: give either log or step"),
        ("cutout: {low: 0, high: 16, step: 3}", "cutout: step must divide the range from 0 to 16 (got 3)"),
        (
            "cutout: {low: 0, high: 16, step: 0.5}",
            "cutout: step must divide the range from 0 to 16 (got 0.5)",
        ),
        ("cutout: {low: 0, high: 16, step: -4}", "cutout: step must divide the range from 0 to 16 (got -4)"),
        ("cutout: {low: 0, high: 16, step: 0}", "cutout: step must divide the range from 0 to 16 (got 0)"),
        ("lr: {low: 0.1, high: 0.5, step: x}", "lr: step must divide the range from 0.1 to 0.5 (got 'x')"),
        ("lr: {low: 0.1}", "lr: high is missing"),
        ("lr: {low: 0.1, hihg: 0.5}", "lr: unknown key hihg: did you mean high?"),
        ("lr: {min: 0.1, max: 0.5}", "lr: unknown key min: known: low, high, log, step, values, when"),
        ("lr: {values: [0.1, 0.2], low: 0.1}", "lr: give either values or a range"),
        ("model: {low: 1, high: 2}", "model: it cannot have a range"),
        # conditions
        ("lr: {low: 0.1, high: 0.5, when: {optimiser: sgd}}", "lr: when: unknown setting optimiser: did you"),
        ("lr: {low: 0.1, high: 0.5, when: {optimizer: lion}}", "lr: when: --optimizer must be 'sgd'"),
        ("lr: {low: 0.1, high: 0.5, when: {optimizer: []}}", "lr: when: optimizer: the list of values is"),
        ("lr: {low: 0.1, high: 0.5, when: sgd}", "lr: when must map settings to values"),
        ("lr: {low: 0.1, high: 0.5, when: {}}", "lr: when must map settings to values"),
        ("lr: {low: 0.1, high: 0.5, when: {mixup: 0.2}}", "lr: it applies if mixup is 0.2, but the space"),
        ("lr: {low: 0.1, high: 0.5, when: {momentum: 0.9}}", "lr: it depends on momentum, which is a range"),
        ("{replace: true, width: {low: 0.5, high: 1}}", "width: it applies if model is cnn or fast, but"),
        ("optimizer: null", "but the space has no optimizer"),
        (
            "{model: [resnet18, vgg16], width: [0.5, 1]}",
            "width: its condition, model is cnn or fast, is never met in this space",
        ),
        (
            "width: {values: [0.5, 1], when: {model: vgg16}}",
            "width: only cnn, fast have this setting (got when: model",
        ),
        (
            "{optimizer: [sgd, adamw], lr: {values: [0.1, 0.2], when: {optimizer: muon}}}",
            "lr: its condition, optimizer is muon, is never met in this space",
        ),
        ("lr: [{low: 0.1, high: 0.2}, {low: 0.3, high: 0.4}]", "lr: two entries apply to the same trial"),
        (
            "lr: [{values: 0.1, when: {optimizer: [sgd, muon]}}, {values: 0.2, when: {optimizer: [muon]}}]",
            "lr: two entries apply to the same trial",
        ),
        (
            "lr: [{values: 0.1, when: {optimizer: sgd}}, {values: 0.2, when: {model: cnn}}]",
            "lr: two entries apply to the same trial",
        ),
        (
            "{model: {values: [cnn, fast], when: {optimizer: sgd}}, "
            "optimizer: {values: [sgd, muon], when: {model: cnn}}}",
            "its condition depends on itself",
        ),
        (
            "optimizer: {values: [sgd, muon], when: {optimizer: sgd}}",
            "optimizer: its condition depends on itself",
        ),
        # YAML
        ("lr: {low: 0.1, high: 0.5}\nlr: 0.1", "lr: given twice"),
        ("lr: {low: 0.1, low: 0.2, high: 0.5}", "low: given twice"),
        ("", "must map settings to values (got None)"),
        ("- lr\n- width", "must map settings to values (got ['lr', 'width'])"),
        ("lr: {low: 0.1", "is not YAML"),
        ("lr: !!python/object:os.system x", "is not YAML"),
    ],
)
def test_a_mistake_in_a_file_is_reported_in_one_line(text: str, complaint: str, read: Any) -> None:
    with pytest.raises(UsageError) as raised:
        read(text)
    message = str(raised.value)
    assert complaint in message
    assert "space.yaml: " in message
    assert "\n" not in message


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read: No such file"):
        Space.read(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Space.read(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match=r"image\.yaml: is not YAML"):
        Space.read(tmp_path / "image.yaml")


CHOICES = {
    "model": ["cnn", "fast", "resnet18", "vgg16"],
    "optimizer": ["sgd", "adamw", "muon"],
    "flip": ["none", "random", "alternating"],
    "schedule": ["linear", "cosine"],
}


def some_of(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Generate spaces of valid entries whose conditions may contradict each other."""

    def range_or_values() -> dict[str, Any]:
        numbers = draw(st.lists(st.sampled_from([0.25, 0.3, 0.55, 0.9]), min_size=2, max_size=2, unique=True))
        low, high = sorted(numbers)
        kinds: list[dict[str, Any]] = [{}, {"log": True}, {"step": 0.05}]
        return draw(st.sampled_from([{"values": numbers}, *({"low": low, "high": high, **k} for k in kinds)]))

    def when(max_size: int) -> dict[str, Any]:
        names = draw(st.lists(st.sampled_from(list(CHOICES)), max_size=max_size, unique=True))
        conditions = {name: draw(some_of(CHOICES[name])) for name in names}
        return {"when": conditions} if conditions else {}

    forms: dict[str, Any] = {"replace": draw(st.sampled_from([True, True, False]))}
    for name, values in CHOICES.items():
        forms[name] = [
            {"values": draw(some_of(values)), **when(max_size=draw(st.sampled_from([0, 0, 0, 1])))}
        ]
    for name in draw(some_of(["width", "dropout", "mixup", "lr", "aux_lr", "warmup"])):
        forms[name] = [
            {**range_or_values(), **when(max_size=2)} for _ in range(draw(st.sampled_from([1, 1, 2])))
        ]
    return forms


@settings(max_examples=100)
@given(forms=spaces())
def test_conditions_make_a_valid_space_or_are_refused(
    forms: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(forms))
    try:
        space = Space.read(path)
    except UsageError as error:
        event(str(error).split(": ", 2)[2][:20])
        return
    event("a space")
    assert read_dict(space, path.parent) == space
    for chosen, trial in ask(space, 3):
        assert space.params_of(model_dump(chosen)) == trial.params
        for name in forms.keys() & chosen.keys() - {"model"}:
            assert any(
                all(chosen.get(other) in values for other, values in form.get("when", {}).items())
                for form in forms[name]
            )


# The grid


def test_a_grid_has_all_combinations(read: Any) -> None:
    space = read(
        """
        replace: true
        model: [cnn, fast]
        optimizer: sgd
        lr: [0.05, 0.1]
        warmup: {low: 0.1, high: 0.3, step: 0.1}
        cutout: {low: 0, high: 8, step: 8}
        width: {values: [0.5, 1], when: {optimizer: sgd}}
        aux_lr: 0.3
        """
    )
    grid = space.grid()
    assert grid == {
        "model": ["cnn", "fast"],
        "lr": [0.05, 0.1],
        "warmup": [0.1, 0.2, 0.3],
        "cutout": [0, 8],
        "width": [0.5, 1.0],
    }
    study = optuna.create_study(sampler=GridSampler(grid))
    study.optimize(lambda trial: float(len(space.suggest(trial))), n_trials=100)
    assert len({tuple(trial.params.items()) for trial in study.trials}) == len(study.trials) == 48
    for trial in study.trials:
        assert set(trial.params) == set(grid)


def test_a_grid_of_ranges_or_conditions_is_refused_with_a_remedy(read: Any) -> None:
    with pytest.raises(UsageError) as raised:
        read("{replace: true, model: [cnn, vgg16], lr: {low: 0.1, high: 0.5}, width: [0.5, 1]}").grid()
    message = str(raised.value)
    assert "lr is any number from 0.1 to 0.5" in message
    assert "width applies only if model is cnn" in message
    assert "--space" in message

    with pytest.raises(UsageError, match="batch_size is any number from 32 to 512"):
        read("{replace: true, batch_size: {low: 32, high: 512, log: true}}").grid()
