"""Networks of torchvision and timm (`torchvision/NAME`, `timm/NAME`), and their ImageNet weights.

Their stem is the original one, for photos of about 224 pixels. Both libraries take seconds to import, so they
are imported where they are used.
"""

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.extras import install_command

# Per channel (R, G, B), for pixels in 0..1: normalization of the ImageNet weights of torchvision.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SECONDS_FOR_HUB = 10  # to answer whether it has a network


def build_backbone(name: str, num_classes: int) -> nn.Module:
    """Return a newly initialized network.

    Raises:
        UsageError: see `check_backbone`.
    """
    library, _, model = name.partition("/")
    network: nn.Module
    if library == "timm":
        check_backbone(name)
        network = _timm().create_model(model, num_classes=num_classes)
    else:
        from torchvision.models import get_model

        network = get_model(model, num_classes=num_classes)
    return network


def check_backbone(name: str) -> None:
    """Check that there is a network of this name; those of torchvision are listed in the config.

    Raises:
        UsageError: timm is not installed, or has no such model.
    """
    library, _, model = name.partition("/")
    if library == "timm" and not _timm().is_model(model):
        close = difflib.get_close_matches(model, _timm().list_models())
        hint = f"did you mean {' or '.join(f'timm/{other}' for other in close)}?" if close else "see its docs"
        raise UsageError(f"--model: timm has no {model}: {hint}")


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise UsageError(f"models of timm need the extra: {install_command('timm')}") from None
    module: ModuleType = timm
    return module


def normalization(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, (R, G, B), with which the pretraining images were normalized."""
    config = _timm_config(network)
    return tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))


def check_image_size(network: nn.Module, size: int) -> None:
    """Check the size of the images for networks that take only one, as many transformers do.

    Raises:
        UsageError: the network takes another size.
    """
    config = _timm_config(network)
    side = config["input_size"][-1] if config.get("fixed_input_size") else size
    if side != size:
        raise UsageError(f"--image-size: this model takes images of {side} pixels (got {size})")


def _timm_config(network: nn.Module) -> dict[str, Any]:
    """Return how timm describes the weights of one of its networks; empty for other networks."""
    return dict(getattr(network, "pretrained_cfg", {}))


def imagenet_weights(name: str) -> Mapping[str, Tensor]:
    """Return the `state_dict` of a network for the 1,000 classes of ImageNet.

    torchvision downloads the file once to TORCH_HOME and checks its hash; timm has the cache of the
    Hugging Face Hub.

    Raises:
        UsageError: timm has no ImageNet weights of this network.
        CifarError: the download failed, or the file is damaged.
    """
    library, _, model = name.partition("/")
    if library == "timm":
        return _timm_weights(name)
    from torchvision.models import get_model_weights

    weights = get_model_weights(model)["DEFAULT"]
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
        if file.exists():
            raise CifarError(f"{file}: the file is damaged; delete it ({first_line(error)})") from error
        raise _no_download(name, f"{weights.url} ({first_line(error)})") from error
    return state


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    model = name.partition("/")[2]
    check_backbone(name)
    if not _timm().is_model_pretrained(model):
        raise UsageError(f"--weights: timm has no ImageNet weights of {model}: give --weights FILE or none")
    repository = _timm().get_pretrained_cfg(model).hf_hub_id
    try:
        source = {"file": file} if (file := _in_cache_of_hub(repository)) else {}
        network = _timm().create_model(model, pretrained=True, pretrained_cfg_overlay=source)
    except Exception as error:  # timm and the Hub's client raise errors of any kind
        place = f"https://huggingface.co/{repository}"
        raise _no_download(name, f"{place} ({first_line(error)})") from error
    state: Mapping[str, Tensor] = network.state_dict()
    return state


def _in_cache_of_hub(repository: str | None) -> str | None:
    """Return the file with the weights if an earlier download left it; else check that the Hub answers.

    Without network, timm's own download would be repeated for a minute, also for a file in the cache.
    """
    if repository is None:  # the weights are on another server
        return None
    from huggingface_hub import HfApi, try_to_load_from_cache

    file = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(file, str):
        return file
    HfApi().model_info(repository, timeout=SECONDS_FOR_HUB)
    return None


def _no_download(name: str, place: str) -> CifarError:
    return CifarError(
        f"the ImageNet weights of {name} cannot be downloaded from {place}: download them on a machine with "
        "network, and give the file with --weights FILE; or train without them, for example with "
        "--dataset folder --data-dir DIR --image-size 64 and no --recipe"
    )


def stages(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the features of a backbone, from the first on."""
    if described := getattr(network, "feature_info", None):  # timm
        return [network.get_submodule(stage["module"]) for stage in described]
    children = dict(network.named_children())
    return [*children.get("features", network).children()]
