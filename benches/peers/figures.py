"""Arithmetic of the report: percentiles, medians with their spread, and ratios of rounds that ran side by side.

Comes in: numbers. Goes out: numbers. Nothing is read, timed or printed here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], per_cent: float) -> float:
    """The nearest-rank percentile: the least value that at least so many per cent of the values do not exceed."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    rank = math.ceil(per_cent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True)
class Spread:
    """A median of rounds, and the least and the greatest of them."""

    median: float
    least: float
    greatest: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """None when there is no value: a figure that was not taken is not a zero."""
        return Spread(median(values), min(values), max(values), len(values)) if values else None


def paired_ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours / theirs for each round that both have. A round's two figures saw the same machine and the same texts;
    figures of different rounds are never divided by each other."""
    return [ours[round_] / theirs[round_] for round_ in sorted(ours.keys() & theirs.keys()) if theirs[round_] > 0]


def rotation(names: Sequence[str], round_: int) -> list[str]:
    """The order of a round: each begins with another contestant, and every other round runs backwards, so that nobody
    always follows the same neighbour."""
    if not names:
        return []
    step = -1 if round_ % 2 else 1
    return [names[(round_ + step * place) % len(names)] for place in range(len(names))]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of the angle between two vectors, in f64. NaN where a vector has no length or holds a NaN."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} dimensions")
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return product / lengths if lengths > 0 else math.nan
