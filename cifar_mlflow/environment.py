"""Describe the environment of a run: commit, library versions, processes and environment variables."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from cifar_mlflow.errors import UsageError

LIBRARIES = ("torch", "torchvision", "mlflow", "numpy", "pandas", "scikit-learn", "cifar-mlflow")
_HTTP_REMOTE = re.compile(r"(https?://)(?:[^@/\s]*@)?([^@\s]+?)(?:\.git)?/?")
_SSH_REMOTE = re.compile(r"(?:ssh://)?[^@/\s]+@([\w.-]+)(?::\d+/|[:/])(\S+?)(?:\.git)?/?")
LONGEST_PATIENCE_SECONDS = 7 * 24 * 3600


def git_state() -> dict[str, str]:
    """Return tags for the commit, for uncommitted changes of the code, and for the address of the repository.

    Empty outside a git checkout.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}  # installed: a checkout around the environment would be another project's
    commit = _git("rev-parse", "HEAD") or "none"
    # Changed documents and results do not change what a run does.
    dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/pyproject.toml")
    page = web_address(_git("remote", "get-url", "origin") or "")
    return {
        "mlflow.source.git.commit": commit,
        "git.dirty": str(bool(dirty)).lower(),
        **({"mlflow.source.git.repoURL": page} if page else {}),
    }


def web_address(remote: str) -> str | None:
    """Return the address of a git remote's web page, without user and password; None if it has none."""
    if match := _HTTP_REMOTE.fullmatch(remote):
        return f"{match[1]}{match[2]}"
    if match := _SSH_REMOTE.fullmatch(remote):
        return f"https://{match[1]}/{match[2]}"
    return None


@functools.cache
def commit_link() -> str | None:
    """Return a link in Markdown to the commit of the code; None if it or the remote is unknown."""
    state = git_state()
    page, commit = state.get("mlflow.source.git.repoURL"), state.get("mlflow.source.git.commit", "none")
    if page is None or commit == "none":
        return None
    changed = " with changes that were not committed" if state["git.dirty"] == "true" else ""
    return f"[{commit[:10]}]({page}/commit/{commit}){changed}"


def _git(*arguments: str) -> str | None:
    """Return the output of a git command; None if it fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the libraries that influence a result."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions


@functools.cache  # takes a tenth of a second, which a search would spend for each trial
def installed_packages() -> str:
    """Return all installed packages in the format of a requirements file."""
    # Each access to `metadata` parses a file again.
    described = [dist.metadata for dist in importlib.metadata.distributions()]
    packages = {f"{metadata['Name']}=={metadata['Version']}" for metadata in described}
    return "\n".join(sorted(packages, key=str.lower)) + "\n"


def world_size() -> int:
    """Return the number of processes that torchrun started for this job; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Return the rank of this process; only rank 0 talks to MLflow."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def rank_prefix() -> str:
    """Return the prefix of this process's lines on the terminal: empty for rank 0, else `[rank 1] `."""
    return f"[rank {rank()}] " if rank() else ""


def default_cache_dir() -> Path:
    """Return the default of `cache_dir`: $CIFAR_MLFLOW_CACHE, else cifar_mlflow in the user's cache folder.

    Raises:
        UsageError: the user has no home directory.
    """
    if override := os.environ.get("CIFAR_MLFLOW_CACHE"):
        return Path(override)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "cifar_mlflow")
    try:
        return Path.home() / ".cache" / "cifar_mlflow"
    except RuntimeError:  # no HOME and no account
        raise UsageError(
            "this user has no home directory for the cache: choose a folder with --cache-dir or "
            "CIFAR_MLFLOW_CACHE"
        ) from None


def patience_seconds(default: float = 120) -> float:
    """Return how long a call waits for an unavailable server or database: $CIFAR_MLFLOW_PATIENCE, if set.

    Raises:
        UsageError: the variable is not a number from 0 to a week's seconds.
    """
    text = os.environ.get("CIFAR_MLFLOW_PATIENCE", str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= LONGEST_PATIENCE_SECONDS:  # NaN is not in the range either
        raise UsageError(
            f"the environment variable CIFAR_MLFLOW_PATIENCE must be a number of seconds from 0 to "
            f"{LONGEST_PATIENCE_SECONDS}, but it is {text!r}"
        )
    return seconds


def available_cores() -> int:
    """Return the number of cores that taskset, Slurm or a container's cpuset leave to this process."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
