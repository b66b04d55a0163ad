"""Check an InferenceService against the models in the package `kserve`, made from its published schema.

Runs where `kserve` is installed; prints the parts that do not fit, and then exits with 1. (The loader of
the package ignores unknown names.)
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client.models
import yaml

SCALARS = {"str": str, "int": int, "float": float, "bool": bool}


def problems(value: Any, kind: str, place: str) -> list[str]:
    """Return the parts that do not fit a type of the generated models, such as `list[V1Container]`."""
    mismatch = [f"{place} is not of type {kind}"]
    if collection := re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind):
        if type(value) is not (list if collection[1] else dict):
            return mismatch
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        item_kind = collection[1] or collection[2]
        return [each for key, item in items for each in problems(item, item_kind, f"{place}.{key}")]
    if kind in SCALARS:
        return [] if type(value) is SCALARS[kind] else mismatch
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None)
    if model is None:  # `object`: anything
        return []
    if not isinstance(value, dict):
        return mismatch
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    found = [f"{place}.{key} does not exist in {kind}" for key in value if key not in names]
    for key in value.keys() & names.keys():
        found += problems(value[key], model.openapi_types[names[key]], f"{place}.{key}")
    return found


found = problems(yaml.safe_load(Path(sys.argv[1]).read_text()), "V1beta1InferenceService", "")
print("\n".join(found))
sys.exit(bool(found))
