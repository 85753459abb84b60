"""From rounds to what is said of them: one row for each contestant and workload, and ours against each peer.

Comes in: rounds. Goes out: medians with their spread, and ratios of rounds that were paired. Nothing is measured here.
"""

from dataclasses import dataclass

from .figures import Spread, paired_ratios, percentile
from .rounds import Round
from .workloads import Workload


@dataclass(frozen=True)
class Row:
    """One contestant under one workload."""

    workload: str
    contestant: str
    inputs_per_second: Spread
    tokens_per_second: Spread
    inputs_per_cpu_second: Spread | None
    # Of the rounds' medians; the 99th percentile is of all requests of all rounds, since one round has few beyond it.
    p50_ms: Spread | None
    p99_ms: float | None
    requests: int
    tokens_mean: float
    peak_rss_bytes: int | None
    least_cosine: float | None
    errors: int
    noisy_rounds: int
    rounds: int
    # The load generator's share of one core.
    generator_cores: float


@dataclass(frozen=True)
class Ratio:
    """Ours against one peer under one workload; above 1 ours is better, whatever is compared."""

    workload: str
    ours: str
    peer: str
    # Inputs/s ours / theirs; for a single client their p50 / ours.
    by: str
    ratio: Spread
    # Inputs per CPU second, ours / theirs.
    per_cpu: Spread | None


def rows(rounds: list[Round]) -> list[Row]:
    """In the order in which workloads and contestants first appear."""
    keys = dict.fromkeys((round_.workload, round_.contestant) for round_ in rounds)
    return [_row(workload, name, _of(rounds, workload, name)) for workload, name in keys]


def _of(rounds: list[Round], workload: str, name: str) -> list[Round]:
    return [round_ for round_ in rounds if round_.workload == workload and round_.contestant == name]


def _row(workload: str, name: str, taken: list[Round]) -> Row:
    latencies = [latency for round_ in taken for latency in round_.latencies]
    speed = Spread.of([round_.inputs_per_second for round_ in taken])
    tokens = Spread.of([round_.tokens / round_.seconds for round_ in taken])
    assert speed is not None and tokens is not None, "a row has rounds"
    return Row(
        workload=workload,
        contestant=name,
        inputs_per_second=speed,
        tokens_per_second=tokens,
        inputs_per_cpu_second=Spread.of(_known(round_.inputs_per_cpu_second for round_ in taken)),
        p50_ms=Spread.of(_known(round_.p50_ms for round_ in taken)),
        p99_ms=percentile(latencies, 99) * 1e3 if latencies else None,
        requests=len(latencies),
        tokens_mean=sum(round_.tokens for round_ in taken) / sum(round_.inputs for round_ in taken),
        peak_rss_bytes=max(_known(round_.peak_rss_bytes for round_ in taken), default=None),
        least_cosine=min(_known(round_.least_cosine for round_ in taken), default=None),
        errors=sum(sum(round_.errors.values()) for round_ in taken),
        noisy_rounds=sum(not round_.is_quiet for round_ in taken),
        rounds=len(taken),
        generator_cores=sum(round_.generator_cpu_seconds for round_ in taken) / sum(round_.seconds for round_ in taken),
    )


def _known(values) -> list:
    return [value for value in values if value is not None]


def ratios(rounds: list[Round], workloads: list[Workload], ours: list[str]) -> list[Ratio]:
    """Each of ours against each peer, workload by workload."""
    found = []
    for workload in workloads:
        names = list(dict.fromkeys(round_.contestant for round_ in rounds if round_.workload == workload.name))
        for our in (name for name in ours if name in names):
            for peer in (name for name in names if name not in ours):
                ratio = _ratio(workload, our, peer, _of(rounds, workload.name, our), _of(rounds, workload.name, peer))
                if ratio is not None:
                    found.append(ratio)
    return found


def _ratio(workload: Workload, our: str, peer: str, ours: list[Round], theirs: list[Round]) -> Ratio | None:
    def by(value, taken: list[Round]) -> dict[int, float]:
        return {round_.round: value(round_) for round_ in taken if value(round_) is not None}

    if workload.is_single:
        # A time: theirs over ours, so that more is better here too.
        name, pairs = "p50", paired_ratios(by(lambda r: r.p50_ms, theirs), by(lambda r: r.p50_ms, ours))
    else:
        name = "inputs/s"
        pairs = paired_ratios(by(lambda r: r.inputs_per_second, ours), by(lambda r: r.inputs_per_second, theirs))
    per_cpu = paired_ratios(by(lambda r: r.inputs_per_cpu_second, ours), by(lambda r: r.inputs_per_cpu_second, theirs))
    spread = Spread.of(pairs)
    return None if spread is None else Ratio(workload.name, our, peer, name, spread, Spread.of(per_cpu))
