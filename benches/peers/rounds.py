"""The rounds: every contestant in turn, a few seconds each, in an order that rotates, on a machine that was looked at
before.

Comes in: contestants and a workload. Goes out: one `Round` for each turn. Contestants that are not measured stay
running and idle; their idleness is part of what is looked at.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Protocol

from . import load, proc
from .figures import percentile, rotation
from .load import LoadError, Window
from .offline import Offline
from .reference import Probe
from .servers import Server
from .texts import Stream, TokenCounter
from .workloads import Workload

# Requests are built before the clock runs for so many times the rate of the round before.
PREBUILT_MARGIN = 1.5
# What the first round of a contestant, whose rate nobody knows, builds and embeds.
FIRST_REQUESTS, FIRST_TEXTS = 256, 64
# Offline, fewer texts than this are no set worth sorting.
OFFLINE_TEXTS_MIN = 128


class Contestant(Protocol):
    """Whoever is measured."""

    name: str
    precision: str
    pid: int | None

    def window(self, workload: Workload, probes: list[Probe], stream: Stream, rate: float, seconds: float) -> Window:
        """One round. `rate` is the inputs/s of its last one, 0 before there is one. LoadError where there is no
        figure."""


@dataclass(frozen=True)
class ServerContestant:
    """A server under the load of `load`."""

    server: Server

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def precision(self) -> str:
        return self.server.precision

    @property
    def pid(self) -> int | None:
        return self.server.pid

    def window(self, workload: Workload, probes: list[Probe], stream: Stream, rate: float, seconds: float) -> Window:
        expected = int(rate * seconds * PREBUILT_MARGIN / workload.texts_per_request) + 2 * workload.clients
        return load.run(self.server, workload, probes, stream, expected if rate else FIRST_REQUESTS, seconds)


@dataclass(frozen=True)
class OfflineContestant:
    """A library in a process, given about as many texts as it embeds in the time of a round."""

    offline: Offline

    @property
    def name(self) -> str:
        return self.offline.name

    @property
    def precision(self) -> str:
        return self.offline.precision

    @property
    def pid(self) -> int | None:
        return self.offline.pid

    def window(self, workload: Workload, probes: list[Probe], stream: Stream, rate: float, seconds: float) -> Window:
        del probes  # checked once, when it started
        count = int(rate * seconds) if rate else FIRST_TEXTS
        if workload.is_single:
            return self.offline.window(stream.texts(0, max(count, 8)), calls_of=1)
        if workload.texts_per_request > 1:
            size = workload.texts_per_request
            return self.offline.window(stream.texts(0, max(count // size, 2) * size), calls_of=size)
        return self.offline.window(stream.texts(0, max(count, OFFLINE_TEXTS_MIN)), calls_of=0)


@dataclass
class Round:
    """One turn of one contestant."""

    workload: str
    contestant: str
    round: int
    position: int
    seconds: float
    inputs: int
    tokens: int
    cpu_seconds: float | None
    generator_cpu_seconds: float
    p50_ms: float | None
    p99_ms: float | None
    peak_rss_bytes: int | None
    least_cosine: float | None
    errors: dict[str, int]
    built_late: int
    # Others: before the round, and in it (None where the contestant's own CPU time is not known).
    busy_cores_before: float
    waited_seconds_before: float
    load_average_before: float
    others_cores: float | None
    is_quiet: bool
    latencies: list[float] = field(repr=False, default_factory=list)

    @property
    def inputs_per_second(self) -> float:
        return self.inputs / self.seconds

    @property
    def inputs_per_cpu_second(self) -> float | None:
        return self.inputs / self.cpu_seconds if self.cpu_seconds else None

    def as_json(self) -> dict:
        """All but the single latencies, and the rates for those who read the file by hand."""
        content = asdict(self)
        del content["latencies"]
        return content | {
            "inputs_per_second": self.inputs_per_second,
            "inputs_per_cpu_second": self.inputs_per_cpu_second,
        }


@dataclass(frozen=True)
class Options:
    """How the rounds are run."""

    rounds: int
    seconds: float
    quiet_cores: float
    quiet_patience_seconds: float
    seed: str


@dataclass(frozen=True)
class Failure:
    """A turn that gave no figure."""

    workload: str
    contestant: str
    round: int
    reason: str


def run(
    workload: Workload, contestants: list[Contestant], probes: list[Probe], counter: TokenCounter, options: Options
) -> tuple[list[Round], list[Failure]]:
    """All rounds of one workload. A first turn of each is thrown away: it warms up and tells the rate."""
    by_name = {contestant.name: contestant for contestant in contestants}
    rates: dict[str, float] = {}
    rounds, failures = [], []
    for number in range(-1, options.rounds):
        stream = Stream(workload, f"{options.seed}/{number}")
        for position, name in enumerate(rotation(list(by_name), number)):
            seconds = options.seconds if number >= 0 else options.seconds / 2
            quiet = proc.wait_until_quiet(options.quiet_cores, options.quiet_patience_seconds if number >= 0 else 0)
            try:
                window = by_name[name].window(workload, probes, stream, rates.get(name, 0.0), seconds)
                taken = _round(workload, by_name[name], number, position, window, stream, counter, quiet, options)
            except LoadError as error:
                print(f"  {workload.name} round {number + 1}: {name} FAILED: {error}", flush=True)
                failures.append(Failure(workload.name, name, number, str(error)))
                continue
            rates[name] = taken.inputs_per_second
            if number >= 0:
                rounds.append(taken)
                _tell(taken, options)
    return rounds, failures


def _round(
    workload: Workload,
    contestant: Contestant,
    number: int,
    position: int,
    window: Window,
    stream: Stream,
    counter: TokenCounter,
    quiet: proc.Quiet,
    options: Options,
) -> Round:
    is_offline = isinstance(contestant, OfflineContestant)
    # Offline, `completed` counts texts; a server completes requests.
    size = 1 if is_offline else workload.texts_per_request
    if not window.completed:
        raise LoadError(f"nothing was completed in {window.seconds:.1f} s; errors: {dict(window.errors)}")
    texts = [stream.text(request * size + place) for request in window.completed for place in range(size)]
    others = None
    if window.cpu_seconds is not None:
        spent = window.machine_busy_seconds - window.cpu_seconds - window.generator_cpu_seconds
        others = max(0.0, spent / window.seconds)
    # A sorted set in one call has no latency of one text.
    has_latency = not is_offline or len(window.latencies) > 1
    return Round(
        workload=workload.name,
        contestant=contestant.name,
        round=number,
        position=position,
        seconds=window.seconds,
        inputs=len(texts),
        tokens=sum(counter.count(texts)),
        cpu_seconds=window.cpu_seconds,
        generator_cpu_seconds=window.generator_cpu_seconds,
        p50_ms=percentile(window.latencies, 50) * 1e3 if has_latency else None,
        p99_ms=percentile(window.latencies, 99) * 1e3 if has_latency else None,
        peak_rss_bytes=None if contestant.pid is None else proc.peak_rss_bytes(contestant.pid),
        least_cosine=None if is_offline else window.least_cosine,
        errors=dict(Counter(window.errors)),
        built_late=window.built_late,
        busy_cores_before=quiet.busy_cores,
        waited_seconds_before=quiet.waited_seconds,
        load_average_before=quiet.load_average,
        others_cores=others,
        is_quiet=quiet.busy_cores <= options.quiet_cores and (others or 0.0) <= options.quiet_cores,
        latencies=window.latencies if has_latency else [],
    )


def _tell(taken: Round, options: Options) -> None:
    latency = "" if taken.p50_ms is None else f", p50 {taken.p50_ms:.1f} ms, p99 {taken.p99_ms:.1f} ms"
    cpu = "" if taken.inputs_per_cpu_second is None else f", {taken.inputs_per_cpu_second:.1f} a CPU second"
    errors = f", ERRORS {taken.errors}" if taken.errors else ""
    noise = "" if taken.is_quiet else ", NOT QUIET"
    print(
        f"  {taken.workload} round {taken.round + 1} of {options.rounds}: {taken.contestant}: "
        f"{taken.inputs_per_second:.1f} inputs/s{cpu}{latency}{errors}{noise}",
        flush=True,
    )
