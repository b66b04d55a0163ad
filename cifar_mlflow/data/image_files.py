"""The image files below a folder, and the pixels of such a file: training data that the user collected.

Unlike those of a request, the files are trusted: they may be of any size. TIFF, HEIC and AVIF, which the
scorer does not read, are converted first.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from cifar_mlflow.errors import CifarError
from cifar_mlflow.names import IMAGE_SUFFIXES, printable
from cifar_mlflow.scorer.phone_formats import bmp_file, in_common_format, on_white
from cifar_mlflow.scorer.preprocess import BadImage, decode_image

SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")
# Folders that programs create beside the user's own; the second has smaller copies of the images.
JUNK_FOLDERS = ("__MACOSX", "@eaDir")
# The first bytes of images, for files without an image suffix. TIFF is left out: RAW photos begin like one.
_IMAGE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0", re.DOTALL)
_TIFF = re.compile(rb"II\*\0|MM\0\*")
SHOWN_NAMES = 5


def visible_folders(folder: Path) -> list[Path]:
    """Return the subfolders that are not hidden or junk, sorted.

    Raises:
        CifarError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_junk(path.name))
    except OSError as error:
        raise _unreadable_folder(error) from None


def images_directly_in(folder: Path) -> list[Path]:
    """Return the image files in the folder itself."""
    return [path for path in folder.iterdir() if not _is_junk(path.name) and _is_image(path)]


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files at any depth below `folder`, sorted, and everything else.

    A file counts as an image if its name has an image suffix or its first bytes are those of an image.
    Symbolic links are followed, but not to a folder above, which may hold other classes. A broken link with
    an image suffix counts as an image, so that it is reported and not silently left out.

    Raises:
        CifarError: a folder cannot be read.
    """
    images: list[Path] = []
    others: list[Path] = []
    visited: set[str] = set()
    top = folder.resolve()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in visited or Path(real) in top.parents:
            folders.clear()
            if real not in visited:
                others.append(Path(current))
            continue
        visited.add(real)
        others += [Path(current, name) for name in folders if _is_junk(name)]
        folders[:] = [name for name in folders if not _is_junk(name)]
        for name in names:
            path = Path(current, name)
            (images if not _is_junk(name) and _is_image(path) else others).append(path)
    return sorted(images), others


def name_strays(strays: Iterable[Path]) -> str:
    """Return the names of files with their counts: `Thumbs.db (2), notes.txt`."""
    counts = Counter(printable(path.name) for path in strays)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in counts.most_common(SHOWN_NAMES)]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} other names" if more else "")


def decode_file(path: Path, size: int) -> np.ndarray:
    """Return uint8 (size, size, 3) RGB; see `decode_image`.

    Raises:
        BadImage: it is not an image that can be read.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    data = bmp_file(_tiff_pixels(data)) if _TIFF.match(data) else in_common_format(data, trusted=True)
    return decode_image(data, size, trusted=True)


def _is_junk(name: str) -> bool:
    return name[0] == "." or name in JUNK_FOLDERS


def _is_image(path: Path) -> bool:
    has_suffix = path.suffix.lower() in SUFFIXES
    try:
        if not path.is_file():  # reading a pipe would block
            return has_suffix and path.is_symlink()
        if has_suffix:
            return True
        with path.open("rb") as file:
            return _IMAGE.match(file.read(16)) is not None
    except OSError:
        return has_suffix


def _refuse(error: OSError) -> None:
    raise _unreadable_folder(error)


def _unreadable_folder(error: OSError) -> CifarError:
    return CifarError(f"Cannot read the folder {error.filename}: {error.strerror}")


def _tiff_pixels(data: bytes) -> np.ndarray:
    """Return the first page of a TIFF as uint8 (H, W, 3): upright, transparent parts white."""
    try:
        image: Image.Image = TiffImageFile(io.BytesIO(data))
        if image.mode in ("I", "F"):
            raise BadImage("unsupported_format", "A TIFF needs 8 or 16 bits per channel; save it with those.")
        if image.mode.startswith("I;16"):  # convert() would clip the values at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return on_white(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except Exception:  # Pillow's parser raises many kinds of errors
        raise BadImage(
            "truncated_image", "The TIFF cannot be decoded: it is cut short, damaged, or of a rare variant."
        ) from None
