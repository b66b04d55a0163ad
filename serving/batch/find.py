"""Find the images that a user names: files, folders, patterns, URLs, lists of paths, Parquet files."""

# Strings, because creating a million Path objects takes seconds.
# ruff: noqa: PTH112, PTH118, PTH207
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.names import IMAGE_SUFFIXES
from serving.batch import tables
from serving.batch.remote import Stamp, file_system, is_url, list_url, local_path, storage_errors
from serving.batch.tables import TablePart, table_parts

PATH_LIST = ".txt"


@dataclass
class Found:
    """The images to classify, in order and without duplicates.

    Attributes:
        files: local paths, relative if the user named a relative path, and URLs.
        stamps: state of the files that a remote file system listed; that of others is queried later.
        tables: parts of Parquet files.
        unreadable: folders that cannot be read, with the reason.
        folder: where relative paths begin, for a worker in another folder.
    """

    files: list[str] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    tables: list[TablePart] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    folder: str = ""

    @property
    def count(self) -> int:
        """Return the number of images."""
        return len(self.files) + sum(part.rows for part in self.tables)

    def locate(self, path: str) -> str:
        """Return where the file at one of the paths is."""
        return path if is_url(path) else os.path.join(self.folder, path)


def find_images(paths: Sequence[str], exclude: Mapping[str, Path] | None = None) -> Found:
    """Return the files at `paths`, in that order; the files of a folder sorted by name, before subfolders.

    A folder stands for the files below it that have the suffix of an image and are not hidden. A file that is
    named itself, or by a pattern such as `photos/**/*.jpg`, is taken whatever its name, with two exceptions:
    a .parquet file stands for the images in its rows, and a .txt file for the image files that it names, one
    path or URL per line. A URL may name any of these. Symbolic links are followed; a file that is reachable
    by two paths is returned once.

    Args:
        exclude: folders that the command writes to, by option; files in them are not returned.

    Raises:
        UsageError: a path does not exist or is in `exclude`, or a pattern matches nothing.
        CifarError: there are no images.
    """
    excluded = exclude or {}
    search = _Search(excluded.values())
    for path in map(os.path.expanduser, map(local_path, paths)):  # a shell does not expand ~ in quotes
        if is_url(path):
            search.add_url(path)
        elif os.path.lexists(path):
            for option, folder in excluded.items():
                if _is_in(os.path.realpath(path), os.path.realpath(folder)):
                    raise UsageError(f"{path} is in {folder}, where {option} writes: choose another {option}")
            search.add(path)
        elif glob.has_magic(path):
            if not (matches := sorted(glob.iglob(path, recursive=True))):
                raise UsageError(f"{path} matches no file")
            for match in matches:
                search.add(match)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not search.found.count:
        reasons = "".join(f"\n  {folder}: {why}" for folder, why in search.found.unreadable.items())
        raise CifarError(f"no images in {', '.join(paths)} (looked for {' '.join(IMAGE_SUFFIXES)}){reasons}")
    return search.found


class _Search:
    """A search that remembers the real paths that it has visited."""

    def __init__(self, exclude: Iterable[Path]) -> None:
        self.found = Found()
        self._excluded = [os.path.realpath(folder) for folder in exclude]
        self._folders: set[str] = set()
        self._files: set[str] = set()

    def is_excluded(self, real: str) -> bool:
        return any(_is_in(real, root) for root in self._excluded)

    def add(self, path: str) -> None:
        if os.path.isdir(path):
            self._add_folder(path, os.path.realpath(path))
        else:
            self._add_named(path, os.path.realpath(path))

    def add_url(self, url: str) -> None:
        for file, stamp in list_url(url, IMAGE_SUFFIXES).items():
            self._add_named(file, file)
            self.found.stamps[file] = stamp

    def _add_named(self, path: str, real: str) -> None:
        """Add a file that the user named, or that matches a pattern or a URL."""
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if suffix == tables.SUFFIX and real not in self._files:
            self._files.add(real)
            self.found.tables += table_parts(path)
        elif suffix == PATH_LIST:
            for line in _read_lines(path):
                named = local_path(line)
                self._add_file(named, named if is_url(named) else os.path.realpath(named))
        else:
            self._add_file(path, real)

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
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    self._add_file(entry.path, target)
            pending += reversed(subfolders)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _read_lines(path: str) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UsageError: the file does not exist or is not UTF-8.
        CifarError: the storage does not answer.
    """
    system, inside = file_system(path)
    with storage_errors(path):
        content: bytes = system.cat_file(inside)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a list of paths: it is not UTF-8") from error
    return [line for line in (line.rstrip("\r") for line in lines) if line]


def _visible_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir() raises for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
