"""Which files are meant by what a user names: files, folders, patterns."""

# Text instead of a Path for each of a million files.
# ruff: noqa: PTH112, PTH118, PTH207
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cifar_mlflow.errors import CifarError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass
class Found:
    """Each file once, in the order in which they are to be classified, and folders that may not be read.

    Attributes:
        files: as the user would write them: relative where what was named is.
        unreadable: folders, and why.
    """

    files: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def find_images(paths: Sequence[str], leave_out: Path | None = None) -> Found:
    """The files at `paths`, in that order; those of a folder by name, before those of its sub-folders.

    A folder stands for the files below it that are called like images; hidden ones are passed over. What is
    named itself, or by a pattern such as `photos/**/*.jpg`, counts whatever its name. Symbolic links are
    followed, and a file that can be reached in two ways is found once.

    Args:
        leave_out: a folder below which nothing is found.

    Raises:
        UsageError: a path that does not exist or is in `leave_out`, or a pattern that matches nothing.
        CifarError: there is no image at all.
    """
    search = _Search(leave_out)
    for path in map(os.path.expanduser, paths):  # which a shell does not do in quotes
        if os.path.lexists(path):
            if search.is_left_out(os.path.realpath(path)):
                raise UsageError(f"{path} is in {leave_out}, where the copies go: choose another --sort-into")
            search.add(path)
        elif glob.has_magic(path):
            if not (matches := sorted(glob.iglob(path, recursive=True))):
                raise UsageError(f"{path} matches no file")
            for match in matches:
                search.add(match)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not search.found.files:
        reasons = "".join(f"\n  {folder}: {why}" for folder, why in search.found.unreadable.items())
        raise CifarError(f"no images in {', '.join(paths)} (looked for {' '.join(SUFFIXES)}){reasons}")
    return search.found


class _Search:
    """Remembers where it has been, by the real paths."""

    def __init__(self, leave_out: Path | None) -> None:
        self.found = Found()
        self._left_out = os.path.realpath(leave_out) if leave_out else None
        self._folders: set[str] = set()
        self._files: set[str] = set()

    def is_left_out(self, real: str) -> bool:
        root = self._left_out
        return root is not None and (real == root or real.startswith(os.path.join(root, "")))

    def add(self, path: str) -> None:
        add = self._add_folder if os.path.isdir(path) else self._add_file
        add(path, os.path.realpath(path))

    def _add_file(self, path: str, real: str) -> None:
        if real not in self._files and not self.is_left_out(real):
            self._files.add(real)
            self.found.files.append(path)

    def _add_folder(self, path: str, real: str) -> None:
        waiting = [(path, real)]  # no recursion: folders may be nested deeper than Python's stack
        while waiting:
            folder, real = waiting.pop()
            if real in self._folders or self.is_left_out(real):
                continue
            self._folders.add(real)
            try:
                entries = sorted(_visible(folder), key=lambda entry: entry.name)
            except OSError as error:
                self.found.unreadable[folder] = error.strerror or str(error)
                continue
            subfolders = []
            for entry in entries:
                inside = os.path.join(real, entry.name)
                target = os.path.realpath(inside) if entry.is_symlink() else inside
                if _is_folder(entry):
                    subfolders.append((entry.path, target))
                elif entry.name.lower().endswith(SUFFIXES):
                    self._add_file(entry.path, target)
            waiting += reversed(subfolders)


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir() raises for a link that leads to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
