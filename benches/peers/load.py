"""The load: so many clients, each with a connection that stays open, each with one request under way, for so many
seconds.

Comes in: a server, ready request bytes, probes with their reference. Goes out: what was completed in the window, how
long each took, every error. A connection's first answer, to a probe, is checked in full (count, dimensions, cosine to
the reference), and its last one by count and dimensions, both outside the window; inside it a response is only read to
its end and its status looked at.

The window begins when every client has had its first answer, so that queues are as full as they get, and ends by the
clock, or later for a server that has completed next to nothing by then. Both checks come after the last answer, so that
they take no time from anybody.
"""

import asyncio
import gc
import time
from collections import Counter
from dataclasses import dataclass, field

from . import proc
from .client import Client
from .reference import LEAST_COSINE, Probe, check_shape, least_cosine
from .servers import Server
from .texts import Stream
from .wire import BadResponse, Response, embeddings
from .workloads import Workload

# How long a server may take to give every client its first answer, and its last one. Far above what a slow server
# needs.
PATIENCE_SECONDS = 120.0
# A client that was refused waits before it asks again, so that refusals do not eat the machine that is measured.
AFTER_ERROR_SECONDS = 0.05
# The number of the request that every connection begins with.
PROBE = -1
# A window lasts until every client on average, and this many requests at least, were completed: fewer tell nothing.
COMPLETED_MIN = 8


class LoadError(Exception):
    """The round gives no figure; the message says why."""


@dataclass
class Window:
    """What one round of one server gave."""

    seconds: float = 0.0
    cpu_seconds: float | None = None
    generator_cpu_seconds: float = 0.0
    machine_busy_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    # Which requests of the round's stream were completed in the window.
    completed: list[int] = field(default_factory=list)
    # From the first probe to the last answer, not only in the window.
    errors: Counter[str] = field(default_factory=Counter)
    least_cosine: float = 1.0
    # Requests that had to be built while the clock ran, because fewer had been prepared.
    built_late: int = 0


class Requests:
    """The round's requests as bytes: most are built before the clock runs."""

    def __init__(self, server: Server, stream: Stream, prebuilt: int) -> None:
        self._server, self._stream = server, stream
        self._built = [self._build(number) for number in range(prebuilt)]
        self._next = 0
        self.built_late = 0

    def _build(self, number: int) -> bytes:
        size = self._stream.workload.texts_per_request
        return self._server.request(self._stream.texts(number * size, size))

    def take(self) -> tuple[int, bytes]:
        """The next request and its number."""
        number = self._next
        self._next += 1
        if number < len(self._built):
            return number, self._built[number]
        self.built_late += 1
        return number, self._build(number)


@dataclass(frozen=True)
class _Clocks:
    """The clocks at one moment."""

    wall: float
    server: float | None
    own: float
    machine: float

    @staticmethod
    def read(server: Server) -> "_Clocks":
        cpu = None if server.pid is None else proc.cpu_seconds(server.pid)
        return _Clocks(time.perf_counter(), cpu, proc.own_cpu_seconds(), proc.machine_busy_seconds())


def run(
    server: Server, workload: Workload, probes: list[Probe], stream: Stream, prebuilt: int, seconds: float
) -> Window:
    """One round of one server. LoadError where it gives no figure."""
    requests = Requests(server, stream, prebuilt)
    # A pass of the garbage collector over all those requests would show as latency of the server.
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_measured(server, workload, probes, requests, seconds))
    finally:
        gc.enable()


async def _measured(
    server: Server, workload: Workload, probes: list[Probe], requests: Requests, seconds: float
) -> Window:
    load = _Load(server, workload, probes, requests)
    try:
        return await load.run(seconds)
    finally:
        load.close()


class _Load:
    """The clients of a round, and what they share."""

    def __init__(self, server: Server, workload: Workload, probes: list[Probe], requests: Requests) -> None:
        self._server, self._workload, self._probes, self._requests = server, workload, probes, requests
        self._window = Window()
        self._clients = [Client(self._answered, self._failed) for _ in range(workload.clients)]
        self._unsettled = workload.clients
        self._refused_probe: str | None = None
        self._settled, self._drained = asyncio.Event(), asyncio.Event()
        self._is_measuring = self._is_draining = False
        self._reopening: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> Window:
        for number, client in enumerate(self._clients):
            try:
                await client.open(self._server.host, self._server.port)
            except OSError as error:
                raise LoadError(f"{self._server.name}: cannot connect: {error}") from error
            client.send(PROBE, self._server.request([probe.text for probe in self._probes_of(number)]))
        await self._within_patience(self._settled, "first")
        if self._refused_probe is not None:
            raise LoadError(f"{self._server.name}: a probe was not answered: {self._refused_probe}")
        before = _Clocks.read(self._server)
        self._is_measuring = True
        await asyncio.sleep(seconds)
        await self._enough()
        self._is_measuring = False
        after = _Clocks.read(self._server)
        self._is_draining = True
        if any(client.is_waiting for client in self._clients):
            await self._within_patience(self._drained, "last")
        for number, client in enumerate(self._clients):
            self._check_first_answer(client, self._probes_of(number))
            self._check_last_answer(client)
        window = self._window
        window.seconds = after.wall - before.wall
        if before.server is not None and after.server is not None:
            window.cpu_seconds = after.server - before.server
        window.generator_cpu_seconds = after.own - before.own
        window.machine_busy_seconds = after.machine - before.machine
        window.built_late = self._requests.built_late
        return window

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _probes_of(self, number: int) -> list[Probe]:
        """What the first request of a connection holds."""
        size = self._workload.texts_per_request
        return [self._probes[(number * size + place) % len(self._probes)] for place in range(size)]

    def _next(self, client: Client) -> None:
        """What a client does when it has nothing under way."""
        if self._is_draining:
            if not any(other.is_waiting for other in self._clients):
                self._drained.set()
        elif client.is_open:
            client.send(*self._requests.take())
        else:
            task = asyncio.get_running_loop().create_task(self._reopen(client))
            self._reopening.add(task)
            task.add_done_callback(self._reopening.discard)

    async def _reopen(self, client: Client) -> None:
        try:
            await client.open(self._server.host, self._server.port)
        except OSError as error:
            self._failed(client, f"cannot connect: {error}")
            return
        self._next(client)

    def _answered(self, client: Client, response: Response) -> None:
        waited = client.seconds_waited()
        if response.status != 200:
            self._failed(client, f"status {response.status}: {_begin_of(response.body)}")
            return
        if self._is_measuring:
            self._window.latencies.append(waited)
            self._window.completed.append(client.request)
        if client.request == PROBE:
            client.first_body = response.body
            self._unsettled -= 1
            if self._unsettled == 0:
                self._settled.set()
        client.last_body = response.body
        self._next(client)

    def _failed(self, client: Client, reason: str) -> None:
        """Counts the error and lets the client go on in a moment. Without an answer to a probe there is no round."""
        self._window.errors[reason] += 1
        if client.request == PROBE:
            self._refused_probe = reason
            self._settled.set()
            return
        asyncio.get_running_loop().call_later(AFTER_ERROR_SECONDS, lambda: self._next(client))

    async def _enough(self) -> None:
        """Returns when enough was completed. A slow server gets a longer window, which is measured in full."""
        least = max(COMPLETED_MIN, self._workload.clients)
        ends = time.perf_counter() + PATIENCE_SECONDS
        while len(self._window.completed) < least and time.perf_counter() < ends:
            await asyncio.sleep(0.02)

    async def _within_patience(self, event: asyncio.Event, which: str) -> None:
        try:
            await asyncio.wait_for(event.wait(), PATIENCE_SECONDS)
        except TimeoutError:
            missing = sum(client.is_waiting for client in self._clients) if self._is_draining else self._unsettled
            raise LoadError(
                f"{self._server.name}: after {PATIENCE_SECONDS:.0f} s {missing} of {len(self._clients)} clients still "
                f"wait for their {which} answer; errors so far: {dict(self._window.errors)}"
            ) from None

    def _check_first_answer(self, client: Client, probes: list[Probe]) -> None:
        """LoadError unless it is what the model gives: the figures of another model are no figures."""
        name = self._server.name
        try:
            found = least_cosine(embeddings(self._server.api, client.first_body or b""), probes)
        except (BadResponse, ValueError) as error:
            raise LoadError(f"{name}: a wrong answer to a probe: {error}") from error
        least = LEAST_COSINE[self._workload.precision]
        if found < least:
            raise LoadError(
                f"{name}: cosine {found:.6f} to the reference, below {least}: other weights, or texts cut off"
            )
        self._window.least_cosine = min(self._window.least_cosine, found)

    def _check_last_answer(self, client: Client) -> None:
        """An error is counted unless it has the right count and dimensions."""
        try:
            rows = embeddings(self._server.api, client.last_body or b"")
            check_shape(rows, self._workload.texts_per_request, len(self._probes[0].embedding))
        except (BadResponse, ValueError) as error:
            self._window.errors[f"a wrong last answer: {error}"] += 1


def _begin_of(body: bytes) -> str:
    return body[:160].decode(errors="replace")
