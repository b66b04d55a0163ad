"""Get the two files of onnxruntime-web that run a network in a browser."""

import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import write_errors

PACKAGE = "onnxruntime-web"
# The build without WebGPU and WebGL; it uses one thread unless it is told otherwise.
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
NPM_FILES = ("package.json", "package-lock.json")  # the lock pins version and integrity
NPM_OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1")
HERE = Path(__file__).parent
_LOCK = (HERE / "package-lock.json").read_bytes()
VERSION: str = json.loads(_LOCK)["packages"][f"node_modules/{PACKAGE}"]["version"]
HOW_TO_GET = f"install npm (part of Node.js), or pass --runtime DIR with the files of {PACKAGE} {VERSION}"


@dataclass(frozen=True)
class Runtime:
    """Where the files are; `version` is that of the package, or unknown."""

    folder: Path
    version: str

    def __str__(self) -> str:
        return f"{PACKAGE} {self.version}"


def open_runtime(folder: Path) -> Runtime:
    """Return the runtime in a folder of the user: the unpacked package, or its folder `dist`.

    Raises:
        UsageError: a file is missing.
    """
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    if missing := [name for name in FILES if not (dist / name).is_file()]:
        raise UsageError(
            f"--runtime {folder} lacks {' and '.join(missing)}: name a folder with the npm package {PACKAGE}"
        )
    description = next(
        (file for file in (dist / "package.json", dist.parent / "package.json") if file.is_file()), None
    )
    try:
        content = json.loads(description.read_bytes()) if description else None
    except (OSError, ValueError):
        content = None
    match content:
        case {"name": str(name), "version": str(version)} if name == PACKAGE:
            return Runtime(dist, version)
    return Runtime(dist, "of unknown version")


def installed_runtime(cache: Path) -> Runtime | None:
    """Return the runtime that the lock file pins if it is in the cache."""
    folder = _place_in(cache)
    return Runtime(folder, VERSION) if folder.is_dir() else None


def install_runtime(cache: Path) -> Runtime:
    """Have npm download the runtime that the lock file pins into the cache and check its integrity.

    Raises:
        UsageError: there is no npm.
        CifarError: npm failed, or the cache cannot be written to.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"--format web: {HOW_TO_GET}")
    folder = _place_in(cache)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _download(npm, Path(scratch))
            _keep(Path(scratch) / "node_modules" / PACKAGE, folder)
    return Runtime(folder, VERSION)


def _place_in(cache: Path) -> Path:
    return cache / PACKAGE / f"{VERSION}-{hashlib.sha256(_LOCK).hexdigest()[:12]}"


def _download(npm: str, folder: Path) -> None:
    for name in NPM_FILES:
        shutil.copy(HERE / name, folder)
    result = subprocess.run([npm, "ci", *NPM_OPTIONS], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        lines = [line.removeprefix("npm error ") for line in result.stderr.splitlines() if line.strip()]
        raise CifarError(
            f"npm cannot install {PACKAGE} {VERSION} ({'; '.join(lines[:2]) or 'it gives no reason'}): "
            "are you online? Or pass --runtime DIR with the files of that package"
        )


def _keep(package: Path, installed: Path) -> None:
    """Move the files that are needed into the cache: the package has 140 MB of other builds."""
    kept = package / "kept"
    kept.mkdir()
    for name in FILES:
        (package / "dist" / name).replace(kept / name)
    (package / "package.json").replace(kept / "package.json")  # tells the version to `open_runtime`
    try:
        kept.rename(installed)
    except OSError:
        if not installed.is_dir():  # otherwise another process was faster
            raise
