"""A small client of the service: images in, answers out, errors as exceptions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests


class ServiceError(Exception):
    """The service refused a request: `status`, `code` for programs, `message` for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class Client:
    """A client of one server; threads must not share it.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: the key, if the server requires one.
        timeout: seconds to wait for a connection, and between two bytes of the response.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def predict(self, pictures: Sequence[Path | str | bytes], top_k: int = 3) -> dict[str, Any]:
        """Classify images, given as paths or as bytes of files, and return the response of POST /predict.

        Args:
            top_k: number of likeliest classes per image.

        Raises:
            ServiceError: the service refused the request, or every image.
            OSError: a file cannot be read, or the service cannot be reached or does not respond in time.
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
        """Report whether an answer was right, or the right label.

        Args:
            request_id: from the response of `predict`.
            item: index of the image in its request.
            correct: whether the label was right.
            label: the right label, one of the model's classes.

        Raises:
            ServiceError: the service refused the feedback.
            OSError: the service cannot be reached or does not respond in time.
        """
        body = {"request_id": request_id, "item": item, "correct": correct, "label": label}
        self._post("/feedback", json=body)

    def _post(self, route: str, **content: Any) -> requests.Response:
        response = self._session.post(self._url + route, timeout=self._timeout, **content)
        if not response.ok:
            try:
                error = response.json()["error"]
            except (ValueError, KeyError, TypeError):
                error = {"code": "no_service", "message": "the response does not come from the service"}
            raise ServiceError(response.status_code, error["code"], error["message"])
        return response
