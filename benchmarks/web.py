"""A web folder in headless Chromium: time to the first answer, rate of the live view, and the same answers.

python -m benchmarks.web FOLDER [--photos DIR --model-uri models:/cifar10@champion]

The answers for all photos below DIR are compared with those of the scorer that the service uses: for the
files as they are, and for the same pixels as PNG files. The page has no connection then.
"""

import csv
import io
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageOps
from playwright.sync_api import Page, expect, sync_playwright

from cifar_mlflow.scorer.predictor import Scorer
from serving.registry.loader import load_scorer
from serving.web.server import create_server

ROUNDS = 5
LIVE_SECONDS = 5
TIMEOUT_MS = 120_000
PHOTO = Path(__file__).parents[1] / "serving" / "examples" / "cat.jpg"
ARGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def first_answer(page: Page) -> float:
    """Reload the page and return the seconds until it shows the answer for a photo."""
    start = time.perf_counter()
    page.reload(wait_until="domcontentloaded")  # before that, the page does not listen yet
    page.set_input_files("#files", PHOTO)
    expect(page.locator("#timing")).to_contain_text("Answered")
    return time.perf_counter() - start


def answers_of_page(page: Page, files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Have the page, loaded again, classify files and return the rows of its CSV file by file name."""
    page.reload()  # so that no earlier answers can be downloaded
    with tempfile.TemporaryDirectory() as folder:  # Playwright sends 50 MB at most
        paths = [Path(folder, name) for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content)
        page.set_input_files("#files", paths)
        button = page.get_by_role("button", name="Download as CSV")
        expect(button).to_be_enabled(timeout=TIMEOUT_MS)
    with page.expect_download() as download:
        button.click()
    rows = csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8")))
    return {row["file"]: row for row in rows}


def photo_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all JPEG files below a folder by their path, in alphabetical order."""
    return {
        path.relative_to(folder).as_posix().replace("/", "-"): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg")
    }


def as_png(content: bytes) -> bytes:
    """Return the pixels of an image file, upright, as a PNG file."""
    file = io.BytesIO()
    ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB").save(file, "png")
    return file.getvalue()


def compare(page: Page, scorer: Scorer, files: Mapping[str, bytes]) -> str:
    """Describe how often the page gives the label of the scorer, and how far its probabilities differ."""
    rows = answers_of_page(page, files)
    scores = scorer.score(np.stack([scorer.decode(content) for content in files.values()]))
    same, gaps = 0, []
    for name, probabilities in zip(files, scores.probabilities, strict=True):
        row = rows[name]
        same += row["label"] == scorer.classes[int(probabilities.argmax())]
        gaps.append(max(abs(float(row[c]) - p) for c, p in zip(scorer.classes, probabilities, strict=True)))
    return (
        f"same label {same} of {len(files)} ({same / len(files):.1%}), "
        f"probabilities differ by {statistics.median(gaps):.6f} (median), {max(gaps):.6f} (max)"
    )


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model-uri", default="models:/cifar10@champion", show_default=True)
def main(folder: Path, photos: Path | None, model_uri: str) -> None:
    """Measure and print."""
    server = create_server(folder, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path="/usr/bin/chromium", args=ARGS
        )
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        expect(page.locator("#offline")).to_be_visible(timeout=60_000)
        times = [first_answer(page) for _ in range(ROUNDS)]
        print(
            f"first answer after a warm load: median {statistics.median(times):.2f} s, max {max(times):.2f} s"
        )
        page.get_by_role("button", name="Live view").click()
        page.wait_for_timeout(1000 * LIVE_SECONDS)
        print(f"live: {page.locator('#rate').inner_text()}")
        context.set_offline(True)
        server.shutdown()
        print(f"first answer without a connection: {first_answer(page):.2f} s")
        if photos:
            scorer = load_scorer(model_uri)
            files = photo_files(photos)
            print(f"photos: {compare(page, scorer, files)}")
            print(f"as PNG: {compare(page, scorer, {n: as_png(content) for n, content in files.items()})}")
            scorer.close()
        context.close()


if __name__ == "__main__":
    main()
