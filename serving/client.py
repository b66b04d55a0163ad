"""A small client of the service: pictures in, answers out, errors as exceptions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests


class ServiceError(Exception):
    """What the service refused: `status`, `code` for programs, `message` for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class Client:
    """Asks one server. Threads must not share it.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: of a server that has one.
        timeout: seconds without a sign of the server.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def predict(self, pictures: Sequence[Path | str | bytes], top_k: int = 3) -> dict[str, Any]:
        """The answer of POST /predict, with a prediction for each picture: a path or the bytes of a file.

        Raises:
            ServiceError: the request or every picture is refused.
        """
        files = [
            (
                "file",
                ("picture", each) if isinstance(each, bytes) else (Path(each).name, Path(each).read_bytes()),
            )
            for each in pictures
        ]
        answer: dict[str, Any] = self._post("/predict", files=files, params={"top_k": top_k}).json()
        return answer

    def feedback(
        self, request_id: str, item: int = 0, *, correct: bool | None = None, label: str | None = None
    ) -> None:
        """Say whether an answer was right, or what it should have been."""
        body = {"request_id": request_id, "item": item, "correct": correct, "label": label}
        self._post("/feedback", json=body)

    def _post(self, route: str, **content: Any) -> requests.Response:
        response = self._session.post(self._url + route, timeout=self._timeout, **content)
        if not response.ok:
            try:
                error = response.json()["error"]
            except (ValueError, KeyError, TypeError):
                error = {"code": "no_service", "message": "the answer is none of the service's"}
            raise ServiceError(response.status_code, error["code"], error["message"])
        return response
