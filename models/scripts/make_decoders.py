#!/usr/bin/env python3
"""Makes a small checkpoint of every decoder architecture, and the golden outputs that the tests of text generation compare with.

Comes in: decoder_checkpoints.py and the seeds below. Goes out, into one folder:

  <name>/config.json        with the keys and values that published models have, sizes aside
  <name>/model.safetensors  random weights under the published tensor names; one model is in two files with an index
  <name>.golden.json        token ids, and what the f64 reference makes of them:
    {"reference": ..., "config_notes": ..., "cases": [{"ids",
      "argmax", "max", "logsumexp": the likeliest next token after each token, its logit, and the logarithm of the sum over
      all exponentiated logits; "last": all logits after the last token; "greedy": the likeliest continuation}]}

The reference is the `transformers` library in f64, one text at a time, without a cache. Its two ways to compute attention must agree,
and its own loop with a cache must continue in the same way. Needs requirements-architectures.txt.
"""

import argparse
import importlib.util
import json
import random
import sys
import zlib
from pathlib import Path

import numpy as np

from architecture_checkpoints import Checkpoint
from decoder_checkpoints import checkpoints, weights
from make_architectures import AGREEMENT, REQUIREMENTS, difference, rounded, write_config, write_tensors

DATA = Path(__file__).resolve().parent.parent / "tests/data/decoder"
LENGTHS = (
    1,
    6,
    33,
    90,
)  # one token; less than every window; more than one; more than the positions before rotary scaling
CONTINUED = 16  # tokens
DISTINCT_MIN = 4  # of a continuation; one that repeats itself says little
# The likeliest token leads the next one by as much of the largest logit at least: what f32 makes of it never changes the answer.
LEAD_MIN = 1e-3
ORDINARY = range(10, 288)  # tokens that are special in no model
SHARDED = "mistral"
LIMIT_BYTES = 3_200_000  # of all checkpoints and golden outputs together
SEED = 2026  # and the checkpoint's name, so that a new one changes no other


def write_checkpoint(folder: Path, checkpoint: Checkpoint, seed: int) -> None:
    """config.json and the weights: in one file, or the first half of the tensors and the second in files of their own."""
    write_config(folder, checkpoint)
    tensors = weights(checkpoint, seed)
    if checkpoint.name != SHARDED:
        write_tensors(folder / "model.safetensors", tensors, checkpoint.stored)
        return
    names = sorted(tensors)
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in part}, checkpoint.stored)
        files |= dict.fromkeys(part, file)
    total = sum(values.size for values in tensors.values()) * (4 if checkpoint.stored == "F32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def lead(logits: np.ndarray) -> float:
    """By how much the likeliest token leads at least, as a share of the largest logit."""
    best = np.sort(logits, axis=-1)
    return float((best[..., -1] - best[..., -2]).min() / np.abs(logits).max())


class References:
    """The library, once per way that it computes attention. The first is the one whose answers are kept; `worst` is the widest
    disagreement of all that was asked."""

    def __init__(self, folder: Path):
        # torch takes seconds to import, and --help should not wait for it.
        from reference_transformers import VERSIONS, Decoder

        self.first = Decoder(folder, "eager")
        self.name = f"{VERSIONS}, float64, eager attention, without a cache"
        # Scores behind a soft cap can be computed in one way only.
        capped = self.first.model.config.to_dict().get("attn_logit_softcapping")
        self.others = [] if capped else [Decoder(folder, "sdpa")]
        self.worst = 0.0

    def answer(self, ids: list[int]) -> dict | None:
        """What the reference makes of a text; nothing where the likeliest token leads by too little somewhere, or the continuation
        repeats itself or holds a token that may end a text."""
        logits = self.first.next_logits(ids)
        greedy, closest = [], lead(logits)
        for _ in range(CONTINUED):
            last = self.first.next_logits(ids + greedy)[-1]
            closest = min(closest, lead(last))
            greedy.append(int(last.argmax()))
        if closest < LEAD_MIN or len(set(greedy)) < DISTINCT_MIN or min(greedy) < ORDINARY.start:
            return None
        self.worst = max([self.worst, *(difference(logits, other.next_logits(ids)) for other in self.others)])
        if self.first.continued(ids, CONTINUED) != greedy:
            raise SystemExit(f"the library continues {ids} in another way with its cache")
        return {
            "ids": ids,
            "argmax": logits.argmax(axis=-1).tolist(),
            "max": rounded(logits.max(axis=-1)),
            "logsumexp": rounded(np.log(np.exp(logits).sum(axis=-1))),
            "last": rounded(logits[-1]),
            "greedy": greedy,
        }


def cases(references: References, seed: int) -> list[dict]:
    """A text of every length: the first of random ones that has an answer."""
    rng = random.Random(seed)
    answers = []
    for length in LENGTHS:
        answer = None
        while answer is None:
            answer = references.answer([rng.choice(ORDINARY) for _ in range(length)])
        answers.append(answer)
    return answers


def notes(checkpoint: Checkpoint) -> str:
    """What a reader of the golden file should know of the config."""
    parts = [f"laid out like {checkpoint.like}", f"weights stored as {checkpoint.stored}"]
    if "dtype" in checkpoint.config:
        parts.append("config.json as transformers 5 writes it")
    return "; ".join(parts)


def make(out: Path, checkpoint: Checkpoint, seed: int) -> None:
    """One checkpoint and its golden outputs."""
    folder = out / checkpoint.name
    write_checkpoint(folder, checkpoint, seed)
    references = References(folder)
    answers = cases(references, seed)
    if references.worst > AGREEMENT:
        raise SystemExit(f"{checkpoint.name}: the references differ by {references.worst:.1e} of the largest value")
    head = "".join(
        f"{json.dumps(key)}: {json.dumps(value)},\n"
        for key, value in (("reference", references.name), ("config_notes", notes(checkpoint)))
    )
    lines = ",\n".join(json.dumps(answer) for answer in answers)
    (out / f"{checkpoint.name}.golden.json").write_text(f'{{{head}"cases": [\n{lines}\n]}}\n')
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{checkpoint.name}: {size} bytes; {1 + len(references.others)} references agree to {references.worst:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes small random checkpoints of every decoder architecture, laid out as their published models are, and "
        "golden outputs in f64. "
        f"Needs torch and transformers: pip install -r {REQUIREMENTS}; without them it says so and writes nothing."
    )
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write into (default: %(default)s)")
    parser.add_argument("--only", default="", help="make only the checkpoints whose names contain this")
    arguments = parser.parse_args()

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"skipped: {package} is not installed; to make the decoders again: pip install -r {REQUIREMENTS}")
            return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for checkpoint in checkpoints():
        if arguments.only in checkpoint.name:
            make(arguments.out, checkpoint, SEED + zlib.crc32(checkpoint.name.encode()))
    total = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{total} bytes in all")
    if total > LIMIT_BYTES:
        sys.exit(f"more than {LIMIT_BYTES} bytes: make the checkpoints smaller")


if __name__ == "__main__":
    main()
