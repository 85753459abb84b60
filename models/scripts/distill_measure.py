"""How near the bundled encoder is to its teacher, on texts that neither its weights nor its vocabulary have seen.

Comes in: held-out texts, the teacher's embeddings of them, and other ways to turn texts into vectors (the student, two trivial
baselines). Goes out: for each way, Spearman's correlation of its cosines with the teacher's over pairs of texts, and how often
the teacher's nearest neighbour is among its first ten. It never judges by anything but the teacher.
"""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy import sparse
from scipy.stats import spearmanr

from distill_corpus import Text
from distill_teacher import Teacher

SEED = 12
SHORT_TEXTS = 4000
LONG_TEXTS = 400
LONG_TOKENS_MIN = 200
# Pairs of each sort, at most: as many as there are where there are fewer.
SHORT_PAIRS = {"random": 3000, "related": 3000, "cut": 1500}
LONG_PAIRS = {"random": 1500, "related": 1500, "cut": 400}
QUERIES = 1000
NEIGHBOURS = 10

Vectors = np.ndarray | sparse.csr_matrix


@dataclass
class HeldOut:
    """Texts, and pairs of indices into them by name: `random` (any two), `related` (two of one group), `cut` (a text and its
    first half)."""

    texts: list[str]
    pairs: dict[str, np.ndarray]
    searched: int = 0  # the first so many texts are what is searched
    teacher: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))


def first_half(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def make_held_out(texts: list[Text], sizes: dict[str, int]) -> HeldOut:
    """Pairs within `texts`, and of texts with their first halves."""
    chance = random.Random(SEED)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for at, text in enumerate(texts):
        groups[text.group].append(at)
    related = [(a, b) for members in groups.values() for i, a in enumerate(members) for b in members[i + 1 : i + 9]]
    chance.shuffle(related)
    everyone = range(len(texts))
    pairs = {
        "random": [tuple(chance.sample(everyone, 2)) for _ in range(sizes["random"])],
        "related": related[: sizes["related"]],
    }
    all_texts = [text.text for text in texts]
    divisible = [at for at in everyone if len(all_texts[at].split()) >= 6][: sizes["cut"]]
    pairs["cut"] = [(at, len(all_texts) + n) for n, at in enumerate(divisible)]
    all_texts += [first_half(all_texts[at]) for at in divisible]
    return HeldOut(all_texts, {name: np.array(found) for name, found in pairs.items()}, len(texts))


def held_out(texts: list[Text], trained_on: set[str], teacher: Teacher, cache: Path) -> dict[str, HeldOut]:
    """The short texts (sentences, paragraphs of up to 60 words, words and phrases) and the long ones (at least LONG_TOKENS_MIN
    of the teacher's tokens), with the teacher's embeddings. What also stands, in lower case, in `trained_on` is left out:
    phrases that two groups share."""
    unseen = sorted({text.text: text for text in texts if text.held_out}.values(), key=lambda text: text.text)
    random.Random(SEED).shuffle(unseen)
    unseen = [text for text in unseen if text.text.lower() not in trained_on]
    sentences = [text for text in unseen if text.kind == "sentence"][: SHORT_TEXTS * 4 // 5]
    words = [text for text in unseen if text.kind == "word"][: SHORT_TEXTS // 5]
    passages = [text for text in unseen if text.kind == "passage" and len(text.text.split()) > LONG_TOKENS_MIN // 2]
    counts = teacher.count_tokens([text.text for text in passages])
    passages = [text for text, count in zip(passages, counts) if count >= LONG_TOKENS_MIN][:LONG_TEXTS]
    if min(len(sentences), len(passages)) < 50:
        raise SystemExit(
            f"{len(sentences)} sentences and {len(passages)} long passages are held out, too few to measure by: give more text"
        )
    sets = {
        "short": make_held_out(sentences + words, SHORT_PAIRS),
        "long": make_held_out(passages, LONG_PAIRS),
    }
    for name, one in sets.items():
        one.teacher = teacher.embed_cached(one.texts, cache, f"held-out {name} texts").astype(np.float32)
    return sets


# ---- figures --------------------------------------------------------------------------------------------------------


def cosines(vectors: Vectors, pairs: np.ndarray) -> np.ndarray:
    left, right = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    product = left.multiply(right) if sparse.issparse(left) else left * right
    return np.asarray(product.sum(axis=1)).ravel()


def recall(vectors: Vectors, one: HeldOut, queries: int) -> float:
    """Of the first `queries` texts: how often the teacher's nearest other text is among the first NEIGHBOURS."""

    def scores(v: Vectors) -> np.ndarray:
        product = v[:queries] @ v[: one.searched].T
        product = product.toarray() if sparse.issparse(product) else product.copy()
        product[np.arange(queries), np.arange(queries)] = -2.0
        return product

    best = scores(one.teacher).argmax(axis=1)
    found = np.argpartition(-scores(vectors), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return float((found == best[:, None]).any(axis=1).mean())


def figures(vectors: Vectors, one: HeldOut) -> dict[str, float]:
    """Spearman over all pairs (`all`) and over each sort, and `recall`."""
    ours = {name: cosines(vectors, pairs) for name, pairs in one.pairs.items()}
    theirs = {name: cosines(one.teacher, pairs) for name, pairs in one.pairs.items()}
    ours["all"], theirs["all"] = np.concatenate(list(ours.values())), np.concatenate(list(theirs.values()))
    row = {name: float(spearmanr(ours[name], theirs[name]).statistic) for name in ("all", *one.pairs)}
    return row | {"recall": recall(vectors, one, min(QUERIES, one.searched))}


# ---- baselines ------------------------------------------------------------------------------------------------------


def word_list(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class TfIdf:
    """count · log(texts / texts with the word), normalised; the weights are those of the training texts."""

    def __init__(self, texts: list[str]) -> None:
        seen: Counter[str] = Counter()
        for text in texts:
            seen.update(set(word_list(text)))
        self.column = {word: at for at, word in enumerate(sorted(seen))}
        self.weight = np.log(len(texts) / np.array([seen[word] for word in self.column]))

    def embed(self, texts: list[str]) -> sparse.csr_matrix:
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            for word, count in Counter(word_list(text)).items():
                if word in self.column:
                    rows.append(row)
                    columns.append(self.column[word])
                    values.append(count * self.weight[self.column[word]])
        matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), len(self.column)))
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.diags(1 / np.maximum(length, 1e-12)) @ matrix


def mean_of_inputs(teacher: Teacher, folder: Path, texts: list[str]) -> np.ndarray:
    """The mean of the teacher's input word embeddings, [CLS] and [SEP] left out, normalised: [n, 384]."""
    table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].astype(np.float32)
    out = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
    for row, encoding in enumerate(teacher.tokenizer.encode_batch(texts)):
        ids = encoding.ids[1:-1] or encoding.ids
        out[row] = table[ids].mean(axis=0)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


# ---- the table ------------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, dict[str, float]]], sets: dict[str, HeldOut]) -> str:
    """Markdown: one table for each set of texts, a row for each way to embed."""
    lines = []
    for name, one in sets.items():
        counts = {sort: len(pairs) for sort, pairs in one.pairs.items()}
        queries = min(QUERIES, one.searched)
        head = (
            f"**{name} texts**: {one.searched} texts; pairs: {counts['random']} random, {counts['related']} related, "
            f"{counts['cut']} of a text and its first half; {queries} queries"
        )
        lines += [
            head,
            "",
            f"| | Spearman, all pairs | random | related | cut | recall@{NEIGHBOURS} |",
            "|---|---|---|---|---|---|",
        ]
        for way, sets_of_figures in rows.items():
            row = sets_of_figures[name]
            values = " | ".join(f"{row[column]:.3f}" for column in ("all", "random", "related", "cut", "recall"))
            lines.append(f"| {way} | {values} |")
        lines.append("")
    return "\n".join(lines).rstrip()
