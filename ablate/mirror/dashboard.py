"""optuna-dashboard on the mirror file: for this machine's user only, because it has no login."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from ablate.errors import EnvironmentFault

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

HOST = "127.0.0.1"

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser's open connection must not hold up the end


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line per request helps nobody."""


def check_installed() -> None:
    """Raise EnvironmentFault where optuna-dashboard is missing."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        hint = "pip install 'ablation-study[dashboard]'"
        raise EnvironmentFault("the dashboard needs optuna-dashboard, which is not installed", hint=hint)


def open_server(port: int) -> WSGIServer:
    """Listen on this machine alone; port 0 takes any that is free. Raises EnvironmentFault where it is in use."""
    try:
        return make_server(HOST, port, _starting, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used: {error.strerror}"
        raise EnvironmentFault(f"port {port} {why}", hint="choose another with --port") from None


def address(server: WSGIServer) -> str:
    return f"http://{HOST}:{server.server_port}"


def serve(server: WSGIServer, storage: RDBStorage) -> None:
    """Serve the dashboard of one mirror until interrupted."""
    from optuna_dashboard import wsgi

    server.set_app(_local(wsgi(storage), server.server_port))
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _local(application: _Application, port: int) -> _Application:
    """Refuse requests that name another host: a web page could otherwise reach us under a name of its own."""
    hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") in hosts:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"this dashboard answers on 127.0.0.1 only\n"]

    return guarded


def _starting(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [("Content-Type", "text/plain"), ("Retry-After", "1")])
    return [b"the dashboard is starting\n"]
