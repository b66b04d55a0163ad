"""Copy files into one folder per class."""

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
from serving.batch.lock import exclusive_writer
from serving.batch.rows import path_text

NOT_SURE = "not_sure"
# Characters that some file system does not allow in a name, or gives a special meaning.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]|^\.+|[. ]+$')
MAX_NAME_BYTES = 200  # file systems allow 255


class Sorter:
    """Copies files into `<directory>/<class>/`, or into `<directory>/not_sure/` if the answer is uncertain.

    Nothing is overwritten: if the name is taken by a file with other content, the copy gets a number. A file
    that was copied before is not copied again.
    """

    def __init__(self, directory: Path, classes: Sequence[str]) -> None:
        self.directory = directory
        self._folders = dict(zip(classes, folder_names(classes), strict=True))

    def copy(self, path: str, label: str, uncertain: bool) -> None:
        """Copy a file to the folder of its class.

        Raises:
            CifarError: the file cannot be copied.
        """
        folder = self.directory / (NOT_SURE if uncertain else self._folders[label])
        source = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target in _candidate_paths(folder, source):
                if not os.path.lexists(target):
                    with temporary_sibling(target) as beside:
                        shutil.copy2(source, beside)
                        beside.rename(target)
                    return
                if target.is_file() and filecmp.cmp(source, target, shallow=False):
                    return
        except OSError as error:
            raise CifarError(
                f"{path_text(path)} cannot be copied to {folder} ({error.strerror or error})"
            ) from error


@contextmanager
def sorter(directory: Path, classes: Sequence[str]) -> Iterator[Sorter]:
    """Yield a sorter that has exclusive use of `directory`, which is created.

    Raises:
        CifarError: another process sorts into the directory, or it cannot be written.
    """
    with exclusive_writer(directory, directory / ".sorting.lock"):
        yield Sorter(directory, classes)


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a folder name per class: valid on any file system, unique, and not NOT_SURE."""
    taken = {NOT_SURE}
    names = []
    for name in classes:
        unique = next(option for option in numbered(valid_name(name), "") if option not in taken)
        taken.add(unique)
        names.append(unique)
    return names


def _candidate_paths(folder: Path, source: Path) -> Iterator[Path]:
    return (folder / name for name in numbered(source.stem, source.suffix))


def valid_name(name: str) -> str:
    """Return a name that any file system allows, as like this one as possible."""
    return _FORBIDDEN.sub("_", name).encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "_"


def numbered(stem: str, suffix: str) -> Iterator[str]:
    """Yield the name, and then names with a number from 2 on."""
    yield f"{stem}{suffix}"
    yield from (f"{stem}-{number}{suffix}" for number in count(2))
