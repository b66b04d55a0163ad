"""The crop and resize of `scorer.preprocess` as an ONNX graph, so that a file needs no code around it.

The graph repeats Pillow's resize bit by bit: weights in double, rounded to 22 binary places, and pixels
rounded to 8 bits between the horizontal and the vertical pass (libImaging/Resample.c). ONNX's own `Resize`
with `antialias=1` does not: ONNX Runtime computes the weights in float32, which changed a pixel by one level
in 81 of 440 images (sides of 1 to 3,000 pixels, random values).

The graph starts with decoded pixels: EXIF orientation and transparency are left to the caller.
"""

from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, inliner, numpy_helper
from onnxscript import opset20, script
from onnxscript.onnx_types import UINT8

# Their types allow only tensors; `script` accepts Python constants as well, and shapes.
op: Any = opset20
uint8: Any = UINT8

ONE = 2**22  # a weight of 1 in Pillow's fixed point
HALF = 2**21
# MatMulInteger multiplies bytes, so a weight is split into three digits of base 256. They are stored unsigned
# with an offset: signed bytes may overflow on CPUs that add two products in 16 bits.
BASE = 256
OFFSET = 128
PLACES = numpy_helper.from_array(np.array([[1], [BASE], [BASE**2]], np.int32))


def preprocessing_graph(size: int) -> GraphProto:
    """Return a graph that crops an image to its central square and resizes it, bicubic with antialiasing.

    Input `image`: uint8 (H, W, 3), RGB, H and W > 0. Output `images`: uint8 (1, size, size, 3).
    """
    middles = numpy_helper.from_array(np.arange(size)[:, None] + 0.5)

    @script(default_opset=op)
    def graph(image):  # type: ignore[no-untyped-def]
        shape = op.Shape(image, start=0, end=2)
        side = op.ReduceMin(shape, keepdims=1)
        start = (shape - side) / 2
        square = op.Slice(image, start, start + side, [0, 1])

        # Weights (size, side): for each output pixel, those of the input pixels.
        length = op.Cast(side, to=TensorProto.DOUBLE)
        scale = length / size
        stretch = op.Max(scale, 1.0)
        middle = op.Constant(value=middles) * scale
        reach = stretch * 2.0
        first = op.Max(op.Floor(middle - reach + 0.5), 0.0)
        end = op.Min(op.Floor(middle + reach + 0.5), length)
        pixel = op.Cast(op.Range(0, op.Squeeze(side), 1), to=TensorProto.DOUBLE)
        x = op.Abs((pixel - middle + 0.5) * (1.0 / stretch))
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        weights = op.Where(x < 1.0, near, op.Where(x < 2.0, far, op.CastLike(0.0, x)))
        weights = op.Where(op.And(pixel >= first, pixel < end), weights, op.CastLike(0.0, x))
        weights = weights * (1.0 / op.ReduceSum(weights, [1]))

        # Round half away from zero.
        fixed = op.Sign(weights) * op.Floor(op.Abs(weights) * ONE + 0.5)
        rest = op.Floor((fixed + OFFSET) / BASE)
        high = op.Floor((rest + OFFSET) / BASE)
        digits = op.Concat(fixed - rest * BASE, rest - high * BASE, high, axis=0) + OFFSET
        table = op.Transpose(op.Cast(digits, to=TensorProto.UINT8), perm=[1, 0])

        narrow = _resize_rows(op.Transpose(square, perm=[0, 2, 1]), table)
        small = _resize_rows(op.Transpose(narrow, perm=[2, 1, 0]), table)
        images = op.Unsqueeze(op.Transpose(small, perm=[2, 0, 1]), [0])
        return images  # noqa: RET504 - the name of the output

    model = graph.to_model_proto(input_types=[uint8["H", "W", 3]], output_types=[uint8[1, size, size, 3]])
    return inliner.inline_local_functions(model).graph


@script(default_opset=op)
def _resize_rows(rows, table):  # type: ignore[no-untyped-def]
    """Resize rows of pixels, uint8 (..., ..., side), with a table of digits, uint8 (side, 3 * size)."""
    zero = op.Cast(0, to=TensorProto.UINT8)
    sums = op.MatMulInteger(rows, table, zero, op.Cast(OFFSET, to=TensorProto.UINT8))
    by_digit = op.Reshape(sums, [0, 0, 3, -1])
    fixed = op.ReduceSum(by_digit * op.Constant(value=PLACES), [2], keepdims=0)
    # Division rounds towards zero and not down, which only changes negative values; they become 0 anyway.
    levels = op.Clip((fixed + HALF) / ONE, 0, 255)
    return op.Cast(levels, to=TensorProto.UINT8)
