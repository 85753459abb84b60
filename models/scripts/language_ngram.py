"""The baseline of the bundled language model: an interpolated Kneser-Ney model of five tokens.

Comes in: token sequences to count. Goes out: the probability of each token of other sequences, behind the four before it. It is a
proper distribution over the vocabulary, which `check` verifies.

    P_n(w | h) = max(c(h w) - D_n, 0) / c(h) + D_n t(h) / c(h) P_{n-1}(w | h without its first token),   P_0 = 1 / V

c counts occurrences at the highest order, and below it in how many different ways an n-gram is preceded; t(h) is the number of
different tokens that follow h; D_n = n_1 / (n_1 + 2 n_2), where n_i n-grams have the count i. A history never met leaves P_{n-1}.

Source: Kneser and Ney 1995; interpolated as by Chen and Goodman 1999, with one discount an order.
"""

from dataclasses import dataclass

import numpy as np

ORDER = 5
BITS = 12  # of a token; five of them fit into 63 bits
PADDING = 0  # stands before a sequence's first token


@dataclass(frozen=True)
class Table:
    """The n-grams of one order, packed into integers and sorted, and their histories."""

    keys: np.ndarray
    counts: np.ndarray
    histories: np.ndarray
    totals: np.ndarray
    followers: np.ndarray
    discount: float


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key stands, and whether it is there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def table(keys: np.ndarray, counts: np.ndarray) -> Table:
    histories, start, followers = np.unique(keys >> BITS, return_index=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return Table(
        keys, counts, histories, np.add.reduceat(counts, start), followers, discount=once / max(once + 2 * twice, 1)
    )


def windows(ids: np.ndarray) -> np.ndarray:
    """For each token but the first: it and the four before it, packed."""
    padded = np.concatenate([np.full(ORDER - 2, PADDING), ids]).astype(np.int64)
    tokens = len(ids) - 1
    packed = np.zeros(tokens, np.int64)
    for at in range(ORDER):
        packed = packed << BITS | padded[at : at + tokens]
    return packed


class Ngrams:
    """The counted model."""

    def __init__(self, sequences: list[np.ndarray], vocabulary: int):
        if vocabulary > 1 << BITS:
            raise SystemExit(f"{vocabulary} tokens do not fit into {BITS} bits: raise BITS or lower ORDER")
        self.vocabulary = vocabulary
        keys, counts = np.unique(np.concatenate([windows(ids) for ids in sequences]), return_counts=True)
        tables = [table(keys, counts)]
        for order in range(ORDER - 1, 0, -1):
            keys, counts = np.unique(keys & ((1 << BITS * order) - 1), return_counts=True)
            tables.append(table(keys, counts))
        self.tables = tables[::-1]  # the lowest order first

    def probabilities(self, packed: np.ndarray) -> np.ndarray:
        """P of each packed window's last token."""
        result = np.full(len(packed), 1 / self.vocabulary)
        for order, one in enumerate(self.tables, 1):
            wanted = packed & ((1 << BITS * order) - 1)
            at, met = find(one.keys, wanted)
            history_at, history_met = find(one.histories, wanted >> BITS)
            total = one.totals[history_at]
            kept = np.where(met, np.maximum(one.counts[at] - one.discount, 0), 0)
            mixed = (kept + one.discount * one.followers[history_at] * result) / total
            result = np.where(history_met, mixed, result)
        return result

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Natural logarithms for each token but the first."""
        return np.log(self.probabilities(windows(ids)))

    def check(self, ids: np.ndarray) -> None:
        """Stops where the probabilities of all tokens behind a history of these do not sum to 1."""
        for window in windows(ids):
            everything = window >> BITS << BITS | np.arange(self.vocabulary)
            total = self.probabilities(everything).sum()
            if abs(total - 1) > 1e-9:
                raise SystemExit(f"the n-gram model's probabilities sum to {total}, not to 1")
