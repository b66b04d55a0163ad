"""The browser gives the answers of the Python scorer."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from benchmarks.web import answers_of_page
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.scorer.predictor import Scorer
from serving.registry.loader import load_scorer
from tests.scorer.pictures import encode, scene, with_orientation
from tests.serving.page.conftest import CAT, HEIC, upload
from tests.serving.registry.conftest import working_in
from tests.serving.web.conftest import ANSWERED, VERSION, Site, Trained, export, served
from tests.serving.web.pngs import png_files

pytestmark = pytest.mark.slow

PROBABILITY_TOLERANCE = 1e-3
# The page turns before it resizes, the scorer after it: a pixel may differ by one level.
TURNED_TOLERANCE = 5e-3
TURNED = {f"turned{orientation}.png" for orientation in range(5, 9)}
JPEGS = 200
# The network of these tests was trained briefly and is often close to a tie: 98 and 98.5 % were seen.
MIN_JPEG_AGREEMENT = 0.97


@pytest.fixture(scope="module")
def images(shared_cache: Path) -> np.ndarray:
    """Return test images of the sample, uint8 (N, 32, 32, 3)."""
    return load_dataset(DataConfig(dataset="sample", cache_dir=shared_cache)).split("test").images


@pytest.fixture(scope="module")
def scorer(trained: Trained, shared_cache: Path) -> Iterator[Scorer]:
    with working_in(trained.folder, shared_cache):
        scorer = load_scorer(VERSION)
    yield scorer
    scorer.close()


@pytest.fixture
def page(open_page: Callable[..., Page], site: Site) -> Page:
    page = open_page(site.url)
    expect(page.locator("#about")).to_contain_text("Model cifar10, version 1")
    return page


def test_every_kind_of_png_gets_the_label_and_the_probabilities_of_the_scorer(
    page: Page, scorer: Scorer, images: np.ndarray
) -> None:
    files = png_files(images[:60])
    rows = answers_of_page(page, files)

    assert rows.keys() == files.keys()
    scores = scorer.score(np.stack([scorer.decode(content) for content in files.values()]))
    for name, probabilities, uncertain in zip(files, scores.probabilities, scores.uncertain, strict=True):
        row = rows[name]
        assert row["error"] == "", name
        assert row["label"] == scorer.classes[int(probabilities.argmax())], name
        found = [float(row[label]) for label in scorer.classes]
        tolerance = TURNED_TOLERANCE if name in TURNED else PROBABILITY_TOLERANCE
        np.testing.assert_allclose(found, probabilities, atol=tolerance, err_msg=name)
        assert row["uncertain"] == str(bool(uncertain)).lower(), name
    assert {row["uncertain"] for row in rows.values()} == {"true", "false"}


def test_the_input_of_the_network_is_that_of_the_scorer(page: Page, scorer: Scorer) -> None:
    photo = encode(scene(301, 200), "PNG")
    page.set_input_files("#files", upload("scene.png", photo, "image/png"))
    expect(page.locator("#timing")).to_have_text(ANSWERED)

    seen = page.locator("#seen").evaluate(
        """async (image) => {
            await image.decode();
            const canvas = Object.assign(document.createElement("canvas"), { width: 32, height: 32 });
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(0, 0, 32, 32).data];
        }"""
    )
    np.testing.assert_array_equal(np.reshape(seen, (32, 32, 4))[..., :3], scorer.decode(photo))


def jpegs(images: np.ndarray) -> dict[str, bytes]:
    """Return photos of many sizes, qualities and orientations."""
    rng = np.random.default_rng(0)
    files = {}
    for index, image in enumerate(images):
        width, height = (int(side) for side in rng.integers(40, 700, 2))
        photo = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        options = {"quality": int(rng.integers(60, 96)), "progressive": bool(index % 2)}
        exif = with_orientation(int(rng.integers(1, 9)))
        files[f"{index:03}.jpg"] = encode(photo, "JPEG", exif=exif, **options)
    return files


def test_jpegs_get_the_label_of_the_scorer(page: Page, scorer: Scorer, images: np.ndarray) -> None:
    files = jpegs(images[:JPEGS])
    rows = answers_of_page(page, files)

    probabilities = scorer.score(
        np.stack([scorer.decode(content) for content in files.values()])
    ).probabilities
    expected = [scorer.classes[best] for best in probabilities.argmax(axis=1)]
    agreement = np.mean([row["label"] == label for row, label in zip(rows.values(), expected, strict=True)])
    assert agreement >= MIN_JPEG_AGREEMENT


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.heic", HEIC, "HEIC"),
        ("notes.pdf", b"%PDF-1.7" + bytes(200), "PDF is not supported"),
        ("song.mp3", b"no picture at all", "not a picture"),
        ("cut.png", encode(scene(90, 60), "PNG")[:2000], "cut short, damaged"),
        ("empty.png", b"", "empty"),
        (
            "bomb.png",
            encode(scene(9, 9), "PNG")[:16] + b"\0\1\0\0\0\1\0\0\x08\x02" + bytes(40),
            "65536 x 65536",
        ),
    ],
)
def test_a_file_that_cannot_be_classified_gets_a_reason(
    page: Page, name: str, content: bytes, words: str
) -> None:
    page.set_input_files("#files", upload(name, content, ""))

    expect(page.locator("#reading .verdict")).to_have_text("No answer")
    expect(page.locator("#reading .detail")).to_contain_text(words)
    page.set_input_files("#files", CAT)  # the next photo gets an answer
    expect(page.locator("#timing")).to_have_text(ANSWERED)


@pytest.mark.thorough
def test_a_run_has_no_thresholds_so_the_page_is_never_unsure(
    open_page: Callable[..., Page],
    trained: Trained,
    site: Site,
    shared_cache: Path,
    tmp_path: Path,
) -> None:
    options = ("--format=web", f"--output={tmp_path}", f"--runtime={site.folder / 'runtime'}")
    with working_in(trained.folder, shared_cache):
        result = export(trained.run_id, *options)
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "cnn-web/model/model.json").read_text())
    assert not {"uncertain", "ood"} & card.keys()

    noise = encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "PNG")
    with served(tmp_path / "cnn-web") as bare:
        page = open_page(bare.url)
        page.set_input_files("#files", upload("noise.png", noise, "image/png"))
        expect(page.locator("#reading .detail")).to_have_text(re.compile(r"^[<>]?\d+% sure$"))
        expect(page.locator("#about")).to_contain_text(trained.run_id)
