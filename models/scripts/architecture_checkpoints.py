"""Small checkpoints of every encoder architecture: what their config.json says, what their tensors are called, random weights.

Comes in: nothing. Goes out: a list of `Checkpoint`, each with a config of the keys and values that the architecture's published
models have (sizes aside), and its tensors' shapes under the published names. `weights` draws them. It computes nothing and writes
nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HIDDEN, HEADS, INNER = 32, 4, 48
JINA_HIDDEN, JINA_HEADS = (
    48,
    6,
)  # not a power of two, as in the published base model: its ALiBi slopes take the other rule
HEAD_WIDTH, KEY_HEADS = 16, 2  # qwen3: a head is wider than hidden / heads, and two query heads share a key head
NOMIC_INNER = 256  # the published code rounds up to a multiple of this
LAYERS, VOCABULARY, POSITIONS = 2, 192, 140  # of models without a head
SMALL_LAYERS, SMALL_VOCABULARY, SMALL_POSITIONS = 1, 128, 80  # of models with one
WINDOW = 16  # modernbert's local attention: 8 keys on each side
LABELS = {1: ["LABEL_0"], 3: ["negative", "neutral", "positive"]}

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """One folder to write."""

    name: str
    config: dict
    shapes: Shapes
    like: str  # the published model whose layout it has
    specials: tuple[int, int]  # the first token of a text, and the last
    stored: str = "F32"  # how floating tensors are stored: F32, F16 or BF16
    position_ids: str | None = None  # an integer tensor that old files carry and nobody needs
    padding_inside: int | None = None  # a padding token whose place inside a text matters

    @property
    def labels(self) -> int:
        """Labels of the classification head, or 0."""
        return len(self.config.get("id2label", {})) if "SequenceClass" in self.config["architectures"][0] else 0

    @property
    def token_types(self) -> int:
        return self.config.get("type_vocab_size", 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model takes."""
        positions = self.config.get("max_position_embeddings") or self.config["n_positions"]
        return positions - 2 if self.config["model_type"] in ("roberta", "xlm-roberta", "mpnet") else positions


def weights(checkpoint: Checkpoint, seed: int) -> dict[str, np.ndarray]:
    """Random weights in f32. Projections are large enough that attention is sharp, norms and biases are not 1 and 0, and embeddings
    are as small as a trained model's, so that a wrong mask, scale, epsilon, norm or order of halves shows in the output."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in checkpoint.shapes.items():
        if name.endswith(".bias"):
            values = rng.normal(0, 0.2, shape)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            values = rng.normal(1.7, 0.3, shape)  # nothing else makes attention sharp behind them
        elif len(shape) == 1:
            values = rng.normal(1, 0.2, shape)
        elif "relative_attention_bias" in name:
            values = rng.normal(0, 1, shape)
        elif "embed" in name:
            values = rng.normal(0, 0.05, shape)
        else:
            values = rng.normal(0, 1.5 / np.sqrt(shape[1]), shape)
        drawn[name] = values.astype(np.float32)
    return drawn


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int = HIDDEN, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def bert_embeddings(config: dict, *, positions: bool = True, types: bool = True) -> Shapes:
    width = config["hidden_size"]
    shapes = {"embeddings.word_embeddings.weight": (config["vocab_size"], width)}
    if positions:
        shapes["embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], width)
    if types:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    return shapes | norm("embeddings.LayerNorm", width)


def bert_attention(layer: str, width: int = HIDDEN) -> Shapes:
    shapes: Shapes = {}
    for part in ("query", "key", "value"):
        shapes |= linear(f"{layer}.attention.self.{part}", width, width)
    shapes |= linear(f"{layer}.attention.output.dense", width, width)
    return shapes | norm(f"{layer}.attention.output.LayerNorm", width)


def bert_feed_forward(layer: str) -> Shapes:
    return (
        linear(f"{layer}.intermediate.dense", INNER, HIDDEN)
        | linear(f"{layer}.output.dense", HIDDEN, INNER)
        | norm(f"{layer}.output.LayerNorm")
    )


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def headed(config: dict, architecture: str, labels: int) -> dict:
    """The config with an architecture, and labels where it classifies."""
    config = {"architectures": [architecture]} | config
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(LABELS[labels])}
        config["label2id"] = {label: index for index, label in enumerate(LABELS[labels])}
    return dict(sorted(config.items()))


def sizes(labels: int) -> dict:
    """Keys that most configs share."""
    return {
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": SMALL_POSITIONS if labels else POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": SMALL_LAYERS if labels else LAYERS,
        "torch_dtype": "float32",
        "vocab_size": SMALL_VOCABULARY if labels else VOCABULARY,
    }


def bert_config(labels: int, **changes: object) -> dict:
    return (
        sizes(labels)
        | {
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "layer_norm_eps": 1e-12,
            "model_type": "bert",
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "use_cache": True,
        }
        | changes
    )


def bert_shapes(config: dict) -> Shapes:
    """The base model of BERT, RoBERTa and XLM-RoBERTa, without its pooler."""
    shapes = bert_embeddings(config)
    for index in range(config["num_hidden_layers"]):
        shapes |= bert_attention(f"encoder.layer.{index}") | bert_feed_forward(f"encoder.layer.{index}")
    return shapes


def pooler(width: int = HIDDEN) -> Shapes:
    return linear("pooler.dense", width, width)


def pooled_classifier(prefix: str, base: Shapes, labels: int) -> Shapes:
    """BERT's head: a pooler inside the base model, a classifier beside it."""
    return prefixed(prefix, base | pooler()) | linear("classifier", labels, HIDDEN)


def dense_classifier(prefix: str, base: Shapes, labels: int) -> Shapes:
    """RoBERTa's head: two projections beside the base model."""
    head = linear("classifier.dense", HIDDEN, HIDDEN) | linear("classifier.out_proj", labels, HIDDEN)
    return prefixed(prefix, base) | head


def bert() -> Iterator[Checkpoint]:
    for act in ("gelu_new", "relu"):
        config = headed(bert_config(0, hidden_act=act, num_hidden_layers=1), "BertModel", 0)
        yield Checkpoint(
            f"bert-{act.replace('_', '-')}", config, bert_shapes(config) | pooler(), f"BERT with {act}", (101, 102)
        )
    config = headed(bert_config(3), "BertForSequenceClassification", 3)
    shapes = pooled_classifier("bert.", bert_shapes(config), 3)
    yield Checkpoint("bert-classifier-3", config, shapes, "BERT classifiers", (101, 102))


def roberta() -> Iterator[Checkpoint]:
    for kind, name, like in (
        ("roberta", "Roberta", "roberta-base, all-roberta-large-v1"),
        ("xlm-roberta", "XLMRoberta", "BAAI/bge-m3, BAAI/bge-reranker-v2-m3, multilingual-e5"),
    ):
        changes = {
            "bos_token_id": 0,
            "classifier_dropout": None,
            "eos_token_id": 2,
            "layer_norm_eps": 1e-5,
            "model_type": kind,
            "pad_token_id": 1,
            "type_vocab_size": 1,
        }
        config = headed(bert_config(0, **changes), f"{name}Model", 0)
        for stored in ("F32", "F16", "BF16") if kind == "roberta" else ("F32",):
            named = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[stored]
            yield Checkpoint(
                kind if stored == "F32" else f"{kind}-{stored.lower()}",
                config | {"torch_dtype": named},
                bert_shapes(config) | pooler(),
                like,
                (0, 2),
                stored=stored,
                position_ids="embeddings.position_ids" if kind == "xlm-roberta" else None,
                padding_inside=1 if stored == "F32" else None,
            )
        for labels in (1, 3):
            config = headed(bert_config(labels, **changes), f"{name}ForSequenceClassification", labels)
            shapes = dense_classifier("roberta.", bert_shapes(config), labels)
            yield Checkpoint(f"{kind}-classifier-{labels}", config, shapes, like, (0, 2))


def distilbert() -> Iterator[Checkpoint]:
    for labels in (0, 1, 3):
        config = {
            "activation": "gelu",
            "attention_dropout": 0.1,
            "dim": HIDDEN,
            "dropout": 0.1,
            "hidden_dim": INNER,
            "initializer_range": 0.02,
            "max_position_embeddings": SMALL_POSITIONS if labels else POSITIONS,
            "model_type": "distilbert",
            "n_heads": HEADS,
            "n_layers": SMALL_LAYERS if labels else LAYERS,
            "pad_token_id": 0,
            "qa_dropout": 0.1,
            "seq_classif_dropout": 0.2,
            "sinusoidal_pos_embds": False,
            "tie_weights_": True,
            "torch_dtype": "float32",
            "vocab_size": SMALL_VOCABULARY if labels else VOCABULARY,
        }
        base = bert_embeddings(config | {"hidden_size": HIDDEN}, types=False)
        for index in range(config["n_layers"]):
            layer = f"transformer.layer.{index}"
            for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
                base |= linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
            base |= norm(f"{layer}.sa_layer_norm") | linear(f"{layer}.ffn.lin1", INNER, HIDDEN)
            base |= linear(f"{layer}.ffn.lin2", HIDDEN, INNER) | norm(f"{layer}.output_layer_norm")
        architecture = "DistilBertForSequenceClassification" if labels else "DistilBertModel"
        shapes = base
        if labels:
            head = linear("pre_classifier", HIDDEN, HIDDEN) | linear("classifier", labels, HIDDEN)
            shapes = prefixed("distilbert.", base) | head
        yield Checkpoint(
            f"distilbert-classifier-{labels}" if labels else "distilbert",
            headed(config, architecture, labels),
            shapes,
            "msmarco-distilbert-base-v4, distilbert-base-uncased-finetuned-sst-2-english",
            (101, 102),
        )


def mpnet() -> Iterator[Checkpoint]:
    for labels in (0, 1, 3):
        config = sizes(labels) | {
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "layer_norm_eps": 1e-5,
            "model_type": "mpnet",
            "pad_token_id": 1,
            "relative_attention_num_buckets": 32,
        }
        base = bert_embeddings(config, types=False) | {"encoder.relative_attention_bias.weight": (32, HEADS)}
        for index in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            for part in "qkvo":
                base |= linear(f"{layer}.attention.attn.{part}", HIDDEN, HIDDEN)
            base |= norm(f"{layer}.attention.LayerNorm") | bert_feed_forward(layer)
        yield Checkpoint(
            f"mpnet-classifier-{labels}" if labels else "mpnet",
            headed(config, "MPNetForSequenceClassification" if labels else "MPNetModel", labels),
            dense_classifier("mpnet.", base, labels) if labels else base | pooler(),
            "sentence-transformers/all-mpnet-base-v2",
            (0, 2),
            position_ids=None if labels else "embeddings.position_ids",
            padding_inside=None if labels else 1,
        )


def nomic_bert() -> Iterator[Checkpoint]:
    config = {
        "activation_function": "swiglu",
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "causal": False,
        "dense_seq_output": True,
        "embd_pdrop": 0.0,
        "eos_token_id": None,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": HIDDEN,
        "n_head": HEADS,
        "n_inner": NOMIC_INNER,
        "n_layer": LAYERS,
        "n_positions": POSITIONS,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "use_cache": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "use_xentropy": True,
        "vocab_size": VOCABULARY,
    }
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    } | norm("emb_ln")
    for index in range(LAYERS):
        layer = f"encoder.layers.{index}"
        shapes |= linear(f"{layer}.attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=False)
        shapes |= linear(f"{layer}.attn.out_proj", HIDDEN, HIDDEN, bias=False)
        for part in ("fc11", "fc12"):
            shapes |= linear(f"{layer}.mlp.{part}", NOMIC_INNER, HIDDEN, bias=False)
        shapes |= linear(f"{layer}.mlp.fc2", HIDDEN, NOMIC_INNER, bias=False)
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
    like = "nomic-ai/nomic-embed-text-v1.5"
    yield Checkpoint("nomic-bert", headed(config, "NomicBertModel", 0), shapes, like, (101, 102))


def modernbert() -> Iterator[Checkpoint]:
    for labels in (0, 1, 3):
        vocabulary, layers = (SMALL_VOCABULARY, 2) if labels else (VOCABULARY, 4)
        first, last = vocabulary - 6, vocabulary - 5  # the special tokens stand near the end of the vocabulary
        config = sizes(labels) | {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": first,
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_dropout": 0.0,
            "classifier_pooling": "cls" if labels == 3 else "mean",
            "cls_token_id": first,
            "decoder_bias": True,
            "deterministic_flash_attn": False,
            "embedding_dropout": 0.0,
            "eos_token_id": last,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "gradient_checkpointing": False,
            "hidden_activation": "gelu",
            "initializer_cutoff_factor": 2.0,
            "layer_norm_eps": 1e-5,
            "local_attention": WINDOW,
            "local_rope_theta": 10000.0,
            "mlp_bias": False,
            "mlp_dropout": 0.0,
            "model_type": "modernbert",
            "norm_bias": False,
            "norm_eps": 1e-5,
            "num_hidden_layers": layers,
            "pad_token_id": last + 1,
            "position_embedding_type": "absolute",
            "reference_compile": None,
            "sep_token_id": last,
            "sparse_pred_ignore_index": -100,
            "sparse_prediction": False,
        }
        if labels == 3:  # as transformers 5 writes it
            for old in ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "reference_compile"):
                del config[old]
            config["dtype"] = config.pop("torch_dtype")
            config["layer_types"] = ["full_attention", "sliding_attention"]
            config["rope_parameters"] = {
                "full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            }
        base: Shapes = {"embeddings.tok_embeddings.weight": (vocabulary, HIDDEN)} | norm("embeddings.norm", bias=False)
        for index in range(layers):
            layer = f"layers.{index}"
            base |= norm(f"{layer}.attn_norm", bias=False) if index else {}
            base |= linear(f"{layer}.attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=False)
            base |= linear(f"{layer}.attn.Wo", HIDDEN, HIDDEN, bias=False)
            base |= norm(f"{layer}.mlp_norm", bias=False)
            base |= linear(f"{layer}.mlp.Wi", 2 * INNER, HIDDEN, bias=False)
            base |= linear(f"{layer}.mlp.Wo", HIDDEN, INNER, bias=False)
        shapes = base = base | norm("final_norm", bias=False)
        if labels:
            head = linear("head.dense", HIDDEN, HIDDEN, bias=False) | norm("head.norm", bias=False)
            shapes = prefixed("model.", base) | head | linear("classifier", labels, HIDDEN)
        yield Checkpoint(
            f"modernbert-classifier-{labels}" if labels else "modernbert",
            headed(config, "ModernBertForSequenceClassification" if labels else "ModernBertModel", labels),
            shapes,
            "answerdotai/ModernBERT-base, Alibaba-NLP/gte-modernbert-base, Alibaba-NLP/gte-reranker-modernbert-base",
            (first, last),
        )


def gte() -> Iterator[Checkpoint]:
    for name, labels, types, theta, factor, like in (
        ("gte", 0, 0, 500000, None, "Alibaba-NLP/gte-base-en-v1.5"),
        ("gte-ntk", 0, 2, 160000, 2.0, "Alibaba-NLP/gte-large-en-v1.5"),
        ("gte-multilingual", 0, 1, 20000, 8.0, "Alibaba-NLP/gte-multilingual-base"),
        ("gte-classifier-1", 1, 1, 20000, 8.0, "Alibaba-NLP/gte-multilingual-reranker-base"),
        ("gte-classifier-3", 3, 1, 20000, 8.0, "Alibaba-NLP/gte-multilingual-reranker-base"),
    ):
        multilingual = types == 1
        config = sizes(int(multilingual)) | {
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "layer_norm_eps": 1e-12,
            "layer_norm_type": "layer_norm",
            "logn_attention_clip1": False,
            "logn_attention_scale": False,
            "model_type": "new",
            "pack_qkv": True,
            "pad_token_id": int(multilingual),
            "position_embedding_type": "rope",
            "rope_scaling": {"factor": factor, "type": "ntk"} if factor else None,
            "rope_theta": theta,
            "type_vocab_size": types,
            "unpad_inputs": False,
            "use_memory_efficient_attention": False,
        }
        base = bert_embeddings(config, positions=False, types=types > 0)
        for index in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            base |= linear(f"{layer}.attention.qkv_proj", 3 * HIDDEN, HIDDEN)
            base |= linear(f"{layer}.attention.o_proj", HIDDEN, HIDDEN)
            base |= linear(f"{layer}.mlp.up_gate_proj", 2 * INNER, HIDDEN, bias=False)
            base |= linear(f"{layer}.mlp.down_proj", HIDDEN, INNER)
            base |= norm(f"{layer}.attn_ln") | norm(f"{layer}.mlp_ln")
        shapes, architecture = base, "NewModel"
        if labels:
            shapes, architecture = pooled_classifier("new.", base, labels), "NewForSequenceClassification"
        elif multilingual:  # published with a classifier of tokens that its embeddings do not need
            shapes = prefixed("new.", base) | linear("classifier", 1, HIDDEN)
            architecture = "NewForTokenClassification"
        yield Checkpoint(
            name, headed(config, architecture, labels), shapes, like, (0, 2) if multilingual else (101, 102)
        )


def jina_bert() -> Iterator[Checkpoint]:
    changes = {
        "_name_or_path": "jinaai/jina-bert-implementation",
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "torch",
        "classifier_dropout": None,
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "gradient_checkpointing": False,
        "hidden_size": JINA_HIDDEN,
        "model_max_length": 8192,
        "num_attention_heads": JINA_HEADS,
        "position_embedding_type": "alibi",
    }
    config = headed(bert_config(0, **changes), "JinaBertForMaskedLM", 0)
    shapes = bert_embeddings(config, positions=False)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        shapes |= bert_attention(layer, JINA_HIDDEN)
        shapes |= linear(f"{layer}.mlp.gated_layers", 2 * INNER, JINA_HIDDEN, bias=False)
        shapes |= linear(f"{layer}.mlp.wo", JINA_HIDDEN, INNER) | norm(f"{layer}.mlp.layernorm", JINA_HIDDEN)
    like = "jinaai/jina-embeddings-v2-base-en"
    yield Checkpoint("jina-bert", config, shapes | pooler(JINA_HIDDEN), like, (101, 102))


def qwen3() -> Iterator[Checkpoint]:
    for labels in (0, 1, 3):
        vocabulary = SMALL_VOCABULARY if labels else VOCABULARY
        end = vocabulary - 10  # the token that ends a text, and the padding token
        config = sizes(labels) | {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": end,
            "eos_token_id": end,
            "head_dim": HEAD_WIDTH,
            "hidden_act": "silu",
            "max_window_layers": SMALL_LAYERS if labels else LAYERS,
            "model_type": "qwen3",
            "num_key_value_heads": KEY_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
        }
        if labels:
            config["pad_token_id"] = end
        if labels == 3:  # as transformers 5 writes it
            del config["rope_scaling"]
            config["dtype"] = config.pop("torch_dtype")
            config["layer_types"] = ["full_attention"] * SMALL_LAYERS
            config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
        base: Shapes = {"embed_tokens.weight": (vocabulary, HIDDEN)}
        for index in range(config["num_hidden_layers"]):
            layer, attention = f"layers.{index}", f"layers.{index}.self_attn"
            base |= linear(f"{attention}.q_proj", HEADS * HEAD_WIDTH, HIDDEN, bias=False)
            for part in ("k_proj", "v_proj"):
                base |= linear(f"{attention}.{part}", KEY_HEADS * HEAD_WIDTH, HIDDEN, bias=False)
            base |= linear(f"{attention}.o_proj", HIDDEN, HEADS * HEAD_WIDTH, bias=False)
            for part in ("q_norm", "k_norm"):
                base |= norm(f"{attention}.{part}", HEAD_WIDTH, bias=False)
            for part in ("gate_proj", "up_proj"):
                base |= linear(f"{layer}.mlp.{part}", INNER, HIDDEN, bias=False)
            base |= linear(f"{layer}.mlp.down_proj", HIDDEN, INNER, bias=False)
            for part in ("input_layernorm", "post_attention_layernorm"):
                base |= norm(f"{layer}.{part}", bias=False)
        base |= norm("norm", bias=False)
        shapes = base
        if labels:
            shapes = prefixed("model.", base) | linear("score", labels, HIDDEN, bias=False)
        yield Checkpoint(
            f"qwen3-classifier-{labels}" if labels else "qwen3",
            headed(config, "Qwen3ForSequenceClassification" if labels else "Qwen3ForCausalLM", labels),
            shapes,
            "Qwen/Qwen3-Reranker-0.6B as a classifier" if labels else "Qwen/Qwen3-Embedding-0.6B",
            (7, 8) if labels else (7, end),  # a text begins with any token; a reranker's prompt ends with any
        )


def checkpoints() -> list[Checkpoint]:
    """Every checkpoint, architecture by architecture."""
    families = (roberta, distilbert, mpnet, nomic_bert, modernbert, gte, jina_bert, qwen3, bert)
    return [checkpoint for family in families for checkpoint in family()]
