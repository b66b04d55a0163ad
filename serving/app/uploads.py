"""The images of a request to /predict: files of a form, the bytes of one image, or JSON."""

import sys
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.app.errors import Refusal, bad_json
from serving.app.schemas import ImageList, SingleImage

FIELD = "file"
MAX_FILENAME = 255
# Parsing takes up to 2 µs per value, during which no other request is answered.
MAX_JSON_VALUES = 30_000
MAX_OTHER_FIELDS = 100

_JSON_BODY: TypeAdapter[SingleImage | ImageList] = TypeAdapter(SingleImage | ImageList)


class Upload(NamedTuple):
    """An image as it was sent: bytes, or a JSON value that `image_bytes` decodes."""

    content: Any
    filename: str | None = None


async def read_uploads(request: Request, limit: int) -> list[Upload]:
    """Return the images of the request, at least one.

    Raises:
        Refusal: 415 for another content type, 413 for more than `limit` images, 400 for a malformed body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, limit)
    if kind == "application/json":
        return _read_json(await request.body(), limit)
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return [Upload(await request.body())]
    raise Refusal(
        415,
        "unsupported_media_type",
        "Send multipart/form-data with files, the bytes of an image as image/*, or application/json.",
    )


def check_json_size(body: bytes) -> None:
    """Raise Refusal (413) for JSON with too many values: parsed, they take many times its size."""
    # Base64 has none of these characters; commas alone would miss lists in lists.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise Refusal(
            413, "too_many_values", f"The JSON of a request may have at most {MAX_JSON_VALUES:,} values."
        )


def too_many_images(limit: int) -> Refusal:
    return Refusal(413, "too_many_pictures", f"A request may have at most {limit:,} images.")


def _read_json(body: bytes, limit: int) -> list[Upload]:
    check_json_size(body)
    try:
        content = _JSON_BODY.validate_json(body)
    except ValidationError as error:
        hint = 'Send {"image": "<base64>"} or {"images": ["<base64>", …]}.'
        raise bad_json(error, _no_images(hint)) from None
    if isinstance(content, SingleImage):
        return [Upload(content.image)]
    if len(content.images) > limit:
        raise too_many_images(limit)
    return [Upload(value) for value in content.images]


async def _read_form(request: Request, limit: int) -> list[Upload]:
    parser = _FormParser(
        # A part called `file` without a file name counts as text; Latin-1 keeps its bytes.
        Headers({"content-type": f"{request.headers['content-type']}; charset=latin-1"}),
        request.stream(),
        max_files=limit,
        max_fields=limit + MAX_OTHER_FIELDS,
        max_part_size=sys.maxsize,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise too_many_images(limit) from None
        raise Refusal(400, "bad_form", "The multipart/form-data is malformed.") from None
    if not parser.complete:
        raise Refusal(400, "bad_form", "The multipart/form-data is cut short.")
    values = form.getlist(FIELD)
    if not values:
        raise _no_images(f"The form has no field called {FIELD}.")
    if len(values) > limit:
        raise too_many_images(limit)
    uploads = [await _upload(value) for value in values]
    await form.close()
    return uploads


class _FormParser(MultiPartParser):
    """Keeps files in memory: the middleware bounds the bodies, and the disk may be read-only."""

    spool_max_size = sys.maxsize
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _upload(value: UploadFile | str) -> Upload:
    if isinstance(value, str):
        return Upload(value.encode("latin-1"))
    return Upload(await value.read(), _base_name(value.filename) if value.filename else None)


def _base_name(name: str) -> str:
    """Return the name without the folders that some clients send."""
    name = name.encode("latin-1").decode("utf-8", "replace")
    return name.replace("\\", "/").rpartition("/")[2][:MAX_FILENAME]


def _no_images(message: str) -> Refusal:
    return Refusal(400, "no_pictures", message)
