"""The HTTP server: runs the site on one port, on a thread of its own, until it is stopped."""

import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI


class WebServer:
    """The pages and the API, on one port."""

    def __init__(self, site: FastAPI, *, host: str, port: int, certificate: Path | None, key: Path | None) -> None:
        """
        Args:
            site: What answers.
            host: Address to listen at.
            port: The port.
            certificate: PEM, for HTTPS; None for plain HTTP.
            key: Its key.
        """
        self._server = uvicorn.Server(
            uvicorn.Config(
                site, host=host, port=port, log_config=None, access_log=False, server_header=False,
                timeout_graceful_shutdown=5, proxy_headers=False, ssl_certfile=certificate, ssl_keyfile=key,
            )
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, name="web")

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it answers, or is about to."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End; returns when the last answer was sent."""
        self._server.should_exit = True
        self._thread.join()
