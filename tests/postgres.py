"""A real PostgreSQL server for tests: thrown away at the end, on loopback only, and restarted as a test likes."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MISSING = "no PostgreSQL here (Debian: apt-get install postgresql)"


class Server:
    """One cluster in a folder of its own."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def make(self) -> None:
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "ablate", "--no-sync", "-E", "UTF8")
        # nobody pulls the machine's plug here; with fsync a restart would sync each file of each database, for seconds
        settings = f"listen_addresses='127.0.0.1'\nport={self.port}\nunix_socket_directories=''\nfsync=off\n"
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self.folder / "log"), "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        """End it; ``mode`` ``immediate`` is as good as pulling the plug."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def restart(self, mode: str = "immediate") -> None:
        self.stop(mode)
        self.start()

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "ablate", name)
        return f"postgresql+psycopg://ablate@127.0.0.1:{self.port}/{name}"

    def guard(self, user: str, password: str) -> None:
        """Let in a user by password alone, and to everything. The others need none."""
        rules = self._data / "pg_hba.conf"
        rule = f"host all {user} 127.0.0.1/32 scram-sha-256\n"
        if rule not in rules.read_text():
            rules.write_text(rule + rules.read_text())
        self.sql(f"DROP ROLE IF EXISTS {user}", f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'")
        self.sql("SELECT pg_reload_conf()")

    def sql(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, each in a transaction of its own."""
        options = [option for statement in statements for option in ("-c", statement)]
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "ablate", "-d", database]
        self._run("psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", *where, *options)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._binaries / name), *arguments]
        if os.geteuid() == 0:  # it refuses to run as root
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"


def binaries_or_skip() -> Path:
    """Return the folder of an installed server's programs. Skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/nowhere")]
    if not found[-1].exists():
        pytest.skip(MISSING)
    return found[-1].parent


@contextmanager
def server() -> Iterator[Server]:
    """Run a server for as long as the context lasts. Skips the test where none is installed."""
    binaries = binaries_or_skip()
    # not below pytest's own folders: those are closed to the user that the server runs as
    folder = Path(tempfile.mkdtemp(prefix="ablate-postgres-", dir="/tmp"))
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Server(folder, binaries)
    try:
        cluster.make()
        cluster.start()
        yield cluster
    finally:
        try:
            cluster.stop("immediate")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
