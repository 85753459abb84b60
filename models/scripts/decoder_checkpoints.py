"""Small checkpoints of every decoder architecture: what their config.json says, what their tensors are called, random weights.

Comes in: nothing. Goes out: a list of `Checkpoint`, each with a config of the keys and values that the architecture's published
models have, and its tensors' shapes under the published names. Sizes, windows, soft caps and the tables of rotary scaling are small, so
that each of them counts in a short text. `weights` draws the tensors. It computes nothing and writes nothing.
"""

from collections.abc import Iterator

import numpy as np

from architecture_checkpoints import Checkpoint, Shapes, linear, norm

HIDDEN, HEADS, KEY_HEADS, HEAD_WIDTH, INNER = 64, 4, 2, 16, 96
GEMMA_HIDDEN = (
    48  # its heads together are wider than the stream, and the root that it scales embeddings by is no whole number
)
LAYERS, VOCABULARY, POSITIONS = 2, 288, 256
WINDOW = 16  # keys that a token of a sliding layer sees, itself among them
SPECIALS = (1, 2)  # begin and end of a text, where a family has no others
ORIGINAL_POSITIONS = 64  # before rotary scaling
GEMMA_3_LAYERS, GEMMA_3_PATTERN = 4, 3  # every third layer sees everything: layers 0, 1 and 3 slide

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weights(checkpoint: Checkpoint, seed: int) -> dict[str, np.ndarray]:
    """Random weights in f32. Attention is sharp, norms and biases are not 1 and 0, and what the layers add outweighs the word that
    came in, so that a wrong mask, scale, angle or norm shows, and the likeliest next token is not always the last one again."""
    rng = np.random.default_rng(seed)
    gemma = checkpoint.config["model_type"].startswith("gemma")
    drawn = {}
    for name, shape in checkpoint.shapes.items():
        if name.endswith(".bias"):
            values = rng.normal(0, 0.3, shape)
        elif len(shape) == 1:
            values = rng.normal(0.3 if gemma else 1.3, 0.2, shape)  # gemma adds 1
        elif "embed_tokens" in name:
            values = rng.normal(0, 0.1 if gemma else 0.25, shape)
        else:
            values = rng.normal(0, 1.5 / np.sqrt(shape[1]), shape)
        drawn[name] = values.astype(np.float32)
    return drawn


def head_width(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def attention(config: dict, layer: str, *, bias: bool = False, normed: bool = False) -> Shapes:
    hidden, width = config["hidden_size"], head_width(config)
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = linear(f"{layer}.self_attn.q_proj", queries, hidden, bias=bias)
    shapes |= linear(f"{layer}.self_attn.k_proj", keys, hidden, bias=bias)
    shapes |= linear(f"{layer}.self_attn.v_proj", keys, hidden, bias=bias)
    shapes |= linear(f"{layer}.self_attn.o_proj", hidden, queries, bias=False)
    if normed:
        for part in ("q_norm", "k_norm"):
            shapes |= norm(f"{layer}.self_attn.{part}", width, bias=False)
    return shapes


def feed_forward(config: dict, layer: str) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return (
        linear(f"{layer}.mlp.gate_proj", inner, hidden, bias=False)
        | linear(f"{layer}.mlp.up_proj", inner, hidden, bias=False)
        | linear(f"{layer}.mlp.down_proj", hidden, inner, bias=False)
    )


TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def decoder(config: dict, norms: tuple[str, ...] = TWO_NORMS, **attends: bool) -> Shapes:
    """A whole model; the head is a tensor of its own unless the config ties it or leaves that unsaid, as only Gemma's do."""
    hidden = config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= attention(config, layer, **attends) | feed_forward(config, layer)
        for part in norms:
            shapes |= norm(f"{layer}.{part}", hidden, bias=False)
    shapes |= norm("model.norm", hidden, bias=False)
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def config_of(architecture: str, stored: str, **changes: object) -> dict:
    """Keys that most configs share, and what is particular."""
    config = {
        "architectures": [architecture],
        "bos_token_id": SPECIALS[0],
        "eos_token_id": SPECIALS[1],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "rms_norm_eps": 1e-5,
        "torch_dtype": DTYPES[stored],
        "use_cache": True,
        "vocab_size": VOCABULARY,
    } | changes
    return dict(sorted(config.items()))


def as_version_5(config: dict, gone: tuple[str, ...], added: dict) -> dict:
    """The config as version 5 of the library writes it: without some keys, with others."""
    kept = {key: value for key, value in config.items() if key not in (*gone, "torch_dtype")}
    return dict(sorted((kept | {"dtype": config["torch_dtype"]} | added).items()))


def llama() -> Iterator[Checkpoint]:
    # No rope_theta: files of Llama 2 leave it at 10,000.
    config = config_of(
        "LlamaForCausalLM",
        "F16",
        model_type="llama",
        num_key_value_heads=HEADS,
        pretraining_tp=1,
        rope_scaling=None,
        tie_word_embeddings=False,
    )
    yield Checkpoint("llama", config, decoder(config), "Llama 2", SPECIALS, stored="F16")

    scaling = {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "rope_type": "llama3",
    }
    config = config_of(
        "LlamaForCausalLM",
        "BF16",
        attention_bias=False,
        attention_dropout=0.0,
        eos_token_id=[2, 3, 4],
        head_dim=HEAD_WIDTH,
        max_position_embeddings=8 * ORIGINAL_POSITIONS,
        mlp_bias=False,
        model_type="llama",
        pretraining_tp=1,
        rope_scaling=scaling,
        rope_theta=500000.0,
        tie_word_embeddings=True,
    )
    yield Checkpoint("llama-3", config, decoder(config), "Llama 3.1, 3.2", SPECIALS, stored="BF16")

    rope = {"rope_parameters": scaling | {"rope_theta": 500000.0}}
    config = as_version_5(config, ("rope_scaling", "rope_theta"), rope)
    yield Checkpoint("llama-3-v5", config, decoder(config), "Llama 3.1, 3.2", SPECIALS, stored="BF16")

    config = config_of(
        "LlamaForCausalLM",
        "F32",
        attention_bias=False,
        attention_dropout=0.0,
        hidden_size=48,
        is_llama_config=True,
        mlp_bias=False,
        model_type="llama",
        num_attention_heads=3,
        num_key_value_heads=1,
        pretraining_tp=1,
        rope_interleaved=False,
        rope_scaling=None,
        rope_theta=100000,
        tie_word_embeddings=True,
    )
    yield Checkpoint("smollm2", config, decoder(config), "HuggingFaceTB/SmolLM2-135M", SPECIALS)


def mistral() -> Iterator[Checkpoint]:
    config = config_of(
        "MistralForCausalLM",
        "BF16",
        model_type="mistral",
        rope_theta=10000.0,
        sliding_window=WINDOW,
        tie_word_embeddings=False,
    )
    yield Checkpoint("mistral", config, decoder(config), "mistralai/Mistral-7B-v0.1", SPECIALS, stored="BF16")


def qwen2() -> Iterator[Checkpoint]:
    config = config_of(
        "Qwen2ForCausalLM",
        "BF16",
        attention_dropout=0.0,
        max_window_layers=1,
        model_type="qwen2",
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        sliding_window=WINDOW,
        tie_word_embeddings=True,
        use_mrope=False,
        use_sliding_window=False,
    )
    yield Checkpoint("qwen2", config, decoder(config, bias=True), "Qwen/Qwen2.5-0.5B", SPECIALS, stored="BF16")

    # As its authors say how to have it read longer texts. They leave the positions as they were.
    scaling = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL_POSITIONS, "type": "yarn"}
    config = dict(sorted((config | {"max_position_embeddings": ORIGINAL_POSITIONS, "rope_scaling": scaling}).items()))
    like = "Qwen/Qwen2.5-7B-Instruct with YaRN"
    yield Checkpoint("qwen2-yarn", config, decoder(config, bias=True), like, SPECIALS, stored="BF16")


def qwen3() -> Iterator[Checkpoint]:
    config = config_of(
        "Qwen3ForCausalLM",
        "BF16",
        attention_bias=False,
        attention_dropout=0.0,
        head_dim=2 * HEAD_WIDTH,
        max_window_layers=LAYERS,
        model_type="qwen3",
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    yield Checkpoint("qwen3", config, decoder(config, normed=True), "Qwen/Qwen3-0.6B", SPECIALS, stored="BF16")

    # With every setting that YaRN has, as version 5 writes it.
    rope = {
        "beta_fast": 6.0,
        "beta_slow": 0.25,
        "factor": 8.0,
        "mscale": 1.5,
        "mscale_all_dim": 0.5,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "rope_theta": 10000.0,
        "rope_type": "yarn",
    }
    config = config | {"max_position_embeddings": 8 * ORIGINAL_POSITIONS}
    config = as_version_5(config, ("rope_scaling", "rope_theta"), {"rope_parameters": rope})
    like = "Qwen/Qwen3-0.6B with YaRN"
    yield Checkpoint("qwen3-yarn", config, decoder(config, normed=True), like, SPECIALS, stored="BF16")


def gemma2() -> Iterator[Checkpoint]:
    config = config_of(
        "Gemma2ForCausalLM",
        "F32",
        attention_bias=False,
        attention_dropout=0.0,
        attn_logit_softcapping=5.0,
        bos_token_id=2,
        cache_implementation="hybrid",
        eos_token_id=[1, 7],
        final_logit_softcapping=4.0,
        head_dim=HEAD_WIDTH,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=GEMMA_HIDDEN,
        model_type="gemma2",
        pad_token_id=0,
        query_pre_attn_scalar=12,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        sliding_window=WINDOW,
    )
    yield Checkpoint("gemma2", config, decoder(config, FOUR_NORMS), "google/gemma-2-27b", (2, 1))


def gemma3() -> Iterator[Checkpoint]:
    config = config_of(
        "Gemma3ForCausalLM",
        "BF16",
        attention_bias=False,
        attention_dropout=0.0,
        attn_logit_softcapping=None,
        bos_token_id=2,
        cache_implementation="hybrid",
        eos_token_id=[1, 6],
        final_logit_softcapping=None,
        head_dim=HEAD_WIDTH,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=GEMMA_HIDDEN,
        model_type="gemma3_text",
        num_hidden_layers=GEMMA_3_LAYERS,
        num_key_value_heads=1,
        pad_token_id=0,
        query_pre_attn_scalar=HEAD_WIDTH,
        rms_norm_eps=1e-6,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=WINDOW,
        sliding_window_pattern=GEMMA_3_PATTERN,
    )
    del config["hidden_act"]
    shapes = decoder(config, FOUR_NORMS, normed=True)
    yield Checkpoint("gemma3", config, shapes, "google/gemma-3-1b-it", (2, 1), stored="BF16")

    # Its larger sizes stretch the angles of the layers that see everything.
    gone = ("rope_local_base_freq", "rope_scaling", "rope_theta", "sliding_window_pattern", "cache_implementation")
    added = {
        "_sliding_window_pattern": GEMMA_3_PATTERN,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "use_bidirectional_attention": False,
    }
    config = as_version_5(config, gone, added)
    yield Checkpoint("gemma3-v5", config, shapes, "the text model of google/gemma-3-4b-it", (2, 1), stored="BF16")


def phi3() -> Iterator[Checkpoint]:
    common = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "model_type": "phi3",
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "rope_theta": 10000.0,
    }
    config = config_of(
        "Phi3ForCausalLM",
        "BF16",
        **common,
        num_key_value_heads=HEADS,
        original_max_position_embeddings=POSITIONS,
        rope_scaling=None,
        sliding_window=WINDOW - 1,
        tie_word_embeddings=False,
    )
    yield Checkpoint("phi3", config, packed(config), "microsoft/Phi-3-mini-4k-instruct", SPECIALS, stored="BF16")

    rotary = int(0.75 * HEAD_WIDTH)
    config = config_of(
        "Phi3ForCausalLM",
        "BF16",
        **common,
        original_max_position_embeddings=ORIGINAL_POSITIONS,
        partial_rotary_factor=0.75,
        rope_scaling={
            "long_factor": [1.0 + 0.75 * index**2 for index in range(rotary // 2)],
            "short_factor": [1.0 + 0.125 * index for index in range(rotary // 2)],
            "type": "longrope",
        },
        sliding_window=2 * POSITIONS,  # more than any text has
        tie_word_embeddings=True,
    )
    yield Checkpoint("phi4-mini", config, packed(config), "microsoft/Phi-4-mini-instruct", SPECIALS, stored="BF16")


def packed(config: dict) -> Shapes:
    """Phi-3's own names: queries, keys and values in one tensor, both halves of the gated feed-forward in another."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], head_width(config)
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    apart = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    shapes = {name: shape for name, shape in decoder(config).items() if not any(part in name for part in apart)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= linear(f"{layer}.self_attn.qkv_proj", queries + 2 * keys, hidden, bias=False)
        shapes |= linear(f"{layer}.mlp.gate_up_proj", 2 * inner, hidden, bias=False)
    return shapes


def checkpoints() -> list[Checkpoint]:
    """Every checkpoint, architecture by architecture."""
    families = (llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3)
    return [checkpoint for family in families for checkpoint in family()]
