"""The pictures of a request to /predict: a form with files, the bytes of one picture, or JSON."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.app.errors import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
MAX_FILENAME = 255
MAX_JSON_VALUES = 300_000
MAX_OTHER_FIELDS = 100


class Upload(NamedTuple):
    """A picture as it came: bytes, or what `image_bytes` makes bytes of."""

    content: Any
    filename: str | None = None


def uploads(content_type: str, body: bytearray, most: int) -> list[Upload]:
    """The pictures of a body.

    Raises:
        Refusal: 415 for another content type, 413 for more than `most` pictures, 400 for what is malformed.
    """
    media_type, options = parse_options_header(content_type)
    kind = media_type.decode("latin-1")
    if kind == "multipart/form-data":
        found = _of_form(body, options.get(b"boundary", b""), most)
    elif kind == "application/json":
        found = _of_json(body, most)
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        found = [Upload(bytes(body))]
    else:
        raise Refusal(
            415,
            "unsupported_media_type",
            "Send multipart/form-data with files, the bytes of a picture as image/*, or application/json.",
        )
    return found


def parsed_json(body: bytearray) -> Any:
    """What the body says in JSON.

    Raises:
        Refusal: it is none, or has so many values that they would take many times the memory of the body.
    """
    if body.count(b",") > MAX_JSON_VALUES:  # base64 has no comma
        raise Refusal(413, "too_many_values", f"The JSON of a request may have {MAX_JSON_VALUES:,} values.")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of 5,000 digits; nested too deeply
        raise Refusal(400, "not_json", "The body is not JSON.") from None


def _of_json(body: bytearray, most: int) -> list[Upload]:
    content = parsed_json(body)
    if isinstance(content, dict) and content.keys() == {"image"}:
        return [Upload(content["image"])]
    if isinstance(content, dict) and content.keys() == {"images"} and isinstance(content["images"], list):
        if len(content["images"]) > most:
            raise _too_many(most)
        if content["images"]:
            return [Upload(value) for value in content["images"]]
        raise _no_pictures("The list of images is empty.")
    raise _no_pictures('Send {"image": "<base64>"} or {"images": ["<base64>", …]}.')


def _of_form(body: bytearray, boundary: bytes, most: int) -> list[Upload]:
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(bytes(body))
        parser.finalize()
    except (MultipartParseError, ValueError):
        raise Refusal(400, "bad_form", "The multipart/form-data is malformed.") from None
    if not form.ended:
        raise Refusal(400, "bad_form", "The multipart/form-data is cut short.")
    if not form.files:
        raise _no_pictures(f"The form has no field called {FIELD}.")
    return form.files


class _Form:
    """Gathers the parts called `file` while the parser goes through a body."""

    def __init__(self, most: int) -> None:
        self.files: list[Upload] = []
        self.ended = False
        self._parts = 0
        self._most = most

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._most + MAX_OTHER_FIELDS:
            raise _too_many(self._most)
        self._disposition, self._name, self._value = b"", b"", b""
        self._content = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != FIELD.encode():
            return
        if len(self.files) >= self._most:
            raise _too_many(self._most)
        name = options.get(b"filename")
        self.files.append(Upload(bytes(self._content), _base_name(name) if name else None))

    def _end(self) -> None:
        self.ended = True


def _base_name(name: bytes) -> str:
    """Without folders, as some clients send them."""
    return name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2][:MAX_FILENAME]


def _no_pictures(message: str) -> Refusal:
    return Refusal(400, "no_pictures", message)


def _too_many(most: int) -> Refusal:
    return Refusal(413, "too_many_pictures", f"A request may have {most} pictures.")
