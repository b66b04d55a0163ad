"""Copies of files, sorted into one folder a class."""

import filecmp
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import temporary_sibling
from serving.batch.files import only_writer
from serving.batch.rows import as_text

NOT_SURE = "not_sure"
# What some file system does not allow in a name, or gives a meaning.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]|^\.+|[. ]+$')
LONGEST_NAME = 200  # bytes; file systems allow 255


class Sorter:
    """Copies files into `<directory>/<class>/`, and into `<directory>/not_sure/` where the model is not sure.

    Nothing is ever overwritten: a name that is taken by other content gets a number. A file of which a copy
    is there is not copied again.
    """

    def __init__(self, directory: Path, classes: Sequence[str]) -> None:
        self.directory = directory
        self._folders = dict(zip(classes, folder_names(classes), strict=True))

    def copy(self, path: str, label: str, uncertain: bool) -> None:
        """
        Raises:
            CifarError: the file cannot be copied.
        """
        folder = self.directory / (NOT_SURE if uncertain else self._folders[label])
        source = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target in _names(folder, source):
                if not os.path.lexists(target):
                    with temporary_sibling(target) as beside:
                        shutil.copy2(source, beside)
                        beside.rename(target)
                    return
                if target.is_file() and filecmp.cmp(source, target, shallow=False):
                    return
        except OSError as error:
            raise CifarError(
                f"{as_text(path)} cannot be copied to {folder} ({error.strerror or error})"
            ) from error


@contextmanager
def sorter(directory: Path, classes: Sequence[str]) -> Iterator[Sorter]:
    """The only one at work in `directory`, which is made.

    Raises:
        CifarError: another process sorts into it, or it cannot be written.
    """
    with only_writer(directory, directory / ".sorting.lock"):
        yield Sorter(directory, classes)


def folder_names(classes: Sequence[str]) -> list[str]:
    """A name for each class that is one folder on any file system, unlike the others and NOT_SURE."""
    taken = {NOT_SURE}
    names = []
    for name in classes:
        plain = _FORBIDDEN.sub("_", name).encode()[:LONGEST_NAME].decode(errors="ignore") or "_"
        unique = next(choice for choice in _numbered(plain, "") if choice not in taken)
        taken.add(unique)
        names.append(unique)
    return names


def _names(folder: Path, source: Path) -> Iterator[Path]:
    return (folder / name for name in _numbered(source.stem, source.suffix))


def _numbered(stem: str, suffix: str) -> Iterator[str]:
    yield f"{stem}{suffix}"
    yield from (f"{stem}-{number}{suffix}" for number in count(2))
