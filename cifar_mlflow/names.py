"""Names from outside (files, folders, classes) as text that can be shown and stored."""

import os
import re
from pathlib import Path
from typing import Any

SAMPLE_NAME = "cifar10-sample"

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def printable(name: str) -> str:
    r"""Escape what is not Unicode text, so that the result can be printed, stored and sent as UTF-8.

    Python represents a byte of a file name that is not UTF-8 as a lone surrogate, which no terminal, database
    or JSON parser accepts: byte 0xE4 becomes the four characters `\xe4`.
    """
    return _SURROGATE.sub(_escape, name)


def data_name(dataset: Any, data_dir: Any = None) -> str:
    """Return the name of the data set that the settings of the same names stand for.

    Invalid settings, which are reported elsewhere, stand for cifar10, the default.
    """
    if dataset == "folder" and isinstance(data_dir, str | Path):
        place = Path(os.path.realpath(os.path.expanduser(data_dir)))  # noqa: PTH111 - no error for ~nobody
        return printable(place.name) or "folder"
    return SAMPLE_NAME if dataset == "sample" else "cifar10"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
