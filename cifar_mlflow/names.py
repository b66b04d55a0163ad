"""Names from outside (files, folders, classes) as text that can be shown and stored."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CIFAR10 = "cifar10"  # also the registered model
PRETRAINED = "pretrained"  # stands for the network that is released with this package
SAMPLE_NAME = "cifar10-sample"
# Of the images that are found in a folder, to train on and to classify; training reads TIFF, too.
# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif",
    ".heic", ".heif", ".hif", ".avif",
)
# fmt: on
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")  # of a file that names the path and label of each image

RUN_ID = re.compile(r"[0-9a-f]{32}")  # of MLflow
# Lone surrogates, and control characters other than tab and newline.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(name: str) -> str:
    r"""Escape what is not Unicode text, so that the result can be printed, stored and sent as UTF-8.

    Python represents a byte of a file name that is not UTF-8 as a lone surrogate, which no terminal, database
    or JSON parser accepts: byte 0xE4 becomes the four characters `\xe4`. Control characters other than tab
    and newline are escaped as well: with them, the name of a file could clear or recolour the terminal.
    """
    return _UNPRINTABLE.sub(_escape, name)


def listed(texts: Iterable[str], limit: int = 10, separator: str = ", ") -> str:
    """Return the first texts for a message, and how many more there are."""
    every = list(texts)
    more = len(every) - limit
    return separator.join([*every[:limit], *([f"and {more:,} more"] if more > 0 else [])])


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number and what it counts: `1 file`, `2,000 files`.

    Args:
        plural: the noun in the plural, if that is not only an s longer.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def data_name(dataset: Any, data_dir: Any = None) -> str:
    """Return the name of the data set that the settings `dataset` and `data_dir` select.

    For invalid settings, which are reported elsewhere, it is cifar10, the default.
    """
    dataset = dataset.partition("+")[0] if isinstance(dataset, str) else dataset  # cifar10+DIR
    if dataset == "folder" and isinstance(data_dir, str | Path):
        place = Path(os.path.realpath(os.path.expanduser(data_dir)))  # noqa: PTH111 - no error for ~nobody
        if place.suffix.lower() in TABLE_SUFFIXES and not place.is_dir():
            return printable(f"{place.parent.name}-{place.stem}")
        return printable(place.name) or "folder"
    return SAMPLE_NAME if dataset == "sample" else CIFAR10


def registered_name(dataset: str | None, data: str) -> str:
    """Return the default name of the registered model for a data set.

    Models of CIFAR-10 and of its sample share one name. A model of other images never gets it: it would be a
    challenger of CIFAR-10's champion.

    Args:
        dataset: the setting of that name.
        data: the name of the data set.
    """
    if dataset != "folder":
        return CIFAR10
    name = re.sub(r"[^\w. -]", "_", data).strip(" .")[:90] or "images"
    return f"{name}-images" if name.lower() == CIFAR10 else name


def model_option(name: str) -> str:
    """Return a space and the option of `promote` and `rollback` for a registered model; empty for cifar10."""
    return "" if name == CIFAR10 else f" --registered-model {shlex.quote(name)}"


def champion_option(name: str) -> str:
    """Return a space and the option of `serve` and `classify` for a champion; empty for that of cifar10."""
    return "" if name == CIFAR10 else f" --model-uri {shlex.quote(f'models:/{name}@champion')}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte that this surrogate stands for
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
