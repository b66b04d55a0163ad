import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_mlflow.config import DataConfig, SplitName
from cifar_mlflow.data.dataset import ImageDataset, Split
from cifar_mlflow.data.split import image_ids, stratified_split, train_val_indices
from cifar_mlflow.errors import UsageError


def dataset(*train: int, set_aside: tuple[int, ...] = ()) -> ImageDataset:
    """Return a data set with these numbers of training images for the classes a, b, c, ..."""
    labels = np.repeat(np.arange(len(train)), train)

    def load(name: SplitName) -> Split:
        assert name == "train"
        return Split(np.zeros((len(labels), 32, 32, 3), np.uint8), labels)

    return ImageDataset("letters", tuple("abcdefgh"[: len(train)]), 32, "0" * 64, load, set_aside)


@given(
    counts=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    val_size=st.floats(0.01, 0.5),
    seed=st.integers(0, 1000),
)
def test_each_class_is_divided_in_the_same_proportion(counts: list[int], val_size: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, val = stratified_split(labels, val_size, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for label, count in enumerate(counts):
        held_out = int((labels[val] == label).sum())
        assert 1 <= held_out < count
        assert abs(held_out - count * val_size) <= 1


def test_the_split_depends_only_on_the_seed() -> None:
    labels = np.repeat(np.arange(10), 500)
    first, again, other = (stratified_split(labels, 0.1, seed)[1] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    # The indices themselves: another split would make earlier results incomparable.
    assert first[:5].tolist() == [2, 5, 15, 41, 54]


def test_the_settings_decide_how_the_training_images_are_divided() -> None:
    data = dataset(500, 500)
    config = DataConfig(val_size=0.2, split_seed=3)
    for part, expected in zip(
        train_val_indices(data, config), stratified_split(data.split("train").labels, 0.2, 3), strict=True
    ):
        np.testing.assert_array_equal(part, expected)


def test_images_without_names_are_identified_by_their_index() -> None:
    data, config = dataset(50, 50), DataConfig(val_size=0.2)
    train, val = (image_ids(data, config, split) for split in ("train", "val"))
    assert train.name == val.name == "index"
    assert sorted([*train, *val]) == list(range(100))
    # The index leads to the image: each class has ten in validation.
    assert np.bincount(data.split("train").labels[val]).tolist() == [10, 10]


def test_val_size_zero_holds_out_nothing() -> None:
    train, val = train_val_indices(dataset(1, 2), DataConfig(val_size=0))
    assert train.tolist() == [0, 1, 2]
    assert val.tolist() == []


def test_classes_with_one_image_are_named_with_a_hint() -> None:
    with pytest.raises(
        UsageError, match=r"class b has 1 image, class d has 1 image\. .*all of them with --val-size 0$"
    ):
        train_val_indices(dataset(3, 1, 2, 1), DataConfig(val_size=0.1))


def test_images_that_were_set_aside_for_the_test_are_counted() -> None:
    with pytest.raises(UsageError, match=r"class b has 2 images \(1 of them in the test split\)"):
        train_val_indices(dataset(3, 1, set_aside=(1, 1)), DataConfig(val_size=0.1))
