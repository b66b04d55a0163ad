"""Optimizers: their groups, the steps of Muon, and exact resumption."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.training.optimizers import SGD, AdamW, Muon, build_optimizers, orthogonalize

RATES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "muon": {"optimizer": "muon", "lr": 0.1, "aux_lr": 0.1, "momentum": 0.6},
}
optimizers = pytest.mark.parametrize("optimizer", list(RATES))


def config_for(optimizer: str, **settings: Any) -> TrainConfig:
    return resolve_train_config({"model": "cnn", "dataset": "sample", **RATES[optimizer], **settings})


def small_classifier(model: Any = "cnn", width: float = 0.25) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(build_network(model, 10, width), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """Return 256 images of the sample in 0..1, and their labels."""
    train = load_dataset(config_for("sgd")).split("train")
    images = torch.tensor(train.images[:256]).permute(0, 3, 1, 2) / 255
    return images, torch.tensor(train.labels[:256])


def train_step(
    classifier: ImageClassifier, steps: list[torch.optim.Optimizer], batch: tuple[Tensor, Tensor]
) -> float:
    classifier.zero_grad()
    loss = F.cross_entropy(classifier(batch[0]), batch[1])
    loss.backward()
    for optimizer in steps:
        optimizer.step()
    return loss.item()


def test_layers_learn_faster_towards_the_last_one() -> None:
    network = build_network("cnn", 10)
    (adamw,) = build_optimizers(network, config_for("adamw", layer_decay=0.01))
    rate_of = {p: group["lr"] for group in adamw.param_groups for p in group["params"]}
    rates = [rate_of[p] for p in network.parameters()]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.002 * 0.01)
    assert rates[-1] == adamw.param_groups[0]["lr"] == 0.002  # the first group's is logged
    for group in adamw.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize(
    ("ours", "torchs", "settings"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (AdamW, torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.999), "weight_decay": 0.01}),
    ],
)
def test_optimizers_without_the_compiler_equal_those_of_torch(
    ours: type[torch.optim.Optimizer], torchs: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    """They skip torch's decorators; this fails if a release of torch gives the decorators a meaning."""
    trained = []
    for optimizer_class in (ours, torchs):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        optimizer = optimizer_class([parameter], **settings)
        for step in range(5):
            optimizer.zero_grad()
            (parameter**2 * (step + 1)).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        trained.append((parameter.detach(), optimizer.state_dict()["param_groups"]))
    assert torch.equal(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]


@optimizers
@pytest.mark.parametrize("model", ["cnn", "fast"])
def test_each_trainable_parameter_is_in_one_group(optimizer: str, model: str) -> None:
    classifier = small_classifier(model)
    groups = [g for o in build_optimizers(classifier, config_for(optimizer)) for g in o.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in classifier.parameters() if p.requires_grad)


@optimizers
def test_norms_and_biases_are_not_decayed(optimizer: str) -> None:
    classifier = small_classifier()
    names = {id(p): name for name, p in classifier.named_parameters()}
    decayed = {
        names[id(parameter)]
        for o in build_optimizers(classifier, config_for(optimizer, weight_decay=0.1))
        for group in o.param_groups
        if group.get("weight_decay", 0) > 0
        for parameter in group["params"]
    }
    weights = {name for name, p in classifier.named_parameters() if p.ndim > 1}
    # Muon holds the norm of its filters fixed, which leaves the head to be decayed.
    assert decayed == ({"network.head.weight"} if optimizer == "muon" else weights)


@optimizers
def test_groups_keep_their_peak_rate(optimizer: str) -> None:
    config = config_for(optimizer)
    peaks = {g["initial_lr"] for o in build_optimizers(small_classifier(), config) for g in o.param_groups}
    beside_muon = {config.aux_lr, config.bias_lr * config.batch_size}
    assert peaks == ({config.lr, *beside_muon} if optimizer == "muon" else {config.lr})


@optimizers
@pytest.mark.slow
def test_loss_on_photos_falls(optimizer: str, photos: tuple[Tensor, Tensor]) -> None:
    classifier = small_classifier()
    steps = build_optimizers(classifier, config_for(optimizer))
    losses = [train_step(classifier, steps, photos) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


@optimizers
def test_a_restored_optimizer_continues_bit_for_bit(optimizer: str, photos: tuple[Tensor, Tensor]) -> None:
    config = config_for(optimizer)
    straight = small_classifier()
    steps = build_optimizers(straight, config)
    for _ in range(2):
        train_step(straight, steps, photos)
    resumed = small_classifier()
    resumed.load_state_dict(straight.state_dict())
    resumed_steps = build_optimizers(resumed, config)
    for mine, theirs in zip(resumed_steps, steps, strict=True):
        mine.load_state_dict(copy.deepcopy(theirs.state_dict()))  # as from a file: nothing shared
    for _ in range(2):
        train_step(straight, steps, photos)
        train_step(resumed, resumed_steps, photos)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(3, 64, 576), (1, 256, 64)])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int, int]) -> None:
    steps = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), iterations=5)
    values = torch.linalg.svdvals(steps)
    assert steps.shape == shape
    assert values.max() < 1.3
    assert values.min() > 0.6


def test_orthogonalized_keeps_the_singular_directions() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    step = orthogonalize(matrix[None], iterations=5)[0]
    alignment = (u.T @ step @ vh.T).diagonal()
    assert alignment.min() > 0.6
    torch.testing.assert_close(u.T @ step @ vh.T, torch.diag(alignment), atol=0.05, rtol=0)


def test_muon_moves_filters_by_an_orthogonal_step_and_fixes_their_norm() -> None:
    filters = torch.nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2)))
    normed = filters.detach() * (8**0.5 / filters.detach().norm())
    filters.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    Muon([filters], lr=0.1, momentum=0.6).step()
    values = torch.linalg.svdvals((filters.detach() - normed).flatten(1) / 0.1)
    assert values.max() < 1.3
    assert values.min() > 0.5
