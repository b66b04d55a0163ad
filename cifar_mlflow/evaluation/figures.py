"""The pictures of a run, 900 pixels wide as MLflow's page shows them.

Made with matplotlib's objects only: pyplot keeps every figure in global state and is not safe in a thread.
A `title` must name the split that the picture is of.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cifar_mlflow.evaluation.calibration import Floats, Labels, calibration_error_of

WIDTH = 9.0  # inches, of 100 pixels
TRAIN, VAL, BAD = "tab:blue", "tab:orange", "tab:red"
NUMBERED_CLASSES = 20  # a confusion matrix of more has no room for numbers in its cells


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and learning rate by epoch; the best validation values are marked.

    Args:
        history: one row an epoch, the index is its number. Columns `train/loss`, `train/accuracy` and `lr`;
            `val/loss` and `val/accuracy` if there is a validation split. Others are ignored. Accuracy is a
            share in 0..1; what is not finite is left out.
    """
    splits = [split for split in ("train", "val") if f"{split}/loss" in history]
    figure = _figure(5.2, f"Learning curves: {' and '.join(splits)} split")
    axes = figure.subplot_mosaic([["loss", "accuracy"], ["lr", "lr"]], height_ratios=[3, 1])
    for split in splits:
        for name, best in (("loss", "lowest"), ("accuracy", "highest")):
            _curve(axes[name], history[f"{split}/{name}"], split, best if split == "val" else "")
    _curve(axes["lr"], history["lr"], "lr")
    for name in ("loss", "accuracy"):
        axes[name].set_ylabel(name)
        axes[name].legend(fontsize=9)
    axes["accuracy"].yaxis.set_major_formatter(PercentFormatter(1))
    axes["lr"].set_ylabel("learning rate")
    for ax in axes.values():
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
    return figure


def _curve(ax: Axes, values: "pd.Series[float]", name: str, best: str = "") -> None:
    values = values[np.isfinite(values)]
    epochs, heights = values.index.to_numpy(), values.to_numpy()
    color = {"train": TRAIN, "val": VAL}.get(name, "gray")
    if best and len(values):
        at = heights.argmax() if best == "highest" else heights.argmin()
        value = f"{heights[at]:.1%}" if best == "highest" else f"{heights[at]:.3f}"
        name = f"{name}, best {value} in epoch {epochs[at]}"
        ax.plot(epochs[at], heights[at], "o", color=color, markersize=9, fillstyle="none")
    # One epoch makes no line.
    ax.plot(epochs, heights, "." if len(values) == 1 else "-", color=color, label=name, linewidth=1.8)


def confusion_matrix(confusion: NDArray[np.integer[Any]], classes: Sequence[str], title: str) -> Figure:
    """Counts, and their share of the true class; with more than 20 classes only the share, as a colour.

    Args:
        confusion: (classes, classes), rows are the true class.
    """
    n = len(classes)
    totals = confusion.sum(axis=1)
    shares = confusion / np.maximum(totals, 1)[:, None]
    width = max(WIDTH, 0.16 * n)
    figure = _figure(0.85 * width, title)
    figure.set_figwidth(width)
    ax = figure.add_subplot()
    # The square root keeps a mistake of one in fifty visible beside a diagonal of nine in ten.
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    bar = figure.colorbar(image, ax=ax, format=PercentFormatter(1), fraction=0.04)
    bar.set_label("share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    few = n <= 12
    font = 9.5 if few else 7
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    ax.set_xticks(range(n), classes, fontsize=font, parse_math=False, **slant)
    ax.set_yticks(range(n), _with_totals(classes, totals), fontsize=font, parse_math=False)
    ax.set(xlabel="predicted class", ylabel="true class (its images)")
    if n <= NUMBERED_CLASSES:
        for row, column in np.argwhere(confusion).tolist():
            share = shares[row, column]
            text = f"{confusion[row, column]:,}\n{share:.{1 if few else 0}%}"
            color = "white" if share > 0.35 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=8.5 if few else 6.5, color=color)
    return figure


def _with_totals(classes: Iterable[str], totals: Iterable[int]) -> list[str]:
    return [f"{name} ({total:,})" for name, total in zip(classes, totals, strict=True)]


def f1_by_class(per_class: pd.DataFrame, title: str) -> Figure:
    """Bars of F1, the worst class at the top, with precision and recall marked.

    Args:
        per_class: as in `Evaluation`: `class`, `precision`, `recall`, `f1`, `support`.
    """
    rows = per_class.sort_values("f1", ascending=False, kind="stable")
    places = np.arange(len(rows))
    figure = _figure(1.6 + (0.32 if len(rows) <= 30 else 0.2) * len(rows), title)
    ax = figure.add_subplot()
    ax.barh(places, rows["f1"], color=TRAIN, alpha=0.45, label="F1")
    ax.plot(rows["precision"], places, "|", color="black", markersize=9, markeredgewidth=2, label="precision")
    ax.plot(rows["recall"], places, "o", color=VAL, markersize=5, label="recall")
    for place, f1 in enumerate(rows["f1"]):
        ax.text(0.01, place, f"{f1:.1%}", va="center", fontsize=8.5)
    names = _with_totals(rows["class"], rows["support"])
    ax.set_yticks(places, names, fontsize=9.5 if len(rows) <= 30 else 8, parse_math=False)
    ax.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.4), ylabel="class (its images)")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="x", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def reliability_diagram(
    before: pd.DataFrame, after: pd.DataFrame, title: str, temperature: float | None = None
) -> Figure:
    """Accuracy by confidence, and how many predictions have it, before and after temperature scaling.

    Args:
        before: a `reliability_table`, as is `after`.
        temperature: what the logits were divided by for `after`.
    """
    figure = _figure(5.4, title)
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    scaled = "after scaling" if temperature is None else f"after scaling, T = {temperature:.2f}"
    for (top, bottom), table, name in zip(grid.T, (before, after), ("before scaling", scaled), strict=True):
        filled = table[table["count"] > 0]
        left, width = filled["lower"], filled["upper"] - filled["lower"]
        bars = {"width": width, "align": "edge", "edgecolor": "white"}
        top.bar(left, filled["accuracy"], color=TRAIN, alpha=0.45, label="accuracy", **bars)
        # Against the mean confidence, not the diagonal: this distance is what the error adds up.
        top.hlines(filled["confidence"], left, left + width, color=BAD, lw=2.5, label="mean confidence")
        top.plot([0, 1], [0, 1], "--", color="gray", lw=1, label="perfect")
        top.set(title=f"{name}: ECE {calibration_error_of(table):.4f}", xlim=(0, 1), ylim=(0, 1.01))
        bottom.bar(left, filled["count"], color="gray", **bars)
        bottom.set(xlabel="confidence", xticks=np.linspace(0, 1, 6))
        bottom.xaxis.set_major_formatter(PercentFormatter(1))
    grid[0, 0].legend(loc="upper left", fontsize=9)
    grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    grid[1, 0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("predictions")
    for ax in grid.flat:
        ax.grid(alpha=0.3)
    return figure


def most_confident_mistakes(
    images: NDArray[np.uint8],
    labels: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    title: str,
    count: int = 25,
) -> Figure:
    """The wrong predictions of which the model was surest: true class, predicted class, confidence.

    Args:
        images: uint8 (N, H, W, 3).
        labels: (N,), class indices.
        probabilities: (N, classes).
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    captions = [
        _caption(classes[labels[index]], classes[predicted[index]], confidence[index]) for index in shown
    ]
    columns = 5
    rows = -(-len(shown) // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    title = f"{title}\n{len(wrong):,} of {len(labels):,} images are wrong{', surest first' * bool(captions)}"
    figure = _figure(0.7 + rows * (1.6 + 0.18 * lines), title)
    if not captions:
        return figure
    # All in the units of one set of axes, an image 1 wide: 25 of their own take a second to lay out.
    side, height = 1.12, 1.12 + 0.11 * lines
    ax = figure.add_subplot()
    for place, (index, caption) in enumerate(zip(shown, captions, strict=True)):
        left, top = place % columns * side, place // columns * height
        ax.imshow(images[index], interpolation="nearest", extent=(left, left + 1, top + 1, top))
        ax.text(left + 0.5, top - 0.02, caption, ha="center", va="bottom", fontsize=9.5, parse_math=False)
    ax.set(xlim=(-0.1, columns * side), ylim=((rows - 1) * height + 1, 1 - height))
    ax.axis("off")
    return figure


def _caption(truth: str, said: str, confidence: float) -> str:
    lines = (f"true: {truth}", f"said: {said}, {confidence:.1%}")
    return "\n".join(textwrap.fill(line, 24) for line in lines)


def sample_grid(
    images: NDArray[np.uint8], labels: Labels, classes: Sequence[str], title: str, per_class: int = 10
) -> Figure:
    """The first images of each class, a row a class.

    Args:
        images: uint8 (N, S, S, 3).
        labels: (N,), class indices.
    """
    # One mosaic instead of a thousand axes; more than 64 pixels an image could not be seen anyway.
    step = -(-images.shape[1] // 64)
    side = len(range(0, images.shape[1], step)) + 2
    mosaic = np.full((len(classes) * side, per_class * side, 3), 255, np.uint8)
    for row in range(len(classes)):
        for column, index in enumerate(np.flatnonzero(labels == row)[:per_class]):
            small = images[index, ::step, ::step]
            top, left = row * side + 1, column * side + 1
            mosaic[top : top + side - 2, left : left + side - 2] = small
    height = len(classes) * (0.78 if len(classes) <= 20 else 0.36)
    figure = _figure(0.6 + height, title)
    ax = figure.add_subplot()
    ax.imshow(mosaic, interpolation="nearest")
    totals = np.bincount(labels, minlength=len(classes))
    names = _with_totals(classes, totals)
    ax.set_yticks(np.arange(len(classes)) * side + side / 2, names, fontsize=9.5, parse_math=False)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure
