"""A TCP proxy between a store and its server that disturbs the commit it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What becomes of a COMMIT: it reaches the server or not, then ``also`` is done, and no reply comes back."""

    reaches: bool
    also: Callable[[], None] = lambda: None


class Proxy:
    """Forwards all that is said to a server on loopback, but for the COMMITs that ``disturb`` names a fault for."""

    def __init__(self, port: int, disturb: Callable[[int], Fault | None] = lambda _: None) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.commits = 0
        self.disturbed = 0
        self._disturb = disturb
        self._next: Fault | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault) -> None:
        """Let the next COMMIT meet a fault."""
        self._next = fault

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Talk for one client until either side has gone, or a fault is over."""
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=30) as server:
            server.settimeout(None)
            cut, replied = threading.Event(), threading.Event()
            answers = threading.Thread(target=self._answer, args=(server, client, cut, replied), daemon=True)
            answers.start()
            try:
                while data := client.recv(65536):
                    fault = self._fault(data)
                    if fault is None:
                        server.sendall(data)
                        continue
                    cut.set()
                    if fault.reaches:
                        server.sendall(data)
                        assert replied.wait(60), "the server says nothing to a COMMIT"
                    fault.also()
                    self.disturbed += 1
                    break
            finally:
                for each in (client, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def _fault(self, data: bytes) -> Fault | None:
        if b"COMMIT" not in data:
            return None
        self.commits += 1
        fault, self._next = self._next or self._disturb(self.commits), None
        return fault

    def _answer(
        self, server: socket.socket, client: socket.socket, cut: threading.Event, replied: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():
                    replied.set()
                else:
                    client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)  # the server has gone, and so do we
