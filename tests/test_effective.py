"""The settings that a run shows as params, and its default name."""

from typing import Any

import pytest

from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.effective import default_run_name, effective_settings


@pytest.mark.parametrize(
    ("given", "idle", "effective"),
    [
        (
            {"optimizer": "sgd"},
            {"aux_lr", "bias_lr", "width", "dropout", "image_size", "cache_dir", "experiment"},
            {"mirrors", "lr"},
        ),
        ({"recipe": "fast"}, {"dropout", "weights", "data_dir"}, {"aux_lr", "width", "tta"}),
        ({"dataset": "sample", "data_dir": "/x"}, {"mirrors", "data_dir"}, {"val_size", "split_seed"}),
        ({"dataset": "folder", "data_dir": "/x"}, {"mirrors"}, {"data_dir", "image_size"}),
        ({"val_size": 0, "test": False}, {"split_seed", "patience", "tta"}, {"val_size", "test"}),
    ],
)
def test_settings_without_an_effect_are_left_out(
    given: dict[str, Any], idle: set[str], effective: set[str]
) -> None:
    shown = effective_settings(resolve_train_config(given)).keys()
    assert shown >= effective
    assert not shown & idle


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"model": "cnn"}, "cnn on photos"),
        ({"model": "cnn", "seed": "3", "threads": 1, "run_name": None}, "cnn seed=3 on photos"),
        ({"model": "cnn", "lr": 0.02, "deterministic": True}, "cnn deterministic=true lr=0.02 on photos"),
        ({"recipe": "demo", "dataset": "sample"}, "fast recipe=demo on photos"),
        ({"recipe": "fast", "dataset": "sample", "epochs": 3}, "fast epochs=3 on photos"),
        ({"model": "resnet18", "weights": "/models/photos.h5"}, "resnet18 weights=photos.h5 on photos"),
        (
            {"model": "vgg16", "recipe": "fast", "small_images": 0},
            "vgg16 recipe=fast small_images=0 on photos",
        ),
    ],
)
def test_the_name_says_what_was_changed_from_the_recipe(given: dict[str, Any], name: str) -> None:
    assert default_run_name(resolve_train_config(given), "photos") == name


def test_a_long_name_counts_the_changes_that_it_leaves_out() -> None:
    changed = {"lr": 0.02, "momentum": 0.8, "weight_decay": 1e-3, "cutout": 8, "mixup": 0.2, "ema": 0.9}
    name = default_run_name(resolve_train_config({"model": "cnn", **changed}), "photos")
    assert len(name) <= 75
    assert name.startswith("cnn ")
    assert name.endswith(" more on photos")


def test_a_long_name_of_the_data_leaves_room_for_the_changes() -> None:
    config = resolve_train_config({"model": "cnn", "lr": 0.02, "epochs": 1})
    name = default_run_name(config, "a_very_long_folder_name_of_a_photo_collection")
    assert name == "cnn epochs=1 lr=0.02 on a_very_long_folder_name…"
