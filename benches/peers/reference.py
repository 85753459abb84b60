"""What the embeddings have to be: probe texts of each workload and their embeddings in f64, straight from the formulas.

Comes in: the checkpoint. Goes out: probes, and what is wrong with an answer to one. Fast it is not: a probe costs a
tenth of a second, so there are few, and they are asked outside the time that is measured.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from .figures import cosine
from .texts import Stream, use_model_scripts
from .workloads import Workload

PROBES = 8
# The least cosine to the reference that counts as the same model. The f32 limit is loose beside what f32 arithmetic
# does (1e-6) and tight beside a text that was cut off or a padding that was attended to (1e-2 and more).
LEAST_COSINE = {"f32": 0.9999, "int8": 0.99}


@dataclass(frozen=True)
class Probe:
    """A text and its embedding."""

    text: str
    embedding: tuple[float, ...]


class Reference:
    """The checkpoint in f64."""

    def __init__(self, folder: Path) -> None:
        use_model_scripts()
        from reference_bert import Bert, load_tokenizer, mean_embedding

        self._model, self._tokenizer, self._pool = Bert(folder), load_tokenizer(folder), mean_embedding

    def probes(self, workload: Workload) -> list[Probe]:
        """Texts like those of the workload. They come from a stream of their own: no round holds them. The first is as
        long as the workload's texts get, so that a server that cuts texts off is found out."""
        longest = Workload(workload.name, workload.words_max, workload.words_max, clients=1)
        texts = Stream(longest, "longest probe").texts(0, 1) + Stream(workload, "probes").texts(0, PROBES - 1)
        return [Probe(text, self._embed(text)) for text in texts]

    def _embed(self, text: str) -> tuple[float, ...]:
        encoding = self._tokenizer.encode(text)
        hidden = self._model.hidden_states(encoding.ids, encoding.type_ids)
        return tuple(float(value) for value in self._pool(hidden))


def least_cosine(rows: list[list[float]], probes: list[Probe]) -> float:
    """The least cosine of the rows to their probes; NaN counts as -1.

    # Errors
    ValueError when the count or the dimensions are not those of the probes.
    """
    check_shape(rows, len(probes), len(probes[0].embedding))
    found = [cosine(row, probe.embedding) for row, probe in zip(rows, probes, strict=True)]
    return min(-1.0 if math.isnan(value) else value for value in found)


def check_shape(rows: list[list[float]], count: int, dimension: int) -> None:
    """ValueError when there are not so many rows of so many numbers."""
    if len(rows) != count:
        raise ValueError(f"{len(rows)} embeddings for {count} texts")
    wrong = [len(row) for row in rows if len(row) != dimension]
    if wrong:
        raise ValueError(f"an embedding has {wrong[0]} dimensions and not {dimension}")
