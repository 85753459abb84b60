#!/usr/bin/env python3
"""Trains the bundled language model: a small Llama that says in a line what a Debian package or a command is for.

Comes in: text that Debian ships (language_corpus.py), which this script downloads and unpacks without installing it. Goes out: a folder
with the model, its own tokenizer, chat template and model card, and golden outputs for the tests. It prints how well the model
predicts text that it was not trained on, beside an n-gram model that has read the same tokens (language_ngram.py), says where the
n-grams are better, and fails where the files are too large to bundle.

A batch holds documents whole, each from position 0 on; a share of the tokens for each kind of document. Matrices of the layers learn by Muon
(Jordan et al. 2024), the rest by AdamW (Loshchilov and Hutter 2019); the rate rises for a fiftieth of the
run and then falls to 0. What is kept is the state that was best on held-out text.

On a GPU: --device cuda --minutes 20. Needs requirements-language.txt.
"""

import argparse
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import language_corpus as corpus
import language_tokenizer as tokens
from language_ngram import Ngrams
from language_tokenizer import Encoded

SEED = 17
VOCABULARY, CONTEXT = 2048, 512
HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS = 192, 512, 3, 6, 2
ROPE_THETA = 10000.0
# Shares of the tokens of each kind of document: enough of the well-known packages that they are learnt by heart.
SHARES = {"known": 0.46, "packages": 0.12, "commands": 0.19, "prose": 0.18, "talk": 0.02, "beyond": 0.03}
# Of a batch, padding counted; a CPU has no time for as many large batches as learning takes.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
POOLED = 24  # batches whose documents are sorted by length together, so that little is padding
RATE = {"cpu": 4e-3, "cuda": 3e-3}
LOOK_DOCUMENTS, MEASURED_DOCUMENTS = 40, 300  # of each kind, at most
TOKENIZER_DOCUMENTS = 20_000
COUNTED_TOKENS = 10_000_000  # of those that the network reads; what else it reads, the n-gram model does not count
BYTES_MAX = 8_000_000
BASELINE = "Kneser-Ney, 5 tokens"

MODELS = Path(__file__).resolve().parent.parent
REQUIREMENTS = "models/scripts/requirements-language.txt"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains the bundled language model on text that Debian ships, and measures it against an n-gram model. Needs a "
        f"Debian system, and pip install -r {REQUIREMENTS}; without torch it says so and writes nothing. "
        "The files are laid out as transformers reads them; seeds are fixed."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=25, help="how long to train (default: %(default)s)")
    add(
        "--steps", type=int, help="train so many batches instead, which gives the same weights each time on one machine"
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: %(default)s)")
    add("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    add(
        "--out",
        type=Path,
        default=MODELS / "bundled/debian-tiny-chat",
        help="the model's folder (default: %(default)s)",
    )
    add(
        "--golden",
        type=Path,
        default=MODELS / "tests/data/debian-tiny-chat.golden.json",
        help="golden outputs (default: %(default)s)",
    )
    add(
        "--work",
        type=Path,
        default=MODELS.parent / "target/language",
        help="downloaded text; a second run takes what is there (default: %(default)s)",
    )
    return parser.parse_args()


class Reader:
    """Draws documents for training, and keeps what was drawn first for the n-gram model."""

    def __init__(self, library: corpus.Library, tokenizer: Tokenizer, batch_tokens: int, chance: random.Random):
        self.library, self.tokenizer, self.batch_tokens, self.chance = library, tokenizer, batch_tokens, chance
        self.drawn = dict.fromkeys(SHARES, 0)  # tokens
        self.counted: list[np.ndarray] = []
        self.counted_tokens = 0

    def batches(self) -> Iterator[list[Encoded]]:
        """One batch after another, without an end."""
        while True:
            documents, pooled = [], 0
            while pooled < POOLED * self.batch_tokens:
                kind = min(SHARES, key=lambda kind: self.drawn[kind] / SHARES[kind])
                drawn = [self.library.draw(kind, self.chance) for _ in range(16)]
                some = tokens.encode(self.tokenizer, drawn, CONTEXT)
                size = sum(len(document.ids) for document in some)
                documents += some
                pooled += size
                self.drawn[kind] += size
            cut = cut_by_length(documents, self.batch_tokens)
            self.chance.shuffle(cut)
            for batch in cut:
                if self.counted_tokens < COUNTED_TOKENS:
                    self.counted += [document.ids for document in batch]
                    self.counted_tokens += sum(len(document.ids) for document in batch)
                yield batch


def cut_by_length(documents: list, limit: int) -> list[list]:
    """Batches of documents of like length, of at most `limit` tokens when padded."""
    cut: list[list] = []
    room = 0
    for document in sorted(documents, key=lambda document: -len(document.ids)):
        if room < 1:
            cut.append([])
            room = limit // len(document.ids)
        cut[-1].append(document)
        room -= 1
    return cut


def held_out_sets(held_out: corpus.Library, tokenizer: Tokenizer, limit: int) -> dict[str, list[Encoded]]:
    """Documents to measure by, `limit` of each kind at most, the same in each run."""
    chance = random.Random(SEED)
    kinds = {
        "documentation": held_out.technical,
        "descriptions of packages": held_out.described,
        "chat answers": held_out.chats(chance),
    }
    some = {name: chance.sample(documents, min(limit, len(documents))) for name, documents in kinds.items()}
    return {name: tokens.encode(tokenizer, documents, CONTEXT) for name, documents in some.items()}


def recall_probes(library: corpus.Library) -> dict[str, list[corpus.Document]]:
    """Questions whose answers were trained on."""
    in_short = [corpus.question("In short, what is {}?", one.name, one.short) for one in library.known]
    command = [corpus.question("What does the command {} do?", one.name, one.summary) for one in library.commands]
    return {"what a well-known package is, in short": in_short, "what a command does": command}


def main() -> None:
    arguments = parse()
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"skipped: {package} is not installed; to train the model again: pip install -r {REQUIREMENTS}")
            return
    # torch takes seconds to import, and --help should not wait for it.
    import torch

    import language_card as card
    from language_network import Network, Progress, kept_best

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no graphics card: leave --device away to train on the processor")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    chance = random.Random(SEED)
    library, held_out, versions = corpus.read(arguments.work / "packages")
    sample = [library.draw(kind, chance) for kind in SHARES for _ in range(int(SHARES[kind] * TOKENIZER_DOCUMENTS))]
    tokenizer = tokens.train(sample, VOCABULARY)
    network = Network.new(
        arguments.device,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=CONTEXT,
        rope_theta=ROPE_THETA,
        special=tokenizer.token_to_id,
    )
    reader = Reader(library, tokenizer, BATCH_TOKENS[arguments.device], chance)
    looked_at = held_out_sets(held_out, tokenizer, LOOK_DOCUMENTS)
    progress = Progress(arguments.minutes * 60, arguments.steps)
    facts = kept_best(network, reader.batches(), looked_at, progress, RATE[arguments.device])

    arguments.out.mkdir(parents=True, exist_ok=True)
    network.save(arguments.out)
    tokens.save(tokenizer, arguments.out, CONTEXT)
    network = Network.read(arguments.out)
    chats = [library.draw(kind, chance) for kind in SHARES if kind != "prose" for _ in range(50)]
    card.check_template(arguments.out, chats, tokens.encode(tokenizer, chats, CONTEXT))

    sets = held_out_sets(held_out, tokenizer, MEASURED_DOCUMENTS)
    ngrams = Ngrams(reader.counted, VOCABULARY)
    ngrams.check(sets["chat answers"][0].ids)
    ways = {arguments.out.name: network.log_probabilities, BASELINE: lambda one: ngrams.log_probabilities(one.ids)}
    quality = {way: {name: card.figures(ask, some) for name, some in sets.items()} for way, ask in ways.items()}
    facts |= {
        "name": arguments.out.name,
        "config": json.loads((arguments.out / "config.json").read_text()),
        "parameters": network.parameters,
        "counted": reader.counted_tokens,
        "known": len(library.known),
        "commands": len(library.commands),
        "where": "a graphics card" if arguments.device == "cuda" else f"{arguments.threads} thread(s) of a processor",
        "versions": versions,
        "sizes": {name: (len(some), sum(int(one.learnt.sum()) for one in some)) for name, some in sets.items()},
        "quality": quality,
        "recalled": {
            name: network.share_recalled(tokens.encode(tokenizer, documents, CONTEXT))
            for name, documents in recall_probes(library).items()
        },
    }
    print(f"\n{card.table(facts)}\n\n{card.recall_table(facts)}\n\n{card.verdict(facts)}")
    card.write_golden(arguments.out, arguments.golden)
    facts["answers"] = card.answers(arguments.out)
    (arguments.out / "README.md").write_text(card.card(facts))
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size} bytes")
    if size > BYTES_MAX:
        sys.exit(f"more than {BYTES_MAX} bytes: make the network smaller")


if __name__ == "__main__":
    main()
