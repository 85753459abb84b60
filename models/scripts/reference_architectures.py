#!/usr/bin/env python3
"""Encoder architectures in numpy and f64, straight from the formulas: one function each, one text at a time, never padded.

Comes in: a checkpoint folder (config.json, model.safetensors) and token ids, with token types where the model reads them.
Goes out: hidden states, pooled embeddings and logits in f64. It is never fast, never batched, and never rounds to f32.

Sources: Devlin et al. 2018 (BERT), Liu et al. 2019 (RoBERTa: positions, head), Sanh et al. 2019 (DistilBERT), Song et al. 2020 and
Raffel et al. 2019 (MPNet: buckets of relative positions), Su et al. 2021 (rotary positions), Shazeer 2020 (gated feed-forward),
Nussbaum et al. 2024 (NomicBERT), Warner et al. 2024 (ModernBERT), Zhang et al. 2024 (GTE), Press et al. 2021 and Günther et al. 2023
(ALiBi, Jina v2), Zhang and Sennrich 2019 (RMSNorm), Yang et al. 2025 (Qwen3), and the published config.json files.
Tensor names and the order of packed halves are those of the published checkpoints.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import deserialize

from reference_bert import gelu, layer_norm, softmax

Array = np.ndarray
PREFIXES = ("bert.", "roberta.", "distilbert.", "mpnet.", "new.", "model.")
STORED = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
DISTILBERT_EPS = 1e-12  # a constant of the model, in no config.json
MPNET_PADDING = 1  # likewise: MPNet does not read pad_token_id


def load_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file by its name; F32, F16 and BF16 become f64, which holds each exactly."""
    tensors = {}
    for name, stored in deserialize(path.read_bytes()):
        if stored["dtype"] == "BF16":  # the upper half of an f32
            values = (np.frombuffer(stored["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(stored["data"], STORED[stored["dtype"]])
        values = values.reshape(stored["shape"])
        tensors[name] = values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values
    return tensors


def without_prefix(name: str) -> str:
    """The name without the prefix that models with a head put before their base model's tensors."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def gelu_tanh(x: Array) -> Array:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), which configs call gelu_new."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    """x / (1 + exp(-x))."""
    return x / (1.0 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": silu,
}


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """y = x / sqrt(E[x^2] + eps) * weight over the last dimension."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotary_frequencies(width: int, theta: float) -> Array:
    """f_i = theta^(-2 i / width), [width / 2]: the angle of pair i grows by f_i from one token to the next."""
    return theta ** (-2.0 * np.arange(width // 2) / width)


def rotate(x: Array, frequencies: Array) -> Array:
    """Turns each pair (x_i, x_{i + d/2}) of x [heads, s, d] by the token's position times f_i."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * frequencies
    cosine, sine = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def distances(tokens: int) -> Array:
    """j - i for query i and key j, [s, s]."""
    return np.arange(tokens)[None, :] - np.arange(tokens)[:, None]


def mpnet_buckets(tokens: int, buckets: int, max_distance: int = 128) -> Array:
    """The bucket of each pair's distance, [s, s]: half of them for keys after the query; near distances have one each, far ones
    share them logarithmically, all from max_distance on the last one."""
    relative = distances(tokens)
    half, near = buckets // 2, buckets // 4
    distance = np.abs(relative)
    spread = np.log(np.maximum(distance, 1) / near) / math.log(max_distance / near) * (half - near)
    far = np.minimum(near + np.trunc(spread).astype(np.int64), half - 1)
    return np.where(relative > 0, half, 0) + np.where(distance < near, distance, far)


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8 k / heads) for k = 1 to heads; a number of heads that is no power of two takes the slopes of the power below it, and
    then every second one of the power above it."""
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * k / power) for k in range(1, power + 1)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


class Encoder:
    """A checkpoint held in f64. Shapes: s = tokens of the one text, h = hidden, a = heads, d = width of a head."""

    def __init__(self, folder: Path):
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise SystemExit(f"{folder}: no {name}; name a folder that holds a checkpoint")
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {without_prefix(n): t for n, t in load_tensors(folder / "model.safetensors").items()}
        self.kind = self.config["model_type"]
        if self.kind == "bert" and self.config.get("position_embedding_type") == "alibi":
            self.kind = "jina_bert"
        if self.kind not in ARCHITECTURES:
            raise SystemExit(f"{folder}: model_type {self.kind} is unknown; known are {', '.join(ARCHITECTURES)}")

    def table(self, name: str, rows: list[int] | Array) -> Array:
        return self.weights[f"{name}.weight"][rows]

    def dense(self, x: Array, name: str) -> Array:
        """x [s, in] -> x W^T + b [s, out], b only where the checkpoint has one; checkpoints store W as [out, in]."""
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, x: Array, name: str, eps: float) -> Array:
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias", 0.0), eps)

    def hidden_states(self, ids: list[int], types: list[int] | None = None) -> Array:
        """The last hidden state [s, h] of one text."""
        return ARCHITECTURES[self.kind](self, ids, types or [0] * len(ids))

    def logits(self, ids: list[int], types: list[int] | None = None) -> Array:
        """The classification head's logits [labels] of one text."""
        return HEADS[self.kind](self, self.hidden_states(ids, types), ids)


def split(x: Array, heads: int) -> Array:
    """[s, heads * d] -> [heads, s, d]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attend(query: Array, key: Array, value: Array, bias: Array | float = 0.0) -> Array:
    """softmax(Q K^T / sqrt d + bias) V per head, heads side by side again. [a, s, d] each -> [s, a * d]."""
    mixed = softmax(query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) + bias) @ value
    return mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1)


def outside(allowed: Array) -> Array:
    """The bias of a mask [s, s]: 0 where a query sees a key, minus infinity where it does not."""
    return np.where(allowed, 0.0, -np.inf)


def packed(model: Encoder, x: Array, name: str, heads: int) -> list[Array]:
    """Q, K and V of one projection whose rows hold all of Q, then all of K, then all of V."""
    return [split(part, heads) for part in np.split(model.dense(x, name), 3, axis=-1)]


def halves(model: Encoder, x: Array, name: str) -> list[Array]:
    """The first and the second half of a gated feed-forward's projection."""
    return np.split(model.dense(x, name), 2, axis=-1)


def shifted_positions(ids: list[int], padding: int) -> Array:
    """Rows of the position table as RoBERTa counts: padding + 1 for the first token and so on; a token that is the padding token
    itself takes the row `padding` and is not counted."""
    real = np.array(ids) != padding
    return np.where(real, np.cumsum(real), 0) + padding


def bert_layers(model: Encoder, x: Array, bias: Array | float, feed_forward: Callable[[Array, str], Array]) -> Array:
    """BERT's attention half of each layer, and the given other half."""
    config = model.config
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        query, key, value = (
            split(model.dense(x, f"{layer}.attention.self.{part}"), config["num_attention_heads"])
            for part in ("query", "key", "value")
        )
        attended = model.dense(attend(query, key, value, bias), f"{layer}.attention.output.dense")
        x = model.norm(x + attended, f"{layer}.attention.output.LayerNorm", config["layer_norm_eps"])
        x = feed_forward(x, layer)
    return x


def plain_feed_forward(model: Encoder) -> Callable[[Array, str], Array]:
    """LN(x + W2 act(W1 x)), with BERT's names."""
    act, eps = ACTIVATIONS[model.config["hidden_act"]], model.config["layer_norm_eps"]

    def run(x: Array, layer: str) -> Array:
        widened = act(model.dense(x, f"{layer}.intermediate.dense"))
        return model.norm(x + model.dense(widened, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", eps)

    return run


def bert(model: Encoder, ids: list[int], types: list[int]) -> Array:
    """BERT, and RoBERTa and XLM-RoBERTa, which count positions from the padding token's id on and know one token type."""
    roberta = model.kind != "bert"
    rows = shifted_positions(ids, model.config["pad_token_id"]) if roberta else np.arange(len(ids))
    x = (
        model.table("embeddings.word_embeddings", ids)
        + model.table("embeddings.position_embeddings", rows)
        + model.table("embeddings.token_type_embeddings", [0] * len(ids) if roberta else types)
    )
    x = model.norm(x, "embeddings.LayerNorm", model.config["layer_norm_eps"])
    return bert_layers(model, x, 0.0, plain_feed_forward(model))


def jina_bert(model: Encoder, ids: list[int], types: list[int]) -> Array:
    """Jina v2: BERT with ALiBi on both sides of a query instead of positions, and a gated feed-forward."""
    config = model.config
    x = model.table("embeddings.word_embeddings", ids) + model.table("embeddings.token_type_embeddings", types)
    x = model.norm(x, "embeddings.LayerNorm", config["layer_norm_eps"])
    slopes = np.array(alibi_slopes(config["num_attention_heads"]))

    def feed_forward(x: Array, layer: str) -> Array:
        gate, up = halves(model, x, f"{layer}.mlp.gated_layers")
        widened = {"geglu": gelu, "reglu": ACTIVATIONS["relu"]}[config["feed_forward_type"]](gate) * up
        return model.norm(
            x + model.dense(widened, f"{layer}.mlp.wo"), f"{layer}.mlp.layernorm", config["layer_norm_eps"]
        )

    return bert_layers(model, x, -slopes[:, None, None] * np.abs(distances(len(ids))), feed_forward)


def distilbert(model: Encoder, ids: list[int], _: list[int]) -> Array:
    """DistilBERT: BERT without token types, with names of its own."""
    config, act = model.config, ACTIVATIONS[model.config["activation"]]
    rows = np.arange(len(ids))
    x = model.table("embeddings.word_embeddings", ids) + model.table("embeddings.position_embeddings", rows)
    x = model.norm(x, "embeddings.LayerNorm", DISTILBERT_EPS)
    for index in range(config["n_layers"]):
        layer = f"transformer.layer.{index}"
        query, key, value = (
            split(model.dense(x, f"{layer}.attention.{part}"), config["n_heads"])
            for part in ("q_lin", "k_lin", "v_lin")
        )
        attended = model.dense(attend(query, key, value), f"{layer}.attention.out_lin")
        x = model.norm(x + attended, f"{layer}.sa_layer_norm", DISTILBERT_EPS)
        widened = act(model.dense(x, f"{layer}.ffn.lin1"))
        x = model.norm(x + model.dense(widened, f"{layer}.ffn.lin2"), f"{layer}.output_layer_norm", DISTILBERT_EPS)
    return x


def mpnet(model: Encoder, ids: list[int], _: list[int]) -> Array:
    """MPNet: BERT without token types, RoBERTa's positions, and a bias of relative positions that all layers share."""
    config, feed_forward = model.config, plain_feed_forward(model)
    rows = shifted_positions(ids, MPNET_PADDING)
    x = model.table("embeddings.word_embeddings", ids) + model.table("embeddings.position_embeddings", rows)
    x = model.norm(x, "embeddings.LayerNorm", config["layer_norm_eps"])
    buckets = mpnet_buckets(len(ids), config["relative_attention_num_buckets"])
    bias = model.table("encoder.relative_attention_bias", buckets).transpose(2, 0, 1)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        query, key, value = (
            split(model.dense(x, f"{layer}.attention.attn.{part}"), config["num_attention_heads"]) for part in "qkv"
        )
        attended = model.dense(attend(query, key, value, bias), f"{layer}.attention.attn.o")
        x = model.norm(x + attended, f"{layer}.attention.LayerNorm", config["layer_norm_eps"])
        x = feed_forward(x, layer)
    return x


def nomic_bert(model: Encoder, ids: list[int], types: list[int]) -> Array:
    """NomicBERT: norms after each half, rotary positions, SwiGLU whose gate is fc12, no biases but the norms'."""
    config, eps = model.config, model.config["layer_norm_epsilon"]
    x = model.table("embeddings.word_embeddings", ids) + model.table("embeddings.token_type_embeddings", types)
    x = model.norm(x, "emb_ln", eps)
    frequencies = rotary_frequencies(config["n_embd"] // config["n_head"], config["rotary_emb_base"])
    for index in range(config["n_layer"]):
        layer = f"encoder.layers.{index}"
        query, key, value = packed(model, x, f"{layer}.attn.Wqkv", config["n_head"])
        attended = attend(rotate(query, frequencies), rotate(key, frequencies), value)
        x = model.norm(x + model.dense(attended, f"{layer}.attn.out_proj"), f"{layer}.norm1", eps)
        widened = model.dense(x, f"{layer}.mlp.fc11") * silu(model.dense(x, f"{layer}.mlp.fc12"))
        x = model.norm(x + model.dense(widened, f"{layer}.mlp.fc2"), f"{layer}.norm2", eps)
    return x


def modernbert_layers(config: dict) -> list[tuple[bool, float]]:
    """Of each layer: whether it is global, and its rotary base. Configs say it in the old way or in that of transformers 5."""
    if "layer_types" in config:
        kinds = config["layer_types"]
        return [(kind == "full_attention", config["rope_parameters"][kind]["rope_theta"]) for kind in kinds]
    everywhere = [index % config["global_attn_every_n_layers"] == 0 for index in range(config["num_hidden_layers"])]
    return [(one, config["global_rope_theta" if one else "local_rope_theta"]) for one in everywhere]


def modernbert(model: Encoder, ids: list[int], _: list[int]) -> Array:
    """ModernBERT: norms before each half and at the end, global and local layers with a rotary base each, gated feed-forward."""
    config, eps, act = model.config, model.config["norm_eps"], ACTIVATIONS[model.config["hidden_activation"]]
    heads = config["num_attention_heads"]
    near = outside(np.abs(distances(len(ids))) <= config["local_attention"] // 2)
    x = model.norm(model.table("embeddings.tok_embeddings", ids), "embeddings.norm", eps)
    for index, (everywhere, theta) in enumerate(modernbert_layers(config)):
        layer = f"layers.{index}"
        frequencies = rotary_frequencies(config["hidden_size"] // heads, theta)
        normed = model.norm(x, f"{layer}.attn_norm", eps) if index > 0 else x
        query, key, value = packed(model, normed, f"{layer}.attn.Wqkv", heads)
        attended = attend(rotate(query, frequencies), rotate(key, frequencies), value, 0.0 if everywhere else near)
        x = x + model.dense(attended, f"{layer}.attn.Wo")
        gate, up = halves(model, model.norm(x, f"{layer}.mlp_norm", eps), f"{layer}.mlp.Wi")
        x = x + model.dense(act(gate) * up, f"{layer}.mlp.Wo")
    return model.norm(x, "final_norm", eps)


def gte_frequencies(config: dict) -> Array:
    """Rotary frequencies of GTE: with NTK scaling by s they are (theta s)^(-2 i / d) / s^(2 / d), whatever the text's length."""
    width, scaling = config["hidden_size"] // config["num_attention_heads"], config["rope_scaling"]
    factor = scaling["factor"] if scaling else 1.0
    return rotary_frequencies(width, config["rope_theta"] * factor) / factor ** (2.0 / width)


def gte(model: Encoder, ids: list[int], types: list[int]) -> Array:
    """GTE ("new"): norms after each half, rotary positions, gated feed-forward whose gate is the second half."""
    config, eps, act = model.config, model.config["layer_norm_eps"], ACTIVATIONS[model.config["hidden_act"]]
    x = model.table("embeddings.word_embeddings", ids)
    if config["type_vocab_size"] > 0:
        x = x + model.table("embeddings.token_type_embeddings", types)
    x = model.norm(x, "embeddings.LayerNorm", eps)
    frequencies = gte_frequencies(config)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        query, key, value = packed(model, x, f"{layer}.attention.qkv_proj", config["num_attention_heads"])
        attended = attend(rotate(query, frequencies), rotate(key, frequencies), value)
        x = model.norm(x + model.dense(attended, f"{layer}.attention.o_proj"), f"{layer}.attn_ln", eps)
        up, gate = halves(model, x, f"{layer}.mlp.up_gate_proj")
        x = model.norm(x + model.dense(act(gate) * up, f"{layer}.mlp.down_proj"), f"{layer}.mlp_ln", eps)
    return x


def qwen3(model: Encoder, ids: list[int], _: list[int]) -> Array:
    """Qwen3: causal, RMS norms before each half and on each head's query and key, several query heads to one key head."""
    config, eps, act = model.config, model.config["rms_norm_eps"], ACTIVATIONS[model.config["hidden_act"]]
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"]
    frequencies = rotary_frequencies(config["head_dim"], theta)
    seen = outside(distances(len(ids)) <= 0)

    def norm(x: Array, name: str) -> Array:
        return rms_norm(x, model.weights[f"{name}.weight"], eps)

    x = model.table("embed_tokens", ids)
    for index in range(config["num_hidden_layers"]):
        layer, attention = f"layers.{index}", f"layers.{index}.self_attn"
        normed = norm(x, f"{layer}.input_layernorm")
        query = norm(split(model.dense(normed, f"{attention}.q_proj"), heads), f"{attention}.q_norm")
        key = norm(split(model.dense(normed, f"{attention}.k_proj"), key_heads), f"{attention}.k_norm")
        value = split(model.dense(normed, f"{attention}.v_proj"), key_heads)
        shared = [np.repeat(part, heads // key_heads, axis=0) for part in (rotate(key, frequencies), value)]
        x = x + model.dense(attend(rotate(query, frequencies), *shared, seen), f"{attention}.o_proj")
        normed = norm(x, f"{layer}.post_attention_layernorm")
        widened = act(model.dense(normed, f"{layer}.mlp.gate_proj")) * model.dense(normed, f"{layer}.mlp.up_proj")
        x = x + model.dense(widened, f"{layer}.mlp.down_proj")
    return norm(x, "norm")


def pooler_head(model: Encoder, hidden: Array, _: list[int]) -> Array:
    """BERT's: classifier(tanh(pooler(x_0)))."""
    return model.dense(np.tanh(model.dense(hidden[:1], "pooler.dense")), "classifier")[0]


def roberta_head(model: Encoder, hidden: Array, _: list[int]) -> Array:
    """RoBERTa's and MPNet's: out_proj(tanh(dense(x_0)))."""
    return model.dense(np.tanh(model.dense(hidden[:1], "classifier.dense")), "classifier.out_proj")[0]


def distilbert_head(model: Encoder, hidden: Array, _: list[int]) -> Array:
    """classifier(relu(pre_classifier(x_0)))."""
    return model.dense(np.maximum(model.dense(hidden[:1], "pre_classifier"), 0.0), "classifier")[0]


def modernbert_head(model: Encoder, hidden: Array, _: list[int]) -> Array:
    """classifier(LN(act(dense(s)))), s being the first token or the mean, as the config says."""
    config = model.config
    pooled = hidden.mean(axis=0) if config["classifier_pooling"] == "mean" else hidden[0]
    activated = ACTIVATIONS[config["classifier_activation"]](model.dense(pooled, "head.dense"))
    return model.dense(model.norm(activated, "head.norm", config["norm_eps"]), "classifier")


def qwen3_head(model: Encoder, hidden: Array, ids: list[int]) -> Array:
    """score(x_k), k being the last token that is no padding."""
    real = [index for index, token in enumerate(ids) if token != model.config.get("pad_token_id")]
    return model.dense(hidden[real[-1]], "score")


ARCHITECTURES: dict[str, Callable[[Encoder, list[int], list[int]], Array]] = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "nomic_bert": nomic_bert,
    "modernbert": modernbert,
    "new": gte,
    "jina_bert": jina_bert,
    "qwen3": qwen3,
}
HEADS: dict[str, Callable[[Encoder, Array, list[int]], Array]] = {
    "bert": pooler_head,
    "roberta": roberta_head,
    "xlm-roberta": roberta_head,
    "distilbert": distilbert_head,
    "mpnet": roberta_head,
    "modernbert": modernbert_head,
    "new": pooler_head,
    "qwen3": qwen3_head,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints what a checkpoint makes of token ids in f64: the logits where it has a classification head, else the "
        "mean, the first and the last token's hidden state, not normalised. Reads config.json and model.safetensors of a folder; "
        "writes nothing."
    )
    parser.add_argument("folder", type=Path, help="checkpoint folder, such as models/tests/data/arch/mpnet")
    parser.add_argument("ids", type=int, nargs="+", help="token ids of one text, special tokens included")
    arguments = parser.parse_args()

    model = Encoder(arguments.folder)
    if "ForSequenceClassification" in model.config["architectures"][0]:
        answer = {"logits": model.logits(arguments.ids).tolist()}
    else:
        hidden = model.hidden_states(arguments.ids)
        answer = {"mean": hidden.mean(axis=0).tolist(), "cls": hidden[0].tolist(), "last": hidden[-1].tolist()}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
