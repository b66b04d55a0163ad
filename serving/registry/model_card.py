"""The model card of a version, for people: data, results by class, calibration, limits, and how to call it.

MLflow shows it on the pages of the version and of the logged model. `scorer.json` has the same for programs.
"""

import shlex

import pandas as pd

from cifar_mlflow.evaluation.metrics import Evaluation
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.markdown import markdown_table
from cifar_mlflow.models.card import ServedCard
from cifar_mlflow.names import listed, model_option
from serving.registry.mlflow_model import MODEL_CARD_FILE
from serving.registry.scorer_folder import USEFUL_AUROC, promise

SHOWN_CLASSES = 30
LONGEST_DESCRIPTION = 5_000  # characters
MODEL_NAME = "scorer"  # part of its address, runs:/<run id>/scorer


def model_card(card: ServedCard, eval_set: EvalSet, evaluation: Evaluation, decision: str) -> str:
    """Return the card in Markdown; its first line is plain text, since MLflow shows it as it is in lists.

    Args:
        evaluation: of the served network on `eval_set`.
        decision: the reason for the precision, in words.
    """
    images = "validation" if eval_set.held_out else "training"
    accuracy = f"{evaluation.accuracy:.1%} of {images} images right"
    return "\n\n".join(
        [
            f"{card.model} on {card.data}, served as {card.precision}: {accuracy}",
            "## Data",
            f"{card.data} (sha256 {card.data_digest[:12]}), {len(card.classes)} classes: "
            f"{listed(card.classes, SHOWN_CLASSES)}. Held out for validation: {card.val_size:.0%} of the "
            "training images.",
            "## Results",
            _results(card, eval_set, evaluation),
            "## Results by class",
            f"On {eval_set}, the worst class first.",
            _by_class(evaluation.per_class),
            "## Calibration",
            _calibration(card, evaluation, images),
            "## Limits",
            _limits(card),
            "## How to call it",
            _calls(card),
            "## How it was made",
            f"By run {card.run_id}. Chosen: {decision}. On {eval_set}, {card.metrics['serve/agreement']:.2%} "
            "get the same label as from the trained network.",
        ]
    )


def shorten(text: str) -> str:
    """Return the card as a description that MLflow's database can hold."""
    if len(text) <= LONGEST_DESCRIPTION:
        return text
    rest = f"\n\nThe rest is in the file {MODEL_CARD_FILE} of the model."
    return text[: LONGEST_DESCRIPTION - len(rest)].rpartition("\n")[0] + rest


def registered_model_description(card: ServedCard, name: str) -> str:
    """Return the description of a new registered model, in Markdown; the first line is plain text."""
    uri, option = shlex.quote(f"models:/{name}@champion"), model_option(name)
    return (
        f"Classifies images into {len(card.classes)} classes: {listed(card.classes, SHOWN_CLASSES)}\n\n"
        f"The version with the alias `champion` is served: `cifar-mlflow serve --model-uri {uri}` or "
        f"`mlflow models serve -m {uri} --env-manager local`. `cifar-mlflow promote{option}` moves the "
        f"alias, and `cifar-mlflow rollback{option}` moves it back.\n\n"
        "The description of each version is its model card: data, results by class, calibration, limits, and "
        "how to call it."
    )


def _results(card: ServedCard, eval_set: EvalSet, evaluation: Evaluation) -> str:
    rows: dict[str, tuple[float, float | None]] = {}
    if eval_set.held_out:
        rows["validation, as served"] = (evaluation.accuracy, evaluation.f1_macro)
    if "test/accuracy" in card.metrics:
        rows["test, as trained"] = (card.metrics["test/accuracy"], card.metrics.get("test/f1_macro"))
    if not rows:
        return "No images were held out to measure it."
    texts = [
        [name, *("-" if value is None else f"{value:.1%}" for value in row)] for name, row in rows.items()
    ]
    return markdown_table(["", "accuracy", "F1 (macro)"], texts)


def _by_class(per_class: pd.DataFrame) -> str:
    worst = per_class.sort_values("f1", kind="stable").head(SHOWN_CLASSES)
    shares = {name: worst[name].map("{:.1%}".format) for name in ("precision", "recall", "f1")}
    table = worst.assign(**shares).rename(columns={"f1": "F1", "support": "images"})
    return markdown_table(list(table.columns), table.to_numpy().tolist())


def _calibration(card: ServedCard, evaluation: Evaluation, images: str) -> str:
    uncertain = card.uncertain
    text = (
        f"Logits are divided by a temperature of {card.temperature:.3g}; the calibration error (ECE, 15 "
        f"bins) on {images} images is then {evaluation.ece:.3f}."
    )
    if uncertain.confidence_below <= 1:
        text += (
            f" An answer is `uncertain` below a confidence of {uncertain.confidence_below:.2f}, or if the "
            "image is unlike the training images."
        )
    if uncertain.coverage:
        text += f" Of the validation images, {uncertain.coverage:.1%} get a certain answer."
    return f"{text} {promise(uncertain)}"


def _limits(card: ServedCard) -> str:
    missed = [kind for kind, auroc in card.ood.auroc.items() if auroc < USEFUL_AUROC]
    unknown = f" It hardly recognizes these as foreign: {', '.join(missed)}." if missed else ""
    return (
        f"- Every image is cropped to a square and reduced to {card.image_size}x{card.image_size} pixels.\n"
        f"- It knows no other classes; an image of something else gets one of these.{unknown}\n"
        "- The results hold for images like those it was trained on. Photos of another kind need their own "
        f"test: `cifar-mlflow evaluate --model-uri {card.run_id} --dataset folder --data-dir PHOTOS`."
    )


def _calls(card: ServedCard) -> str:
    return f"""\
With its own input example, a PNG as base64 text; bytes of a JPEG, PNG, WebP, BMP or GIF file work as well:

```python
import mlflow

model = mlflow.pyfunc.load_model("runs:/{card.run_id}/{MODEL_NAME}")
print(model.predict(model.input_example))
```

On files: `cifar-mlflow classify PHOTOS --model-uri runs:/{card.run_id}/{MODEL_NAME}`"""
