"""Load exported programs (.pt2), refusing archives that could run code.

`torch.export.load` unpickles every record that the archive declares as pickled, and loads native code that
lies in it. A program that `train` logs needs neither, so anything but plain tensors is refused first.
"""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from cifar_mlflow.export.files import damaged

_RECORDS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/cifar_mlflow\.json)"
)


def load_program(path: Path) -> nn.Module:
    """Load an exported program; no other file beside it is opened.

    Returns:
        A module that takes float32 (N, 3, H, W) in 0..1 on the CPU and returns logits.

    Raises:
        CifarError: the file is damaged, or holds a pickle or native code.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        _refuse_code(content)
        content.seek(0)
        return torch.export.load(content).module()
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise damaged(path, error) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise damaged(path, error) from error


def _refuse_code(program: io.BytesIO) -> None:
    with zipfile.ZipFile(program) as archive:
        names = archive.namelist()
        if unknown := [name for name in names if not _RECORDS.fullmatch(name)]:
            raise ValueError(f"an unexpected record {unknown[0]}")
        if len(set(names)) < len(names):
            raise ValueError("a record that occurs twice")
        for name in names:
            content = io.BytesIO(archive.read(name))
            if name.endswith("_config.json"):
                entries = json.load(content)["config"].values()
                if any(entry["use_pickle"] or entry["tensor_meta"] is None for entry in entries):
                    raise ValueError(f"a pickle in {name}")
            elif name.endswith(".pt"):
                torch.load(content, weights_only=True)  # tensors only, or it raises
