#!/usr/bin/env python3
"""Makes a small checkpoint of every encoder architecture, and the golden outputs that the models' tests compare with.

Comes in: architecture_checkpoints.py and the seeds below. Goes out, into one folder:

  <name>/config.json        with the keys and values that published models have, sizes aside
  <name>/model.safetensors  random weights under the published tensor names
  <name>.golden.json        token ids, and what the f64 reference makes of them:
    {"reference": ..., "config_notes": ..., "cases": [{"ids", "type_ids" (where the model reads them; else all 0),
      "mean", "cls", "last": pooled last hidden states, not normalised; or "logits"}],
     "pad_inside": one such case whose text holds the padding token, for models that count positions around it}

The reference is the `transformers` library in f64 where it implements the architecture, else reference_architectures.py; both are
computed wherever both can be, and must agree. One text at a time, never padded. Needs requirements-architectures.txt.
"""

import argparse
import importlib.util
import json
import random
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, serialize_file

from architecture_checkpoints import Checkpoint, checkpoints, weights
from reference_architectures import Encoder

DATA = Path(__file__).resolve().parent.parent / "tests/data/arch"
REQUIREMENTS = "models/scripts/requirements-architectures.txt"
LENGTHS = (1, 2, 3, 7, 8, 17, 33, 64)  # and the longest text that the model takes
AGREEMENT = 1e-12  # of the largest value; two f64 references of one formula differ by rounding alone
ORDINARY = range(3, 100)  # tokens that are special in no model
DIGITS = 10  # of an expected number: far more than an f32 tells apart
LIMIT_BYTES = 3_000_000  # of all checkpoints and golden outputs together
SEED = 2026  # and the checkpoint's name, so that a new one changes no other


def stored(values: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    """A safetensors type, and the values as its bytes lie in the file; BF16 is the nearest one, ties to even."""
    if values.dtype == np.int64:
        return "int64", values.astype("<i8")
    if kind == "BF16":
        bits = values.astype("<f4").view("<u4")
        return "bfloat16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return ("float16", values.astype("<f2")) if kind == "F16" else ("float32", values.astype("<f4"))


def write_tensors(path: Path, tensors: dict[str, np.ndarray], kind: str) -> None:
    """One safetensors file; floating tensors as `kind`: F32, F16 or BF16."""
    kept = {name: stored(values, kind) for name, values in tensors.items()}  # alive until they are written
    entries = {
        name: TensorSpec(dtype=kind, shape=values.shape, data_ptr=values.ctypes.data, data_len=values.nbytes)
        for name, (kind, values) in kept.items()
    }
    serialize_file(entries, path, metadata={"format": "pt"})


def write_config(folder: Path, checkpoint: Checkpoint) -> None:
    """A new folder with config.json."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config, indent=2) + "\n")


def write_checkpoint(folder: Path, checkpoint: Checkpoint, seed: int) -> None:
    """config.json and model.safetensors."""
    write_config(folder, checkpoint)
    tensors = weights(checkpoint, seed)
    if checkpoint.position_ids:
        tensors[checkpoint.position_ids] = np.arange(checkpoint.config["max_position_embeddings"])[None, :]
    write_tensors(folder / "model.safetensors", tensors, checkpoint.stored)


def texts(checkpoint: Checkpoint, seed: int) -> list[dict]:
    """Token ids of every length, between the model's special tokens; every second text of a model with token types is a pair."""
    rng = random.Random(seed)
    first, last = checkpoint.specials
    cases = []
    for index, length in enumerate((*LENGTHS, checkpoint.longest)):
        middle = [rng.choice(ORDINARY) for _ in range(length - 2)]
        case: dict = {"ids": [first, *middle, last][:length]}
        if checkpoint.token_types > 1 and index % 2:
            case["type_ids"] = [0] * (length // 2) + [1] * (length - length // 2)
        cases.append(case)
    return cases


def rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(one - other).max() / np.abs(one).max())


class References:
    """The numpy reference of a checkpoint and the library, once per way that it computes attention. The first of `all` is the one
    whose answers are kept; `worst` is the widest disagreement of all that was asked."""

    def __init__(self, folder: Path, checkpoint: Checkpoint):
        # torch takes seconds to import, and --help should not wait for it.
        from reference_transformers import VERSIONS, JinaInLibrary, Library

        own = Encoder(folder)
        kind = JinaInLibrary if own.kind == "jina_bert" else Library
        ways = ("eager",) if own.kind == "mpnet" else ("eager", "sdpa")  # MPNet has one
        library = [kind(folder, way) for way in ways]
        native = library[0].native
        self.all = [*library, own] if native else [own, *library]
        numpy = f"reference_architectures.py, numpy {np.__version__}, float64"
        self.name = f"{VERSIONS}, float64, eager attention" if native else numpy
        self.classifies = checkpoint.labels > 0
        self.worst = 0.0

    def answer(self, case: dict) -> dict:
        """What the reference makes of a text, after every other reference has made the same of it."""
        asked = (case["ids"], case.get("type_ids"))
        answers = [one.logits(*asked) if self.classifies else one.hidden_states(*asked) for one in self.all]
        wanted = answers[0]
        self.worst = max(self.worst, *(difference(wanted, other) for other in answers[1:]))
        if self.classifies:
            return case | {"logits": rounded(wanted)}
        pooled = {"mean": wanted.mean(axis=0), "cls": wanted[0], "last": wanted[-1]}
        return case | {name: rounded(values) for name, values in pooled.items()}


def notes(checkpoint: Checkpoint) -> str:
    """What a reader of the golden file should know of the config."""
    parts = [f"laid out like {checkpoint.like}", f"weights stored as {checkpoint.stored}"]
    if checkpoint.token_types > 1:
        parts.append("cases without type_ids have type 0 throughout")
    if checkpoint.config["model_type"] == "modernbert":
        parts.append(f"local layers see {checkpoint.config['local_attention'] // 2} keys on each side")
    if "layer_types" in checkpoint.config:
        parts.append("config.json as transformers 5 writes it")
    return "; ".join(parts)


def make(out: Path, checkpoint: Checkpoint, seed: int) -> None:
    """One checkpoint and its golden outputs."""
    folder = out / checkpoint.name
    write_checkpoint(folder, checkpoint, seed)
    references = References(folder, checkpoint)
    golden: dict = {
        "reference": references.name,
        "config_notes": notes(checkpoint),
        "cases": [references.answer(case) for case in texts(checkpoint, seed)],
    }
    if checkpoint.padding_inside is not None:
        first, last = checkpoint.specials
        golden["pad_inside"] = references.answer({"ids": [first, 31, checkpoint.padding_inside, 37, 41, last]})
    if references.worst > AGREEMENT:
        raise SystemExit(f"{checkpoint.name}: the references differ by {references.worst:.1e} of the largest value")
    lines = ",\n".join(json.dumps(case) for case in golden.pop("cases"))
    rest = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in golden.items())
    (out / f"{checkpoint.name}.golden.json").write_text(f'{{{rest}"cases": [\n{lines}\n]}}\n')
    size = (folder / "model.safetensors").stat().st_size
    print(f"{checkpoint.name}: {size} bytes; {len(references.all)} references agree to {references.worst:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes small random checkpoints of every encoder architecture, laid out as their published models are, and "
        "golden outputs in f64. "
        f"Needs torch and transformers: pip install -r {REQUIREMENTS}; without them it says so and writes nothing."
    )
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write into (default: %(default)s)")
    parser.add_argument("--only", default="", help="make only the checkpoints whose names contain this")
    arguments = parser.parse_args()

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(
                f"skipped: {package} is not installed; to make the architectures again: pip install -r {REQUIREMENTS}"
            )
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
