import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cifar_mlflow.evaluation import figures
from cifar_mlflow.evaluation.calibration import reliability_table, softmax
from cifar_mlflow.evaluation.labels import label
from cifar_mlflow.evaluation.metrics import Evaluation, evaluate_logits

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # Objects of earlier tests may be collected during one of these.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Class folders can have such names: a formula for matplotlib, and one longer than the figure is wide.
ODD = ("$\\frac$ 5_a", "defective part, scratched on its left side")
MANY = tuple(f"kind number {i}" for i in range(100))
# matplotlib's fonts lack the first two; the others change direction, have several lines, or are as long as a
# file name can be.
WORLD = (
    "🐶 dog",
    "猫",
    "قطة",
    "כלב\u202e",
    "two\nlines",
    "a\tb",
    "👩\u200d🔬",
    "x" * 255,
    "w " * 127,
)


class Case:
    """Predictions of a fairly good model; the last class has no images if there are many classes."""

    def __init__(self, classes: tuple[str, ...], n: int = 600, size: int = 32) -> None:
        rng = np.random.default_rng(0)
        self.classes = classes
        self.labels = rng.integers(0, len(classes) - (len(classes) > 20), n)
        self.images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        self.logits = rng.normal(size=(n, len(classes)))
        self.logits[np.arange(n), self.labels] += 2
        self.probabilities = softmax(self.logits)

    @property
    def evaluation(self) -> Evaluation:
        return evaluate_logits(self.logits, self.labels, self.classes)


@pytest.fixture(
    params=[CIFAR, ODD, *(pytest.param(names, marks=pytest.mark.slow) for names in (MANY, WORLD))],
    ids=["10", "2", "100", "world"],
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def history(epochs: int) -> pd.DataFrame:
    number = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "train/loss": 2 / number,
            "val/loss": 2.1 / number,
            "train/accuracy": 1 - 0.6 / number,
            "val/accuracy": 0.9 - 0.6 / number,
            "lr": 0.1 / number,
        },
        index=number,
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def saved(figure: Figure, tmp_path: Path, words: tuple[str, ...] = ()) -> tuple[int, int]:
    """Save the figure and return width and height; check that each word is on it, inside its edges."""
    FigureCanvasAgg(figure).print_png(tmp_path / "figure.png")
    visible = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    for word in words:
        matching = [text for text in visible if word in text.get_text()]
        assert matching, f"{word} is not in the figure"
        for text in matching:
            box = text.get_window_extent()
            assert box.x0 >= 0, text
            assert box.y0 >= 0, text
            assert box.x1 <= figure.bbox.x1, text
            assert box.y1 <= figure.bbox.y1, text
    with Image.open(tmp_path / "figure.png") as png:
        return png.size


def test_confusion_matrix(case: Case, tmp_path: Path) -> None:
    figure = figures.confusion_matrix(case.evaluation.confusion, case.classes, "Confusion: test split")
    assert saved(figure, tmp_path, (*map(label, case.classes), "Confusion: test split"))[0] == (
        1600 if len(case.classes) == 100 else 900
    )


def test_confusion_matrix_states_counts_and_row_shares() -> None:
    figure = figures.confusion_matrix(np.array([[30, 10], [0, 0]]), ["cat", "dog"], "val split")
    assert {"30\n75.0%", "10\n25.0%", "cat (40)", "dog (0)"} <= set(texts(figure))


def test_f1_by_class(case: Case, tmp_path: Path) -> None:
    figure = figures.f1_by_class(case.evaluation.per_class, "F1: val split")
    assert (
        saved(figure, tmp_path, (*map(label, case.classes), "F1: val split", "precision", "recall"))[0] == 900
    )


def test_f1_by_class_has_the_worst_at_the_top() -> None:
    per_class = pd.DataFrame(
        {"class": ["a", "b", "c"], "precision": 0.5, "recall": 0.5, "f1": [0.5, 0.2, 0.9], "support": 7}
    )
    (ax,) = figures.f1_by_class(per_class, "test split").axes
    upwards = [label.get_text() for label in ax.get_yticklabels()]
    assert upwards == ["c (7)", "a (7)", "b (7)"]
    assert [bar.get_width() for bar in ax.patches] == [0.9, 0.5, 0.2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_learning_curves(epochs: int, tmp_path: Path) -> None:
    figure = figures.learning_curves(history(epochs))
    best = f"val, best {0.9 - 0.6 / epochs:.1%} in epoch {epochs}"
    assert saved(figure, tmp_path, ("Learning curves: train and val split", "learning rate", best))[0] == 900
    ticks = [label.get_text() for ax in figure.axes for label in ax.get_xticklabels()]
    assert all(float(tick.replace("−", "-")).is_integer() for tick in ticks)


def test_learning_curves_of_a_training_on_all_images_name_no_validation() -> None:
    figure = figures.learning_curves(history(3).drop(columns=["val/loss", "val/accuracy"]))
    assert "Learning curves: train split" in texts(figure)
    assert not any("val" in text for text in texts(figure))


def test_learning_curves_of_a_diverged_training(tmp_path: Path) -> None:
    diverged = history(3)
    diverged.loc[2:, ["train/loss", "val/loss"]] = [np.inf, np.nan]
    figure = figures.learning_curves(diverged)
    assert "val, best 2.100 in epoch 1" in texts(figure)
    saved(figure, tmp_path)
    diverged[["train/loss", "val/loss"]] = np.nan
    saved(figures.learning_curves(diverged), tmp_path)


def test_reliability_diagram_with_empty_bins(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [60, 40])
    before = reliability_table(np.tile([0.9, 0.1], (100, 1)), labels)
    after = reliability_table(np.tile([0.6, 0.4], (100, 1)), labels)
    figure = figures.reliability_diagram(before, after, "Reliability: test split", temperature=5.419)
    expected = ("Reliability: test split", "ECE 0.3000", "T = 5.42: ECE 0.0000", "mean confidence")
    assert saved(figure, tmp_path, expected) == (900, 540)
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes]  # type: ignore[attr-defined]
    assert heights == [[0.6], [0.6], [100], [100]]
    (legend,) = figure.legends
    for ax in figure.axes:
        assert not legend.get_window_extent().overlaps(ax.get_window_extent())


def test_most_confident_mistakes(case: Case, tmp_path: Path) -> None:
    figure = figures.most_confident_mistakes(
        case.images, case.labels, case.probabilities, case.classes, "Mistakes: test split"
    )
    wrong = case.probabilities.argmax(1) != case.labels
    assert (
        saved(
            figure,
            tmp_path,
            ("Mistakes: test split", f"{wrong.sum()} of 600 answers are wrong", "predicted: "),
        )[0]
        == 900
    )
    ax = figure.axes[0]
    captions = [text.get_text() for text in ax.texts]
    highest = case.probabilities.max(1)[wrong].max()
    assert len(captions) == len(ax.images) == 24
    assert f"{highest:.1%}" in captions[0]
    first = np.flatnonzero(wrong)[case.probabilities.max(1)[wrong].argmax()]
    true, predicted = (
        label(case.classes[i]) for i in (case.labels[first], case.probabilities[first].argmax())
    )
    caption = f"true: {true} predicted: {predicted}, {highest:.1%}"
    assert "".join(captions[0].split()) == "".join(caption.split())
    np.testing.assert_array_equal(ax.images[0].get_array(), case.images[first])
    assert ax.images[0].get_interpolation() == "nearest"


def test_the_maps_of_the_mistakes_stand_beside_their_images(case: Case, tmp_path: Path) -> None:
    shown = figures.confident_mistakes(case.labels, case.probabilities)
    overlays = [255 - case.images[index] for index in shown]
    figure = figures.most_confident_mistakes(
        case.images, case.labels, case.probabilities, case.classes, "Mistakes: test split", overlays=overlays
    )
    assert saved(figure, tmp_path, ("red speaks for the predicted class, and blue against it",))[0] == 900
    pictures = figure.axes[0].images
    assert len(pictures) == 24
    assert len({picture.get_extent()[0] for picture in pictures}) == 4  # so that every row is full
    for index, picture in zip(shown, pictures, strict=True):
        pair = np.asarray(picture.get_array())
        np.testing.assert_array_equal(pair[:, :32], case.images[index])
        np.testing.assert_array_equal(pair[:, -32:], 255 - case.images[index])


@pytest.mark.parametrize("paired", [True, False])
def test_captions_of_long_names_do_not_overlap(paired: bool) -> None:
    images, labels = np.zeros((24, 32, 32, 3), np.uint8), np.zeros(24, np.int64)
    classes, probabilities = ("truck", "automobile"), np.tile([0.1, 0.9], (24, 1))
    overlays = [*images] if paired else []
    figure = figures.most_confident_mistakes(
        images, labels, probabilities, classes, "test split", overlays=overlays
    )
    FigureCanvasAgg(figure).draw()
    captions = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(captions) == 24
    assert not any(first.overlaps(second) for first, second in itertools.combinations(captions, 2))


@pytest.mark.parametrize("mistakes", [0, 1, 7])
def test_fewer_mistakes_than_the_figure_has_room_for(mistakes: int, tmp_path: Path) -> None:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    labels = np.zeros(40, int)
    probabilities = np.tile([0.9, 0.1], (40, 1))
    probabilities[:mistakes] = [0.2, 0.8]
    figure = figures.most_confident_mistakes(images, labels, probabilities, ["cat", "dog"], "test split")
    assert sum("predicted: dog, 80.0%" in text for text in texts(figure)) == mistakes
    verb = "is" if mistakes == 1 else "are"
    assert saved(figure, tmp_path, (f"{mistakes} of 40 answers {verb} wrong",))[0] == 900
    for ax in figure.axes:
        assert ax.get_xlim()[1] == pytest.approx(1.12 * min(max(mistakes, 2), 5))  # no empty columns


def test_sample_grid(case: Case, tmp_path: Path) -> None:
    figure = figures.sample_grid(case.images, case.labels, case.classes, "Images: training split")
    assert saved(figure, tmp_path, (*map(label, case.classes), "Images: training split"))[0] == 900
    assert figure.axes[0].images[0].get_interpolation() == "nearest"


def test_sample_grid_has_one_row_per_class_in_order() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    figure = figures.sample_grid(images, np.array([1, 0, 1, 1, 0, 1]), "abc", "train split", per_class=3)
    mosaic = figure.axes[0].images[0].get_array()
    assert mosaic is not None
    seen = mosaic[17::34, 17::34, 0].tolist()
    assert seen == [[1, 4, 255], [0, 2, 3], [255, 255, 255]]


def test_large_images_are_reduced_for_the_grid_without_aliasing() -> None:
    images = np.zeros((20, 250, 250, 3), np.uint8)
    images[:, :, ::2] = 200  # stripes of one pixel
    grid = figures.sample_grid(images, np.zeros(20, np.int64), ["striped"], "train split")
    mosaic = grid.axes[0].images[0].get_array()
    assert mosaic is not None
    assert mosaic.shape[1] <= 10 * 66
    assert set(np.unique(mosaic)) == {100, 255}
    assert any("250x250 pixels, drawn in 62x62" in text for text in texts(grid))


@pytest.mark.slow
def test_figures_can_be_drawn_in_threads_and_leave_nothing_behind(tmp_path: Path) -> None:
    case = Case(CIFAR)
    confusion = case.evaluation.confusion

    def draw(i: int) -> bytes:
        path = tmp_path / f"{i}.png"
        figures.confusion_matrix(confusion, CIFAR, "test split").savefig(path, metadata={"Software": None})
        return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        drawn = set(pool.map(draw, range(4)))
    assert len(drawn) == 1
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_of_300_classes_only_those_that_matter_are_drawn(tmp_path: Path) -> None:
    classes = tuple(f"kind {i}" for i in range(300))
    confusion = np.diag(np.full(300, 5))
    confusion[250, 299] = 3
    figure = figures.confusion_matrix(confusion, classes, "Confusion: test split")
    title = "The 100 of 300 classes that are confused most often"
    names = ("kind 250 (8)", "kind 299 (5)", "kind 97 (5)")
    assert saved(figure, tmp_path, (title, *names)) == (1600, 1360)
    assert "kind 98 (5)" not in texts(figure)
    shares = np.linspace(0, 1, 300)
    per_class = pd.DataFrame(
        {"class": classes, "precision": shares, "recall": shares, "f1": shares, "support": 5}
    )
    figure = figures.f1_by_class(per_class, "F1: val split")
    width, height = saved(figure, tmp_path, ("The worst 100 of 300 classes", "kind 0 (5)", "kind 99 (5)"))
    assert (width, height < 2500) == (900, True)
    images = np.zeros((300, 32, 32, 3), np.uint8)
    figure = figures.sample_grid(images, np.arange(300), classes, "Images: training split")
    width, height = saved(figure, tmp_path, ("The first 100 of 300 classes", "kind 99 (1)"))
    assert (width, height < 4000) == (900, True)
