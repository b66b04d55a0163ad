import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.errors import UsageError


@given(
    counts=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    val_size=st.floats(0.01, 0.5),
    seed=st.integers(0, 1000),
)
def test_each_class_is_divided_in_the_same_proportion(counts: list[int], val_size: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, val = train_val_indices(labels, val_size, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for label, count in enumerate(counts):
        held_out = int((labels[val] == label).sum())
        assert 1 <= held_out < count
        assert abs(held_out - count * val_size) <= 1


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(10), 500)
    first, again, other = (train_val_indices(labels, 0.1, seed)[1] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    # The numbers themselves: a split that moves makes earlier results incomparable.
    assert first[:5].tolist() == [2, 5, 15, 41, 54]


def test_nothing_is_held_out_for_zero() -> None:
    train, val = train_val_indices(np.array([0, 1, 1]), 0, seed=0)
    assert train.tolist() == [0, 1, 2]
    assert val.tolist() == []


def test_a_class_with_one_image_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="class 1 has one image"):
        train_val_indices(np.array([0, 0, 1]), 0.1, seed=0)
