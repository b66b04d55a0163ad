"""Make ONNX Runtime compute an output of a file only when a caller asks for it.

ONNX Runtime computes all nodes of a graph, whichever outputs a caller names. It runs a branch of an `If` only
if its condition holds.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cifar_mlflow.scorer.engine import CLASS_MAP, EXPLAIN


def compute_on_demand(path: Path) -> None:
    """Move the computation of the output `class_map` into a branch; without that output, change nothing.

    The graph gets the input `explain`, a bool. It may be left out and is false then, and the output is empty.
    """
    model = onnx.load(path)
    graph = model.graph
    outputs = {output.name: output for output in graph.output}
    if CLASS_MAP not in outputs:
        return
    graph.output.remove(outputs.pop(CLASS_MAP))
    needed = _nodes_before(graph, [*outputs])
    nodes = [node for index, node in enumerate(graph.node) if index in needed]
    branch = [node for index, node in enumerate(graph.node) if index not in needed]
    inner = f"{CLASS_MAP}_computed"  # names within a branch differ from those around it
    for node in branch:
        node.output[:] = [inner if name == CLASS_MAP else name for name in node.output]
    computed = helper.make_tensor_value_info(inner, TensorProto.FLOAT, None)
    nothing = helper.make_tensor_value_info(f"{CLASS_MAP}_empty", TensorProto.FLOAT, [0, 0, 0, 0])
    empty = numpy_helper.from_array(np.empty((0, 0, 0, 0), np.float32))
    choice = helper.make_node(
        "If",
        [EXPLAIN],
        [CLASS_MAP],
        then_branch=helper.make_graph(branch, "explain", [], [computed]),
        else_branch=helper.make_graph(
            [helper.make_node("Constant", [], [nothing.name], value=empty)], "nothing", [], [nothing]
        ),
    )
    del graph.node[:]
    graph.node.extend([*nodes, choice])
    graph.input.append(helper.make_tensor_value_info(EXPLAIN, TensorProto.BOOL, []))
    graph.initializer.append(numpy_helper.from_array(np.array(False), EXPLAIN))
    graph.output.append(helper.make_tensor_value_info(CLASS_MAP, TensorProto.FLOAT, ["", "", "", ""]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _nodes_before(graph: onnx.GraphProto, outputs: list[str]) -> set[int]:
    """Return the indices of the nodes that these outputs need."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needed: set[int] = set()
    pending = [*outputs]
    while pending:
        index = producers.get(pending.pop())
        if index is not None and index not in needed:
            needed.add(index)
            pending.extend(graph.node[index].input)
    return needed
