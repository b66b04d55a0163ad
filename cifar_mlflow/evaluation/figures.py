"""Draw the figures of a run, 900 pixels wide as MLflow's page shows them.

They use matplotlib's objects only: pyplot keeps every figure in global state and is not thread-safe. Each
`title` must name the split that the figure shows.
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

from cifar_mlflow.data.dataset import SelectedImages
from cifar_mlflow.evaluation.calibration import Floats, Labels, calibration_error_of
from cifar_mlflow.evaluation.labels import label, text_style

WIDTH = 9.0  # inches of 100 pixels
TRAIN, VAL, BAD = "tab:blue", "tab:orange", "tab:red"
NUMBERED_CLASSES = 20  # with more, the cells of a confusion matrix have no room for numbers
SHOWN_CLASSES = 100  # with more, names are too small to read where MLflow's page shows the whole figure
MISTAKES = 24  # six full rows of four pairs
CAPTION = 22  # characters that fit above an image in a grid of five columns
ROUND = (1, 2, 5, 10)  # steps of an axis with whole numbers, times a power of ten
GAP = 2  # white pixels between two images side by side
TITLE_LENGTH = 200
TITLE_COLUMNS = 90


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    lines = [textwrap.fill(label(line, TITLE_LENGTH), TITLE_COLUMNS) for line in title.split("\n")]
    figure.suptitle("\n".join(lines), fontsize=13, **text_style(lines))
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Plot loss, accuracy and learning rate per epoch, and mark the best validation values.

    Args:
        history: one row per epoch, indexed by its number. Columns `train/loss`, `train/accuracy` and `lr`;
            `val/loss` and `val/accuracy` if there is a validation split; others are ignored. Accuracy is in
            0..1; values that are not finite are left out.
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
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=ROUND))
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
    # A single epoch has no line, only a point.
    ax.plot(epochs, heights, "." if len(values) == 1 else "-", color=color, label=name, linewidth=1.8)


def confusion_matrix(confusion: NDArray[np.integer[Any]], classes: Sequence[str], title: str) -> Figure:
    """Draw the counts and their share of the true class; above 20 classes only the share, as a colour.

    Of more than 100 classes, only those are shown that are confused most often.

    Args:
        confusion: int (classes, classes); rows are the true class.
    """
    totals = confusion.sum(axis=1)
    if len(classes) > SHOWN_CLASSES:
        title += f"\nThe {SHOWN_CLASSES} of {len(classes):,} classes that are confused most often"
        mistakes = totals + confusion.sum(axis=0) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:SHOWN_CLASSES])
        confusion, totals = confusion[np.ix_(shown, shown)], totals[shown]
        classes = [classes[index] for index in shown]
    n = len(classes)
    names = [label(name) for name in classes]
    style = text_style(names)
    shares = confusion / np.maximum(totals, 1)[:, None]
    width = max(WIDTH, 0.16 * n)
    figure = _figure(0.85 * width, title)
    figure.set_figwidth(width)
    ax = figure.add_subplot()
    # The square root keeps an error of 2 % visible beside a diagonal of 90 %.
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    bar = figure.colorbar(image, ax=ax, format=PercentFormatter(1), fraction=0.04)
    bar.set_label("share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    few = n <= 12
    font = 9.5 if few else 7
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    ax.set_xticks(range(n), names, fontsize=font, **slant, **style)
    ax.set_yticks(range(n), _with_totals(names, totals), fontsize=font, **style)
    ax.set(xlabel="predicted class", ylabel="true class (images)")
    if n <= NUMBERED_CLASSES:
        for row, column in np.argwhere(confusion).tolist():
            share = shares[row, column]
            text = f"{confusion[row, column]:,}\n{share:.{1 if few else 0}%}"
            color = "white" if share > 0.35 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=8.5 if few else 6.5, color=color)
    return figure


def _with_totals(names: Iterable[str], totals: Iterable[int]) -> list[str]:
    return [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)]


def f1_by_class(per_class: pd.DataFrame, title: str) -> Figure:
    """Draw a bar of F1 per class, the worst class at the top, and mark precision and recall.

    Of more than 100 classes, only the worst ones are shown.

    Args:
        per_class: see `Evaluation`.
    """
    rows = per_class.sort_values("f1", ascending=False, kind="stable")[-SHOWN_CLASSES:]
    if len(rows) < len(per_class):
        title += f"\nThe worst {len(rows)} of {len(per_class):,} classes"
    places = np.arange(len(rows))
    figure = _figure(1.6 + (0.32 if len(rows) <= 30 else 0.2) * len(rows), title)
    ax = figure.add_subplot()
    ax.barh(places, rows["f1"], color=TRAIN, alpha=0.45, label="F1")
    ax.plot(rows["precision"], places, "|", color="black", markersize=9, markeredgewidth=2, label="precision")
    ax.plot(rows["recall"], places, "o", color=VAL, markersize=5, label="recall")
    for place, f1 in enumerate(rows["f1"]):
        ax.text(0.01, place, f"{f1:.1%}", va="center", fontsize=8.5)
    names = _with_totals(map(label, rows["class"]), rows["support"])
    ax.set_yticks(places, names, fontsize=9.5 if len(rows) <= 30 else 8, **text_style(names))
    ax.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.4), ylabel="class (images)")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="x", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def reliability_diagram(
    before: pd.DataFrame, after: pd.DataFrame, title: str, temperature: float | None = None
) -> Figure:
    """Plot accuracy and number of predictions by confidence, before and after temperature scaling.

    Args:
        before, after: tables of `reliability_table`.
        temperature: the divisor of the logits for `after`.
    """
    figure = _figure(5.4, title)
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    scaled = "after scaling" if temperature is None else f"after scaling, T = {temperature:.2f}"
    for (top, bottom), table, name in zip(grid.T, (before, after), ("before scaling", scaled), strict=True):
        filled = table[table["count"] > 0]
        left, width = filled["lower"], filled["upper"] - filled["lower"]
        bars = {"width": width, "align": "edge", "edgecolor": "white"}
        top.bar(left, filled["accuracy"], color=TRAIN, alpha=0.45, label="accuracy", **bars)
        # The calibration error sums the distances to the mean confidence, not to the diagonal.
        top.hlines(filled["confidence"], left, left + width, color=BAD, lw=2.5, label="mean confidence")
        top.plot([0, 1], [0, 1], "--", color="gray", lw=1, label="perfect")
        top.set(title=f"{name}: ECE {calibration_error_of(table):.4f}", xlim=(0, 1), ylim=(0, 1.01))
        bottom.bar(left, filled["count"], color="gray", **bars)
        bottom.set(xlabel="confidence", xticks=np.linspace(0, 1, 6))
        bottom.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    grid[1, 0].yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=ROUND))
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("predictions")
    for ax in grid.flat:
        ax.grid(alpha=0.3)
    return figure


def confident_mistakes(labels: Labels, probabilities: Floats) -> NDArray[np.intp]:
    """Return the indices of the wrong predictions with the highest confidence, the highest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")][:MISTAKES]


def most_confident_mistakes(
    images: NDArray[np.uint8],
    labels: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    title: str,
    overlays: Sequence[NDArray[np.uint8]] = (),
) -> Figure:
    """Show the wrong predictions with the highest confidence: true class, predicted class, confidence.

    Args:
        images: uint8 (N, H, W, 3).
        labels: (N,), class indices.
        probabilities: (N, classes).
        overlays: a second picture beside each image that is shown, in the order of `confident_mistakes`:
            uint8 (H, W, 3) each; or none.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = confident_mistakes(labels, probabilities)
    columns = 4 if overlays else 5
    width = CAPTION * 5 // columns
    captions = [
        _caption(classes[labels[index]], classes[predicted[index]], confidence[index], width)
        for index in shown
    ]
    order = ", most confident first" if captions else ""
    verb = "is" if len(wrong) == 1 else "are"
    title = f"{title}\n{len(wrong):,} of {len(labels):,} answers {verb} wrong{order}"
    pictures = [images[index] for index in shown]
    if not overlays:
        return image_grid(pictures, captions, title)
    title += "\nBeside each image, red speaks for the predicted class, and blue against it"
    pairs = [side_by_side(*pair) for pair in zip(pictures, overlays, strict=True)]
    return image_grid(pairs, captions, title, columns)


def side_by_side(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return two images, uint8 (H, W, 3) each, as one with a white gap between them."""
    gap = np.full((len(first), GAP, 3), 255, np.uint8)
    return np.concatenate([first, gap, second], axis=1)


def image_grid(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str, columns: int = 5
) -> Figure:
    """Show images with captions above them, row by row.

    Args:
        images: uint8 (H, W, 3), all of the same size.
        captions: one for each image; their lines must be short enough for a column.
    """
    style = text_style(captions)
    columns = min(columns, max(len(images), 2))  # few images are drawn larger
    rows = -(-len(images) // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    aspect = images[0].shape[0] / images[0].shape[1] if images else 1.0
    inches = 1.6 * 5 / columns  # of an image and the gap beside it
    figure = _figure(0.7 + rows * (inches * aspect + 0.18 * lines), title)
    if not images:
        return figure
    # One set of axes in which an image is 1 wide: 25 sets of axes take a second to lay out.
    side, height = 1.12, aspect + 0.12 + 0.11 * lines * columns / 5
    ax = figure.add_subplot()
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * side, place // columns * height
        ax.imshow(image, interpolation="nearest", extent=(left, left + 1, top + aspect, top))
        ax.text(left + 0.5, top - 0.02, caption, ha="center", va="bottom", fontsize=9.5, **style)
    ax.set(xlim=(-0.1, columns * side), ylim=((rows - 1) * height + aspect, aspect - height))
    ax.axis("off")
    return figure


def _caption(true: str, predicted: str, confidence: float, width: int) -> str:
    lines = (f"true: {label(true)}", f"predicted: {label(predicted)}, {confidence:.1%}")
    return "\n".join(textwrap.fill(line, width) for line in lines)


def sample_grid(
    images: NDArray[np.uint8] | SelectedImages,
    labels: Labels,
    classes: Sequence[str],
    title: str,
    per_class: int = 10,
) -> Figure:
    """Show the first images of each class, one row per class, of at most 100 classes.

    Args:
        images: uint8 (N, S, S, 3).
        labels: (N,), class indices.
        per_class: number of images in a row.
    """
    # One mosaic instead of a thousand axes; at this size, more than 64 pixels per image would not be visible.
    step = -(-images.shape[1] // 64)
    totals = np.bincount(labels, minlength=len(classes))
    if len(classes) > SHOWN_CLASSES:
        title += f"\nThe first {SHOWN_CLASSES} of {len(classes):,} classes"
        classes = classes[:SHOWN_CLASSES]
    size = images.shape[1]
    pixels = size // step
    title += f"\nThe first {per_class} of each class (number of images), {size}x{size} pixels"
    title += f", drawn in {pixels}x{pixels}" if step > 1 else ""
    side = pixels + 2
    mosaic = np.full((len(classes) * side, per_class * side, 3), 255, np.uint8)
    for row in range(len(classes)):
        for column, index in enumerate(np.flatnonzero(labels == row)[:per_class]):
            blocks = images[index, : pixels * step, : pixels * step].reshape(pixels, step, pixels, step, 3)
            small = blocks.mean((1, 3)).round()
            top, left = row * side + 1, column * side + 1
            mosaic[top : top + side - 2, left : left + side - 2] = small
    height = len(classes) * (0.78 if len(classes) <= 20 else 0.36)
    figure = _figure(0.85 + height, title)
    ax = figure.add_subplot()
    ax.imshow(mosaic, interpolation="nearest")
    names = _with_totals(map(label, classes), totals[: len(classes)])
    ax.set_yticks(np.arange(len(classes)) * side + side / 2, names, fontsize=9.5, **text_style(names))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure
