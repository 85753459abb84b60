"""What is kept of a run: results.json with every round, README.md with the tables that a reader wants.

Comes in: a `Run`. Goes out: text. It hides nothing: rounds that were not quiet, errors, failures and peers that were
left out stand in the same file as the figures.
"""

import json
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .figures import Spread
from .rounds import Failure, Options, Round
from .summary import Ratio, Row
from .workloads import Workload


@dataclass
class Run:
    """All that a run found out."""

    date: str
    command: str
    machine: dict[str, str]
    options: Options
    workloads: list[Workload]
    # Name -> what it is: version, route, command.
    contestants: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    # Name -> seconds of each start.
    ready_seconds: dict[str, list[float]] = field(default_factory=dict)
    first_answer_seconds: dict[str, list[float]] = field(default_factory=dict)
    offline_cosine: dict[str, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def machine() -> dict[str, str]:
    """What a reader must know of the machine to judge a figure."""
    information = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"^model name\s*:\s*(.*)$", information, re.MULTILINE)
    flags = set((re.findall(r"^flags\s*:\s*(.*)$", information, re.MULTILINE) or [""])[0].split())
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": str(len(names)) if names else "unknown",
        "instructions": ", ".join(
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags
        ),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def without_folders(command: str) -> str:
    """A command line without the folders of the machine it ran on: of an absolute path only the last part stays."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\"]+/)+", "", command)


def to_json(run: Run, rows: list[Row], ratios: list[Ratio]) -> str:
    content = {
        "date": run.date,
        "command": run.command,
        "machine": run.machine,
        "options": asdict(run.options),
        "workloads": {workload.name: workload.describe() for workload in run.workloads},
        "contestants": run.contestants,
        "left_out": run.left_out,
        "ready_seconds": run.ready_seconds,
        "first_answer_seconds": run.first_answer_seconds,
        "offline_cosine": run.offline_cosine,
        "summary": [asdict(row) for row in rows],
        "ratios": [asdict(ratio) for ratio in ratios],
        "failures": [asdict(failure) for failure in run.failures],
        "rounds": [round_.as_json() for round_ in run.rounds],
    }
    # Messages of libraries and servers may hold folders too. No value of ours begins with a slash.
    return without_folders(json.dumps(content, indent=1)) + "\n"


def to_markdown(run: Run, rows: list[Row], ratios: list[Ratio], plot: str | None) -> str:
    parts = [f"# Our worker and its peers, {run.date}", _validity(run, rows), _conditions(run)]
    if plot:
        parts.append(f"![inputs per second, or milliseconds for a single client]({plot})")
    if ratios:
        parts.append(
            "## Ours against each peer\n\nAbove 1 ours is better. Medians of ratios of rounds side by side.\n\n"
            + _ratios(ratios)
        )
    parts += [_workload(workload, [row for row in rows if row.workload == workload.name]) for workload in run.workloads]
    if run.first_answer_seconds:
        parts.append(_starts(run))
    if run.offline_cosine:
        lines = [f"- {name}: {value:.6f}" for name, value in run.offline_cosine.items()]
        parts.append("## Least cosine of the offline peers to the f64 reference\n\n" + "\n".join(lines))
    if run.left_out or run.failures:
        lines = [f"- {name}: {reason}" for name, reason in run.left_out.items()]
        lines += [f"- {one.contestant}, {one.workload}, round {one.round + 1}: {one.reason}" for one in run.failures]
        parts.append("## Left out or failed\n\n" + without_folders("\n".join(lines)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _validity(run: Run, rows: list[Row]) -> str:
    noisy, all_rounds = sum(row.noisy_rounds for row in rows), sum(row.rounds for row in rows)
    errors = sum(row.errors for row in rows)
    reasons = []
    if noisy:
        limit = run.options.quiet_cores
        reasons.append(f"others kept more than {limit:g} cores busy before or in {noisy} of {all_rounds} rounds")
    if errors:
        reasons.append(f"{errors} requests failed")
    if run.failures:
        reasons.append(f"{len(run.failures)} turns gave no figure")
    if not rows:
        reasons.append("nothing was measured")
    if not reasons:
        return f"Valid: the machine was quiet in all {all_rounds} rounds, and no request failed."
    return f"**NOT VALID FIGURES**: {'; '.join(reasons)}."


def _conditions(run: Run) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in run.machine.items() if value)
    options = run.options
    lines = [
        f"`{run.command}`",
        "",
        f"Machine: {facts}. {options.rounds} rounds of {options.seconds:g} s for each contestant and workload, in "
        "rotating order; one more before them is thrown away. All contestants run all the time; those that are not "
        "measured are idle. The load generator shares the machine; its share is in the tables. Figures are medians of "
        "rounds, (least to greatest).",
        "",
        *[f"- {name}: {what}" for name, what in run.contestants.items()],
    ]
    return "\n".join(lines)


def _ratios(ratios: list[Ratio]) -> str:
    header = ["workload", "ours", "peer", "by", "ratio", "per CPU second"]
    lines = [
        [one.workload, one.ours, one.peer, one.by, _spread(one.ratio, 2), _spread(one.per_cpu, 2)] for one in ratios
    ]
    return _table(header, lines)


def _workload(workload: Workload, rows: list[Row]) -> str:
    if not rows:
        return ""
    tokens = sum(row.tokens_mean for row in rows) / len(rows)
    header = [
        "contestant",
        "inputs/s",
        "inputs per CPU second",
        "p50 ms",
        "p99 ms",
        "peak RSS MB",
        "errors",
        "load generator, cores",
    ]
    lines = [
        [
            row.contestant,
            _spread(row.inputs_per_second, 1),
            _spread(row.inputs_per_cpu_second, 1),
            _spread(row.p50_ms, 2),
            "–" if row.p99_ms is None else f"{row.p99_ms:.2f} (of {row.requests})",
            "–" if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 1e6:.0f}",
            str(row.errors),
            f"{row.generator_cores:.2f}",
        ]
        for row in rows
    ]
    noise = [f"{row.contestant} {row.noisy_rounds} of {row.rounds}" for row in rows if row.noisy_rounds]
    note = f"\n\nRounds that were not quiet: {', '.join(noise)}." if noise else ""
    return f"## {workload.name}\n\n{workload.describe()}; mean {tokens:.1f} tokens.\n\n{_table(header, lines)}{note}"


def _starts(run: Run) -> str:
    lines = [
        [
            name,
            _spread(Spread.of(run.ready_seconds.get(name, [])), 3),
            _spread(Spread.of(seconds), 3),
            str(len(seconds)),
        ]
        for name, seconds in run.first_answer_seconds.items()
    ]
    header = ["contestant", "ready after s", "first text embedded after s", "starts"]
    return (
        "## From start to ready\n\nFrom the moment the process was asked for; weights in the page cache.\n\n"
        + _table(header, lines)
    )


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    median, least, greatest = (f"{value:.{digits}f}" for value in (spread.median, spread.least, spread.greatest))
    return median if spread.count == 1 else f"{median} ({least} to {greatest})"


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
