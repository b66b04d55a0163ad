"""Requests and responses of the Open Inference Protocol v2: JSON, with tensors in it or as bytes after it.

The protocol: https://github.com/kserve/open-inference-protocol. Tensors as bytes are its extension
`binary_tensor_data`, as Triton defines it: values are little-endian and in row-major order, a BOOL takes one
byte, and each element of BYTES is preceded by its length in 4 bytes.
"""

import json
import math
from itertools import chain
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import Response

from serving.app.champion import ServedModel
from serving.app.classify import Classified
from serving.app.errors import Refusal
from serving.app.schemas import InferInput, InferRequest, ModelMetadata, TensorMetadata
from serving.app.uploads import check_json_size, too_many_images

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnxruntime_onnx"
LENGTH_HEADER = "Inference-Header-Content-Length"
INPUTS = {"image": "BYTES", "pixels": "UINT8"}
OUTPUTS = {"label": "BYTES", "class_index": "INT64", "probabilities": "FP32", "uncertain": "BOOL"}
_ELEMENT_LENGTH_BYTES = 4

_PIXEL_VALUES: TypeAdapter[list[int]] = TypeAdapter(
    Annotated[list[Annotated[int, Field(strict=True, ge=0, le=255)]], Field(fail_fast=True)]
)


def model_metadata(served: ServedModel) -> ModelMetadata:
    """Return the names, types and shapes of the model's tensors."""
    shapes = {"pixels": [-1, -1, -1, 3], "probabilities": [-1, len(served.scorer.classes)]}

    def tensors(datatypes: dict[str, str]) -> list[TensorMetadata]:
        return [
            TensorMetadata(name=name, datatype=datatype, shape=shapes.get(name, [-1]))
            for name, datatype in datatypes.items()
        ]

    return ModelMetadata(
        name=served.name,
        versions=[served.version],
        platform=PLATFORM,
        inputs=tensors(INPUTS),
        outputs=tensors(OUTPUTS),
    )


def read_request(body: bytes, json_bytes: int | None, max_images: int) -> tuple[InferRequest, list[Any]]:
    """Return the request, and its images as `decode` takes them.

    Args:
        json_bytes: length of the JSON at the start of the body; None if all of it is JSON.

    Raises:
        Refusal: 413, it has too many images or JSON values; 400, it is not valid.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise _bad_tensor(f"{LENGTH_HEADER} exceeds the length of the body.")
    header, binary = body[:json_bytes], memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    check_json_size(header)
    try:
        request = InferRequest.model_validate_json(header)
    except ValidationError as error:
        raise _invalid_json(error) from None
    (tensor,) = request.inputs
    if request.outputs and len({each.name for each in request.outputs}) < len(request.outputs):
        raise _bad_tensor("An output is requested twice.")
    _check_shape(tensor, max_images)
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(binary):
        raise _bad_tensor(
            f"binary_data_size must be the number of bytes after the JSON, {len(binary)}; "
            f"{LENGTH_HEADER} tells where the JSON ends."
        )
    if (size is None) == (tensor.data is None):
        raise _bad_tensor("The input needs either data or binary_data_size.")
    read = _read_images if tensor.name == "image" else _read_pixels
    return request, read(tensor, binary)


def write_response(
    request: InferRequest, served: ServedModel, classified: Classified, request_id: str
) -> Response:
    """Return the response to a request whose images all have an answer."""
    assert classified.scores is not None
    answers = classified.answers
    values = {
        "label": np.array([answer["label"] for answer in answers], object),
        "class_index": np.array([answer["class_index"] for answer in answers], "<i8"),
        "probabilities": classified.scores.probabilities.astype("<f4"),
        "uncertain": classified.scores.uncertain,
    }
    outputs, parts = [], []
    for name, as_bytes in _wanted_outputs(request).items():
        output = {"name": name, "datatype": OUTPUTS[name], "shape": list(values[name].shape)}
        if as_bytes:
            parts.append(_to_bytes(values[name]))
            outputs.append({**output, "parameters": {"binary_data_size": len(parts[-1])}})
        else:
            outputs.append({**output, "data": values[name].ravel().tolist()})
    content = {
        "model_name": served.name,
        "model_version": served.version,
        "parameters": {"request_id": request_id},
        "outputs": outputs,
    }
    if request.id is not None:
        content["id"] = request.id
    header = json.dumps(content).encode()
    if not parts:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *parts]),
        headers={LENGTH_HEADER: str(len(header))},
        media_type="application/octet-stream",
    )


def _check_shape(tensor: InferInput, max_images: int) -> None:
    shape = tensor.shape
    if tensor.datatype != INPUTS[tensor.name]:
        raise _bad_tensor(f"The input {tensor.name} has the datatype {INPUTS[tensor.name]}.")
    if tensor.name == "image" and shape[1:] not in ([], [1]):
        raise _bad_tensor("The shape of image is [n] or [n, 1].")
    if tensor.name == "pixels" and (len(shape) != 4 or shape[3] != 3 or 0 in shape):
        raise _bad_tensor("The shape of pixels is [n, height, width, 3], with at least one pixel.")
    if shape[0] == 0:
        raise Refusal(400, "no_pictures", "The input has no images.")
    if shape[0] > max_images:
        raise too_many_images(max_images)


def _read_images(tensor: InferInput, binary: memoryview) -> list[Any]:
    """Return image files as bytes, or the values of the JSON."""
    if tensor.data is not None:
        return _flat(tensor.data, tensor.shape)
    images, position = [], 0
    for _ in range(tensor.shape[0]):
        start = position + _ELEMENT_LENGTH_BYTES
        position = start + int.from_bytes(binary[position:start], "little")
        if position > len(binary):
            break
        images.append(bytes(binary[start:position]))
    if position != len(binary):
        raise _bad_tensor(
            "The bytes of image must hold as many elements as its shape says, each a length in 4 bytes "
            "followed by an image file."
        )
    return images


def _read_pixels(tensor: InferInput, binary: memoryview) -> list[Any]:
    """Return an array, uint8 (H, W, 3), for each image."""
    if tensor.data is None:
        if len(binary) != math.prod(tensor.shape):
            raise _wrong_length()
        return list(np.frombuffer(binary, np.uint8).reshape(tensor.shape))
    try:
        values = _PIXEL_VALUES.validate_python(_flat(tensor.data, tensor.shape))
    except ValidationError:
        raise _bad_tensor("The data of pixels are whole numbers from 0 to 255.") from None
    return list(np.array(values, np.uint8).reshape(tensor.shape))


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """Return the elements of a tensor in row-major order; `data` is flat, or nested as the shape says."""
    if not (data and isinstance(data[0], list)):
        if len(data) != math.prod(shape):
            raise _wrong_length()
        return data
    rows: list[Any] = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            raise _wrong_length()
        rows = list(chain.from_iterable(rows))
    return rows


def _wanted_outputs(request: InferRequest) -> dict[str, bool]:
    """Return the names of the outputs to send, and whether each follows the JSON as bytes."""
    default = request.parameters.binary_data_output
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, default)
    choices = {output.name: output.parameters.binary_data for output in request.outputs}
    return {name: default if choice is None else choice for name, choice in choices.items()}


def _to_bytes(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return values.tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(len(each).to_bytes(_ELEMENT_LENGTH_BYTES, "little") + each for each in encoded)


def _invalid_json(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "not_json", f"The body is not JSON, or not up to {LENGTH_HEADER}.")
    place = ".".join(map(str, first["loc"])) or "body"
    reason = "it has unknown names" if first["type"] == "value_error" else first["msg"]
    return _bad_tensor(f"{place}: {reason}.")


def _wrong_length() -> Refusal:
    return _bad_tensor("The data of the input do not have the length that its shape says.")


def _bad_tensor(message: str) -> Refusal:
    return Refusal(400, "bad_tensor", message)
