"""One client's connection, kept open: a request goes out, the whole response comes back to a callback.

Comes in: ready request bytes. Goes out: responses with the time they took, failures in words. It never decides what to
send next, and looks no deeper into a response than its end.
"""

import asyncio
import time
from collections.abc import Callable

from .wire import BadResponse, Response, ResponseReader


class Client(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(
        self, on_answer: "Callable[[Client, Response], None]", on_failure: "Callable[[Client, str], None]"
    ) -> None:
        self._on_answer, self._on_failure = on_answer, on_failure
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._sent_at = 0.0
        self.is_waiting = False
        # What its owner keeps with it: the number of the request under way, the first body and the last.
        self.request = -1
        self.first_body: bytes | None = None
        self.last_body: bytes | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def open(self, host: str, port: int) -> None:
        """Connects, or raises OSError."""
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)

    def send(self, number: int, request: bytes) -> None:
        """Sends a request that its owner knows by this number."""
        assert self._transport is not None, "opened before"
        self.request, self.is_waiting, self._sent_at = number, True, time.perf_counter()
        self._transport.write(request)

    def seconds_waited(self) -> float:
        """Since the last request was sent."""
        return time.perf_counter() - self._sent_at

    def close(self) -> None:
        self.is_waiting = False
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._reader = transport, ResponseReader()

    def data_received(self, data: bytes) -> None:
        try:
            response = self._reader.feed(data)
        except BadResponse as error:
            self.close()
            self._fail(error)
            return
        if response is None:
            return
        self.is_waiting = False
        if not response.keeps_open:
            self.close()
        self._on_answer(self, response)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self.is_waiting:
            self.is_waiting = False
            self._fail(error or ConnectionError("closed by the server"))

    def _fail(self, error: Exception) -> None:
        self._on_failure(self, f"{type(error).__name__}: {error}")
