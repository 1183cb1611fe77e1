"""A real Chromium, and a tiny server that notes what is asked of it."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom_of(url: str, profile: Path, *options: str, budget_ms: int = 20_000) -> str:
    """Open an address in a new Chromium, let its scripts run, and return the page as it then is."""
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    switches += [f"--user-data-dir={profile}", f"--virtual-time-budget={budget_ms}", "--dump-dom"]
    command = [str(CHROMIUM), *switches, *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@dataclass
class Pages:
    """Pages by path, and the paths that were asked for."""

    port: int = 0
    content: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def canary(self) -> str:
        return f"http://127.0.0.1:{self.port}/canary"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def served() -> Iterator[Pages]:
    """Serve pages on this machine for as long as the context lasts."""
    pages = Pages()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages.asked.append(self.path)
            body = pages.content.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            """Say nothing: the list is what counts."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    pages.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield pages
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
