"""A PostgreSQL of our own: from Debian's packages, on loopback, in a temporary folder."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

NOBODY = "nobody"  # PostgreSQL refuses to run as root


def missing() -> str | None:
    """Return why PostgreSQL cannot be started, None if it can."""
    return None if _binary("initdb") else "PostgreSQL's server is not installed (Debian: postgresql)"


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Postgres:
    """A server that can be taken away and brought back.

    Args:
        settings: options of the server. By default, it may lose data when the machine crashes.
    """

    def __init__(self, port: int, settings: str = "-c fsync=off") -> None:
        self.port = port
        self._settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user: dict[str, Any] = {"user": NOBODY} if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(self.folder, NOBODY)
        self._call("initdb", "-D", str(self.folder / "data"), "-U", "tester", "-A", "trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} {self._settings}"
        self._call("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"),
                   "-o", options)  # fmt: skip

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, name: str, *arguments: str) -> None:
        binary = _binary(name)
        assert binary
        done = subprocess.run(
            [binary, *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,  # the server keeps it open
            stderr=subprocess.DEVNULL,
            timeout=60,
            **self._user,
        )
        assert done.returncode == 0, (name, arguments)
