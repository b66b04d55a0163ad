"""The contents of a training's run beside its metrics: settings, data, figures, weights, exported network."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from mlflow.entities import Dataset

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.data import ImageDataset, Selection, Split
from cifar_mlflow.data.summary import summarize
from cifar_mlflow.effective import effective_settings
from cifar_mlflow.environment import commit_link, library_versions
from cifar_mlflow.markdown import markdown_table
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.names import counted, listed
from cifar_mlflow.redact import redact
from cifar_mlflow.tracking.datasets import dataset_entities
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.training.device import Hardware
from cifar_mlflow.training.distributed import World

PROGRAM_NAME = "model"  # part of its address, runs:/<run id>/model
SHOWN_CLASSES = 30
HEADLINES = ("accuracy", "f1_macro", "loss", "ece")


def log_start(
    run: TrackedRun,
    config: TrainConfig,
    dataset: ImageDataset,
    val_split: Split,
    hardware: Hardware,
    world: World,
) -> None:
    """Log all that is known before the first step: settings, code, machine, processes, data."""
    run.log_params(effective_settings(config))
    run.log_text(redact(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)), "config.yaml")
    if world.size > 1:
        run.log_params({"world_size": world.size, "ranks": world.machines})
    run.log_environment(f"{hardware.name}, {hardware.precision}")
    run.set_tags(
        {
            "validation": f"{len(val_split):,} images held out"
            if len(val_split)
            else "none: trained on all images",
        }
    )
    if dataset.extra_images:
        run.set_tags(
            {"extra_images": f"{counted(dataset.extra_images, 'training image')} of {config.extra_dir}"}
        )
    run.log_datasets(datasets_of_training(dataset, config, with_validation=len(val_split) > 0))


def datasets_of_training(
    dataset: ImageDataset, config: TrainConfig, *, with_validation: bool
) -> dict[str, Dataset]:
    """Return the inputs of a training by context."""
    contexts = ["train", *(["validation"] if with_validation else []), *(["test"] if config.test else [])]
    return dataset_entities(dataset, config, contexts)


def log_data(
    run: TrackedRun, config: TrainConfig, dataset: ImageDataset, train_split: Split | Selection
) -> None:
    """Log a summary of the data: number of images per class and split, and a figure with samples."""
    from cifar_mlflow.evaluation import figures

    run.log_csv(summarize(dataset, config, with_test=config.test), "data/summary.csv", index=True)
    title = f"{dataset.name}: training images, without those for validation"
    run.log_figure(
        figures.sample_grid(train_split.images, train_split.labels, dataset.classes, title),
        "data/samples.png",
    )


def log_curves(run: TrackedRun, history: pd.DataFrame) -> None:
    """Log the learning curves as a figure; see `figures.learning_curves`."""
    from cifar_mlflow.evaluation import figures

    run.log_figure(figures.learning_curves(history), "learning_curves.png")


def description(card: ModelCard, calibration: str) -> str:
    """Return the description of the run for MLflow's page, in Markdown.

    The first line is plain text: MLflow shows it as it is in lists.
    """
    rows = [
        [split, *(f"{card.metrics[f'{split}/{name}']:.4f}" for name in HEADLINES)]
        for split in ("val", "test")
        if f"{split}/accuracy" in card.metrics
    ]
    table = markdown_table(["split", *HEADLINES], rows)
    link = commit_link()
    return (
        f"{card.model} on {card.data}, {card.metrics['train_seconds']:.0f} s of training\n\n{table}\n\n"
        f"Calibration: {calibration}.\n\n" + (f"Code: {link}.\n\n" if link else "") + "The file "
        "`config.yaml` has all settings: `cifar-mlflow train --config config.yaml` repeats the training. "
        f"`cifar-mlflow evaluate --model-uri {card.run_id}` evaluates it on other images."
    )


def _program_description(card: ModelCard) -> str:
    size, logits = card.image_size, listed(card.classes, SHOWN_CLASSES)
    return f"""\
{card.model} as trained on {card.data}, in PyTorch's format pt2

Input: float32 (N, 3, {size}, {size}), pixels in 0..1. Output: logits of {logits}.

It takes its own input example:

```python
import mlflow

model = mlflow.pyfunc.load_model("runs:/{card.run_id}/{PROGRAM_NAME}")
print(model.predict(model.input_example).argmax(axis=1))
```

To classify photos, here or over HTTP, use the model `scorer` that this command makes of it:
`cifar-mlflow register {card.run_id}`
"""


def log_weights(run: TrackedRun, classifier: ImageClassifier, card: ModelCard) -> None:
    """Log the weights as safetensors and as HDF5; both files contain the card."""
    from cifar_mlflow.export.hdf5 import save_hdf5
    from cifar_mlflow.export.weights import save_weights

    with tempfile.TemporaryDirectory() as folder:
        for name, save in (("model.safetensors", save_weights), ("model.h5", save_hdf5)):
            save(Path(folder, name), classifier, card)
            run.log_file(Path(folder, name), "weights")


def log_program(run: TrackedRun, classifier: ImageClassifier, card: ModelCard, examples: np.ndarray) -> str:
    """Log the network as an MLflow model in the format pt2, which has no pickle; return the model's id.

    Args:
        examples: uint8 (N, H, W, 3), N > 1, because torch.export would treat a batch of one as a constant.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from cifar_mlflow.export.reference import CARD_KEY

    size = card.image_size
    return run.log_pytorch_model(
        pytorch_model=classifier,
        name=PROGRAM_NAME,
        model_type="network as trained",
        tags={"mlflow.note.content": _program_description(card)},
        serialization_format="pt2",
        input_example=np.ascontiguousarray(examples.transpose(0, 3, 1, 2)).astype(np.float32) / 255,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3, size, size))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(card.classes)))]),
        ),
        metadata={CARD_KEY: card.model_dump(mode="json")},
        pip_requirements=[
            f"{name}=={library_versions()[name].split('+')[0]}" for name in ("mlflow", "torch", "numpy")
        ],
    )
