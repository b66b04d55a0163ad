"""Find the images that a user names: files, folders, patterns."""

# Strings, because creating a million Path objects takes seconds.
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
    """The files to classify, in order and without duplicates.

    Attributes:
        files: paths, relative if the user named a relative path.
        unreadable: folders that cannot be read, with the reason.
    """

    files: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def find_images(paths: Sequence[str], exclude: Path | None = None) -> Found:
    """Return the files at `paths`, in that order; the files of a folder sorted by name, before sub-folders.

    A folder stands for the files below it that have the suffix of an image and are not hidden. A file that is
    named itself, or by a pattern such as `photos/**/*.jpg`, is taken whatever its name. Symbolic links are
    followed; a file that can be reached on two ways is returned once.

    Args:
        exclude: a folder; files in it are not returned.

    Raises:
        UsageError: a path does not exist or is in `exclude`, or a pattern matches nothing.
        CifarError: there are no images.
    """
    search = _Search(exclude)
    for path in map(os.path.expanduser, paths):  # a shell does not expand ~ in quotes
        if os.path.lexists(path):
            if search.is_excluded(os.path.realpath(path)):
                raise UsageError(f"{path} is in {exclude}, where the copies go: choose another --sort-into")
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
    """A search that remembers the real paths that it has visited."""

    def __init__(self, exclude: Path | None) -> None:
        self.found = Found()
        self._excluded = os.path.realpath(exclude) if exclude else None
        self._folders: set[str] = set()
        self._files: set[str] = set()

    def is_excluded(self, real: str) -> bool:
        root = self._excluded
        return root is not None and (real == root or real.startswith(os.path.join(root, "")))

    def add(self, path: str) -> None:
        add = self._add_folder if os.path.isdir(path) else self._add_file
        add(path, os.path.realpath(path))

    def _add_file(self, path: str, real: str) -> None:
        if real not in self._files and not self.is_excluded(real):
            self._files.add(real)
            self.found.files.append(path)

    def _add_folder(self, path: str, real: str) -> None:
        pending = [(path, real)]  # no recursion: folders may be nested deeper than Python's stack
        while pending:
            folder, real = pending.pop()
            if real in self._folders or self.is_excluded(real):
                continue
            self._folders.add(real)
            try:
                entries = sorted(_visible_entries(folder), key=lambda entry: entry.name)
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
            pending += reversed(subfolders)


def _visible_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir() raises for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
