"""The cost of the outputs beside the logits: the distance in every answer, the class maps on request.

The network is the released one, in int8, as `cifar-mlflow register pretrained` serves it.

Distance: the peer is the same network without this output, first in the engine alone, then in the service.
Two services take turns of a few seconds.

Explanation: the peer is the same request without `explain=true`, to the same service. The image is a PNG of
32x32 pixels or a JPEG of 640x427. Both kinds of requests take turns.

Figures are medians over the turns. The load comes from wrk, as in `service`.
"""

import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.harness import Row, progress
from benchmarks.load import SCRIPT, Sending, png, post, running, wait_until_idle, wrk
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.models.card import ServedCard
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.scorer.predictor import CARD_FILE, MODEL_FILE
from serving.registry.mlflow_server import Server
from serving.registry.pretrained import FOLDER, SCORER
from serving.registry.scorer_folder import sha256, write_scorer_folder

RELEASED = FOLDER / SCORER
DISTANCE_AT_MOST = 3  # % of the throughput
EXPLAINED_AT_MOST = 1.1  # of the time of a plain request
BUSY = 16  # connections


def measure(
    batches: tuple[int, ...] = (1, 16, 64),
    connections: tuple[int, ...] = (1, 16),
    rounds: int = 40,
    turns: int = 7,
    seconds: int = 2,
) -> list[Row]:
    """Measure the engine in `rounds`, then the service in `turns` of `seconds` for each side."""
    images = load_dataset(DataConfig(dataset="sample")).split("test").images
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "post.lua").write_text(SCRIPT)
        sendings = requests_for(folder, images[0])
        without = without_distance(folder / "without")
        return [
            *(engine_row(without, images[:batch], rounds) for batch in batches),
            distance_row(without, folder, sendings["PNG"], turns, seconds),
            *explained_rows(folder, sendings, connections, turns, seconds),
        ]


def requests_for(folder: Path, image: np.ndarray) -> dict[str, Sending]:
    small, photo = folder / "image.png", folder / "photo.jpg"
    small.write_bytes(png(image))
    Image.fromarray(load_sample_image("china.jpg")).save(photo, quality=90)
    return {"PNG": Sending(small, "image/png"), "JPEG": Sending(photo, "image/jpeg")}


def without_distance(scorer: Path) -> Path:
    """Write the scorer folder of the released network without the distance; return it."""
    network = onnx.load(RELEASED / MODEL_FILE)
    # ONNX Runtime removes the nodes that only this output needs.
    network.graph.output.remove(next(each for each in network.graph.output if each.name == "distance"))
    file = scorer.with_suffix(".onnx")
    onnx.save(network, file)
    card = ServedCard.model_validate_json((RELEASED / CARD_FILE).read_bytes())
    write_scorer_folder(scorer, file, card.model_copy(update={"files": {MODEL_FILE: sha256(file)}}))
    return scorer


def engine_row(without: Path, images: np.ndarray, rounds: int) -> Row:
    engines = {"with": Engine(RELEASED / MODEL_FILE), "without": Engine(without / MODEL_FILE)}
    repeats = max(1, 64 // len(images))
    rates: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(rounds + 1):
        for side, engine in engines.items():
            begun = time.perf_counter()
            for _ in range(repeats):
                engine.run(images)
            if number:  # the first round is a warm-up
                rates[side].append(repeats * len(images) / (time.perf_counter() - begun))
    for engine in engines.values():
        engine.close()
    return _lost(f"throughput lost to the distance, engine, batches of {len(images)}", "images/s", rates)


def distance_row(without: Path, folder: Path, sending: Sending, turns: int, seconds: int) -> Row:
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with service(RELEASED, folder) as usual, service(without, folder) as smaller:
        for number in range(turns + 1):
            for side, server in (("with", usual), ("without", smaller)):
                rate = wrk(f"{server.address}/predict", sending, BUSY, seconds).rate
                wait_until_idle(server)
                if number:
                    rates[side].append(rate)
    progress(f"  distance: {rates}")
    return _lost(f"throughput lost to the distance, service, PNG, {BUSY} connections", "requests/s", rates)


def explained_rows(
    folder: Path, sendings: dict[str, Sending], connections: tuple[int, ...], turns: int, seconds: int
) -> list[Row]:
    rows = []
    with service(RELEASED, folder) as server:
        paths = {"explained": "/predict?explain=true", "plain": "/predict"}
        for kind, sending in sendings.items():
            assert post(server.address + paths["explained"], sending)["predictions"][0]["explanation"]
            for count in connections:
                rates: dict[str, list[float]] = {"explained": [], "plain": []}
                for number in range(turns + 1):
                    for side, path in paths.items():
                        rate = wrk(server.address + path, sending, count, seconds).rate
                        wait_until_idle(server)
                        if number:
                            rates[side].append(rate)
                progress(f"  {kind}, {count} connections: {rates}")
                explained, plain = (statistics.median(rates[side]) for side in paths)
                rows.append(
                    Row(
                        f"explain=true: time of a request, {kind}, {count} connections",
                        f"{explained:.0f} requests/s (explained)",
                        f"{plain:.0f} requests/s (plain)",
                        plain / explained,
                        "of its time",
                        at_most=EXPLAINED_AT_MOST,
                    )
                )
    return rows


def service(scorer: Path, folder: Path) -> AbstractContextManager[Server]:
    options = ("--model-uri", str(scorer), "--request-log", f"sqlite:///{folder}/requests.db")
    return running("cifar_mlflow", "serve", *options, health="/ping")


def _lost(what: str, unit: str, rates: dict[str, list[float]]) -> Row:
    loaded, free = statistics.median(rates["with"]), statistics.median(rates["without"])
    return Row(
        what,
        f"{loaded:.0f} {unit} (with)",
        f"{free:.0f} {unit} (without)",
        100 * (1 - loaded / free),
        "%",
        at_most=DISTANCE_AT_MOST,
    )
