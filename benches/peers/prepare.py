"""The same weights for everybody: two model folders that differ in nothing but an ONNX graph.

Comes in: a folder of all-MiniLM-L6-v2 (safetensors). Goes out, under one folder:

  weights/  config, weights, tokenizer without padding and truncation, pooling; what a worker is given
  onnx/     the same and model.onnx, exported from the same weights; what ONNX Runtime runs, offline or inside a server

No weight's value is changed. Files are hard links where the file system can.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .texts import use_model_scripts

LONGEST_TOKENS = 512  # all positions of the model; the published folder asks some programs to cut texts at 128 or 256


@dataclass(frozen=True)
class Folders:
    """Where the prepared models are."""

    weights: Path
    onnx: Path

    @property
    def graph(self) -> Path:
        return self.onnx / "model.onnx"


def prepare(model: Path | None, out: Path) -> Folders:
    """Makes both folders; what is there already and no older than the weights stays."""
    use_model_scripts()
    from export_minilm_onnx import TOLERANCE, difference_from_reference, export
    from reference_bert import minilm_folder

    source = model or minilm_folder()
    weights = source / "model.safetensors"
    if not weights.is_file():
        raise SystemExit(
            f"{weights} is missing; give --model a folder with config.json, model.safetensors, tokenizer.json"
        )
    folders = Folders(out.resolve() / "weights", out.resolve() / "onnx")
    for folder in (folders.weights, folders.onnx):
        _fill(source, folder)
    if not folders.graph.is_file() or folders.graph.stat().st_mtime < weights.stat().st_mtime:
        print(f"exporting the weights as an ONNX graph to {folders.graph}", flush=True)
        partial = folders.graph.with_suffix(".partial")
        export(source, partial)
        difference = difference_from_reference(source, partial)
        if difference > TOLERANCE:
            raise SystemExit(
                f"the exported graph differs from the f64 reference by {difference:.2e}, more than {TOLERANCE:g}"
            )
        partial.rename(folders.graph)
    return folders


def _fill(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "special_tokens_map.json", "modules.json"):
        if (source / name).is_file():
            _link(source / name, folder / name)
    _write_json(folder / "tokenizer.json", _untrimmed(json.loads((source / "tokenizer.json").read_text())))
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": LONGEST_TOKENS, "do_lower_case": False})
    settings = source / "tokenizer_config.json"
    if settings.is_file():
        _write_json(folder / settings.name, json.loads(settings.read_text()) | {"model_max_length": LONGEST_TOKENS})
    hidden = json.loads((source / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write_json(folder / "1_Pooling/config.json", pooling)
    (folder / "2_Normalize").mkdir(exist_ok=True)


def _untrimmed(tokenizer: dict) -> dict:
    """The tokenizer with padding and truncation off: what a text's ids are must not depend on who reads it."""
    return tokenizer | {"padding": None, "truncation": None}


def _link(source: Path, target: Path) -> None:
    source = source.resolve()
    if target.exists():
        if target.stat().st_size == source.stat().st_size and target.stat().st_mtime >= source.stat().st_mtime:
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)  # another file system


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False))
