"""The work that every contestant is given: how long the texts are, how many clients ask, how many texts a request
holds.

Comes in: nothing. Goes out: the list that the command line, the rounds and the report share. No text and no clock is
here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One kind of work. Every client sends one request, waits for the answer and sends the next (a closed loop)."""

    name: str
    words_min: int
    words_max: int
    clients: int
    texts_per_request: int = 1
    precision: str = "f32"

    @property
    def is_single(self) -> bool:
        """One client with one text: its latency is the figure, not its throughput."""
        return self.clients == 1 and self.texts_per_request == 1

    def describe(self) -> str:
        words = f"{self.words_min}" if self.words_min == self.words_max else f"{self.words_min} to {self.words_max}"
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        texts = "one text" if self.texts_per_request == 1 else f"{self.texts_per_request} texts"
        return f"{words} words a text, {clients}, {texts} a request, {self.precision}"


# `mixed` stands first: the peak memory that is read after it is the peak under the mixed load.
WORKLOADS = (
    Workload("mixed", 5, 250, clients=64),
    Workload("short", 12, 12, clients=64),
    Workload("long", 200, 200, clients=32),
    Workload("client_batches", 12, 12, clients=4, texts_per_request=32),
    Workload("one_short", 12, 12, clients=1),
    Workload("one_long", 200, 200, clients=1),
    Workload("int8_mixed", 5, 250, clients=64, precision="int8"),
)


def named(names: list[str]) -> list[Workload]:
    """The workloads of these names, in the order of the list above."""
    known = {workload.name for workload in WORKLOADS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no workload is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [workload for workload in WORKLOADS if workload.name in names]
