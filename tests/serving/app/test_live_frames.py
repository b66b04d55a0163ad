"""Frames of a live view: answered like other images, but left out of what monitoring derives from images."""

import base64
import re
import sqlite3
import time
from collections.abc import Callable

import numpy as np
import pytest
import requests

from serving.monitoring.drift import MINIMUM, reference_of
from tests.serving.app.conftest import BLUE, RED, Server, Store, until

pytestmark = pytest.mark.slow

CLASSES = ("red", "green", "blue")
LIVE = {"X-Live-Frame": "1"}


def metric(server: Server, name: str) -> float | None:
    """Return the value of a series in /metrics, None if there is none."""
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    found = re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def logged(server: Server) -> dict[int | None, int]:
    """Return the number of rows in the request log that are marked as live, and that are not."""
    with sqlite3.connect(f"file:{server.folder / 'requests.db'}?mode=ro", uri=True) as log:
        return dict(log.execute("select live, count(*) from request_log group by live").fetchall())


def test_live_frames_are_sampled_in_the_log_and_count_neither_as_drift_nor_as_predictions(
    store: Store, start: Callable[..., Server]
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    reference = reference_of(images, rng.dirichlet(np.ones(len(CLASSES)), 500), CLASSES, "val")
    store.promote(store.add(reference=reference))
    server = start(store.uri).wait()
    begun = time.monotonic()
    frames = MINIMUM + 50
    with requests.Session() as session:
        for _ in range(frames):
            headers = {"Content-Type": "image/png", **LIVE}
            answer = session.post(f"{server.url}/predict", data=RED, headers=headers, timeout=60)
            assert answer.json()["predictions"][0]["label"] == "red"
    assert metric(server, 'cifar_requests_total{route="live view",status="200"}') == frames
    assert metric(server, 'cifar_requests_total{route="/predict",status="200"}') is None
    assert metric(server, 'cifar_predictions_total{label="red"}') == 0
    assert metric(server, 'cifar_drift_psi{what="label"}') is None
    seconds = time.monotonic() - begun

    body = {"images": [base64.b64encode(BLUE).decode()] * MINIMUM}
    assert server.post("/predict", body).ok
    assert metric(server, 'cifar_predictions_total{label="blue"}') == MINIMUM
    assert (metric(server, 'cifar_drift_psi{what="label"}') or 0) > 0.25
    until(lambda: logged(server).get(0) == MINIMUM)
    assert 1 <= logged(server)[1] <= min(seconds + 1, frames - 1)
    assert not [line for line in server.lines() if line.get("route") == "live view"]

    refused = server.predict(b"no image", headers=LIVE)
    assert refused.status_code == 400
    until(lambda: [line for line in server.lines() if line.get("route") == "live view"])
