"""Random input to a real server: no response with 5xx, no crash, no growth of memory."""

import base64
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from tests.serving.app.conftest import RED, Server, image

pytestmark = pytest.mark.slow

IMAGES_PER_REQUEST = 100


def test_the_service_conforms_to_its_openapi_document(server: Server) -> None:
    import schemathesis  # slow to import
    from schemathesis.core.result import Ok
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= 9
    for operation in operations:
        if operation.path in ("/ping", "/health", "/version"):
            continue  # like MLflow's server, they declare JSON for a body that is not JSON

        @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            # A schema cannot say which bytes are an image, so valid requests may be refused.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        conforms()


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """Return an image with bytes changed, removed, repeated or inserted from another one."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        length = chance.choice((1, 1, 2, 4, 32))
        match chance.randrange(5):
            case 0:
                data[at : at + length] = chance.randbytes(length)
            case 1:
                data[at : at + length] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[max(0, at - length) : at] * chance.choice((1, 8))
            case 4:
                other = chance.choice(seeds)
                start = chance.randrange(len(other))
                data[at : at + length] = other[start : start + length]
    return bytes(data)


def resident_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.parametrize("files", [5_000, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_mutated_images_are_answered_or_refused(server: Server, files: int) -> None:
    chance = random.Random(0)
    kinds = ("png", "jpeg", "webp", "gif", "bmp")
    seeds = [image((200, 90, 30), size, kind) for kind in kinds for size in ((32, 32), (61, 47))]
    seeds += [image(colour, (16, 16), "png") for colour in ("red", "lime")]

    def batches(count: int) -> Iterator[list[str]]:
        for _ in range(count):
            yield [base64.b64encode(mutated(seeds, chance)).decode() for _ in range(IMAGES_PER_REQUEST)]

    codes: dict[str, int] = {}
    with requests.Session() as session:
        for images in batches(files // IMAGES_PER_REQUEST):
            answer = session.post(f"{server.url}/predict", json={"images": images}, timeout=120)
            assert answer.status_code in (200, 400), answer.text[:300]
            for prediction in answer.json().get("predictions", []):
                error = prediction["error"]
                codes[error["code"] if error else "ok"] = codes.get(error["code"] if error else "ok", 0) + 1
    assert sum(codes.values()) >= 0.9 * files
    assert codes["ok"] > files / 20
    assert {"not_an_image", "truncated_image"} <= codes.keys()
    assert "internal_error" not in codes
    assert resident_mb(server) < 650  # it grew to 450 within 20,000 images, and stayed there until 50,000
    assert server.predict(RED).ok
