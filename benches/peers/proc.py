"""What Linux says of processes and of the machine: CPU time, peak memory, and how busy everybody else is.

Comes in: process ids. Goes out: seconds, bytes, cores. Nothing is started or stopped here.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stat:
    """The part of /proc/PID/stat that counts."""

    parent: int
    # Its own CPU time and that of children it has waited for.
    cpu_ticks: int


def parse_stat(text: str) -> Stat:
    """One line of /proc/PID/stat. The program's name may hold spaces and brackets; the last bracket ends it."""
    fields = text[text.rindex(")") + 2 :].split()
    # Counted from field 3 (state): 4 is the parent; 14 to 17 are utime, stime, cutime, cstime.
    return Stat(parent=int(fields[1]), cpu_ticks=sum(int(ticks) for ticks in fields[11:15]))


def parse_machine_ticks(text: str) -> int:
    """Ticks that all cores together were busy, from /proc/stat; time that the hypervisor gave to others counts as
    busy."""
    fields = [int(field) for field in text.splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts, steal = fields[:8]
    return user + nice + system + interrupts + soft_interrupts + steal


def parse_peak_rss(status: str) -> int:
    """VmHWM of /proc/PID/status, in bytes; 0 for a process without memory of its own."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _stats() -> dict[int, Stat]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = parse_stat(Path(f"/proc/{entry}/stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the reading
    return found


def tree(pid: int, stats: dict[int, Stat]) -> list[int]:
    """The process and all that it started, directly or not."""
    members, todo = [], [pid]
    while todo:
        member = todo.pop()
        if member in stats and member not in members:
            members.append(member)
            todo += [child for child, stat in stats.items() if stat.parent == member]
    return members


def cpu_seconds(pid: int) -> float:
    """utime + stime of the process and its children, living and waited for."""
    stats = _stats()
    members = tree(pid, stats)
    if not members:
        raise SystemExit(f"process {pid} is gone; start that server again")
    return sum(stats[member].cpu_ticks for member in members) / TICKS_PER_SECOND


def peak_rss_bytes(pid: int) -> int:
    """The most memory that the process and its children ever had resident (the sum of their own peaks)."""
    total = 0
    for member in tree(pid, _stats()):
        try:
            total += parse_peak_rss(Path(f"/proc/{member}/status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def machine_busy_seconds() -> float:
    """CPU seconds that the whole machine has spent on anything, since it started."""
    return parse_machine_ticks(Path("/proc/stat").read_text()) / TICKS_PER_SECOND


def own_cpu_seconds() -> float:
    return time.process_time()


@dataclass(frozen=True)
class Quiet:
    """How busy others were before a round."""

    busy_cores: float
    waited_seconds: float
    load_average: float


def busy_cores(seconds: float = 0.5) -> float:
    """Cores that anything but this process kept busy for a moment. Contestants are idle then, so it is what does not
    belong."""
    started, machine, own = time.perf_counter(), machine_busy_seconds(), own_cpu_seconds()
    time.sleep(seconds)
    spent = machine_busy_seconds() - machine - (own_cpu_seconds() - own)
    return max(0.0, spent / (time.perf_counter() - started))


def wait_until_quiet(limit_cores: float, patience_seconds: float) -> Quiet:
    """Waits until no more than `limit_cores` are busy, or until patience ends; says what it saw last either way."""
    started = time.perf_counter()
    while True:
        busy = busy_cores()
        waited = time.perf_counter() - started
        if busy <= limit_cores or waited >= patience_seconds:
            return Quiet(busy, waited, os.getloadavg()[0])


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
