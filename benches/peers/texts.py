"""The texts of a round: random words, the same for every contestant, never the same twice.

Comes in: a workload, a round, a seed. Goes out: texts and, where asked, their count of tokens. A text is drawn from
some 150 words, so that even the short ones (12 words) do not repeat within a run: a cache of whole texts has nothing to
give back.
"""

import random
import sys
from functools import cache
from pathlib import Path

from .workloads import Workload

SCRIPTS = Path(__file__).resolve().parents[2] / "models/scripts"
# One word in so many is a long one that the tokenizer splits; with it, 12 words are about 16.4 tokens, 200 about 243,
# 5 to 250 about 155, [CLS] and [SEP] counted.
LONG_WORD_EVERY = 12
LONG_WORD_LETTERS = 13


def use_model_scripts() -> None:
    """Makes the modules in models/scripts importable: the word list, the f64 reference and the ONNX export live
    there."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))


@cache
def words() -> tuple[list[str], list[float]]:
    """The words that the golden texts of the models are made of, and how often each is drawn."""
    use_model_scripts()
    from make_golden import WORDS

    found = sorted(set(WORDS))
    long = sum(len(word) >= LONG_WORD_LETTERS for word in found)
    plain = len(found) - long
    weights = [
        1 / long / LONG_WORD_EVERY if len(word) >= LONG_WORD_LETTERS else (1 - 1 / LONG_WORD_EVERY) / plain
        for word in found
    ]
    return found, weights


class Stream:
    """The endless list of a round's texts. Text `n` is the same whoever asks and whenever."""

    def __init__(self, workload: Workload, name: str, vocabulary: tuple[list[str], list[float]] | None = None) -> None:
        self.workload = workload
        # A seed of text, so that two rounds never share texts by arithmetic.
        self._random = random.Random(f"{workload.name}/{name}")
        self._words, weights = vocabulary or words()
        self._cumulative = [sum(weights[: index + 1]) for index in range(len(weights))]
        self._texts: list[str] = []

    def text(self, index: int) -> str:
        while len(self._texts) <= index:
            self._texts.append(self._draw())
        return self._texts[index]

    def texts(self, start: int, count: int) -> list[str]:
        return [self.text(index) for index in range(start, start + count)]

    def _draw(self) -> str:
        count = self._random.randint(self.workload.words_min, self.workload.words_max)
        return " ".join(self._random.choices(self._words, cum_weights=self._cumulative, k=count))


class TokenCounter:
    """Counts tokens as the model does: [CLS] and [SEP] counted, nothing padded, nothing cut off."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def count(self, texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(texts)]
