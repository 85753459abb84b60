"""The `transformers` library as a reference: its own models, run in f64 on one text at a time, never padded.

Comes in: a checkpoint folder and token ids. Goes out: hidden states and logits in f64. Needs requirements-architectures.txt.

The library rounds some steps to f32 whatever a model's type is: rotary angles, RMS norms, some softmaxes. While a model here is
built and run, every such cast is one to f64, so that the numbers can be told from a wrong formula at 1e-12.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers

from reference_architectures import alibi_slopes, distances, gte_frequencies, load_tensors

VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
IGNORED = ("position_ids", "pooler.")  # what a file may hold and a model need not read
TOKEN_CLASSIFIER = ("classifier.",)  # likewise, where embeddings are wanted


@contextlib.contextmanager
def everything_in_f64() -> Iterator[None]:
    """Makes torch's f32 mean f64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        torch.inference_mode(),
    ):
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def nomic_config(raw: dict) -> transformers.PreTrainedConfig:
    """The library's config from the keys that nomic-embed-text publishes."""
    return transformers.NomicBertConfig(
        hidden_size=raw["n_embd"],
        intermediate_size=raw["n_inner"],
        layer_norm_eps=raw["layer_norm_epsilon"],
        max_position_embeddings=raw["n_positions"],
        num_attention_heads=raw["n_head"],
        num_hidden_layers=raw["n_layer"],
        rope_parameters={"rope_theta": float(raw["rotary_emb_base"]), "rope_type": "default"},
        type_vocab_size=raw["type_vocab_size"],
        vocab_size=raw["vocab_size"],
    )


def gte_config(raw: dict) -> transformers.PreTrainedConfig:
    """The library's config from the keys that GTE publishes; NTK scaling, which it does not know, is put in afterwards."""
    same = (
        "hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers "
        "pad_token_id type_vocab_size vocab_size"
    )
    return transformers.GteConfig(
        **{key: raw[key] for key in same.split()},
        num_labels=len(raw.get("id2label", {})) or 2,
        rope_parameters={"rope_theta": float(raw["rope_theta"]), "rope_type": "default"},
    )


class Library:
    """A checkpoint that the library has loaded from its folder, by the published names. Where it implements another form of the
    architecture, `native` is false and that form is made into this one: the answers check a reference, they are none."""

    native = True
    headless = True  # embeddings are hidden states: a head for next words is left away

    def __init__(self, folder: Path, attention: str = "eager"):
        raw = json.loads((folder / "config.json").read_text())
        architecture = raw["architectures"][0]
        kind, config = getattr(transformers, architecture, None), None
        if architecture == "Qwen3ForCausalLM" and self.headless:
            kind = transformers.Qwen3Model
        elif raw["model_type"] == "nomic_bert":
            config = nomic_config(raw)
        elif raw["model_type"] == "new":
            named = "GteForSequenceClassification" if "SequenceClass" in architecture else "GteModel"
            kind, config = getattr(transformers, named), gte_config(raw)
            self.native = False  # the library's GTE knows no NTK scaling
        loaded, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float64,
            attn_implementation=attention,
            output_loading_info=True,
            local_files_only=True,
        )
        ignored = IGNORED + (TOKEN_CLASSIFIER if "TokenClassification" in architecture else ())
        left = {name for name in report["unexpected_keys"] if not any(part in name for part in ignored)}
        missing = {name for name in report["missing_keys"] if not any(part in name for part in IGNORED)}
        if left or missing or report["mismatched_keys"]:
            raise SystemExit(
                f"{folder.name}: the library misses {missing}, has no use for {left}: the names are not its own"
            )
        with everything_in_f64():  # once more, for the angles that a model computes when it is built
            self.model = kind(loaded.config).eval()
            self.model.load_state_dict(loaded.state_dict())
            if raw["model_type"] == "new":
                base = getattr(self.model, "gte", self.model)
                base.rotary_emb.inv_freq.copy_(torch.from_numpy(gte_frequencies(raw)))
        if self.model.config._attn_implementation != attention:
            raise SystemExit(f"{folder.name}: attention is {self.model.config._attn_implementation}, not {attention}")
        self.has_types = raw.get("type_vocab_size", 0) > 1

    def _mask(self, tokens: int) -> torch.Tensor:
        return torch.ones(1, tokens, dtype=torch.long)

    def _run(self, ids: list[int], types: list[int] | None) -> object:
        given = {"input_ids": torch.tensor([ids]), "attention_mask": self._mask(len(ids))}
        if types is not None and self.has_types:
            given["token_type_ids"] = torch.tensor([types])
        with everything_in_f64():
            return self.model(**given)

    def hidden_states(self, ids: list[int], types: list[int] | None = None) -> np.ndarray:
        """The last hidden state [s, h] of one text."""
        return self._checked(self._run(ids, types).last_hidden_state[0])

    def logits(self, ids: list[int], types: list[int] | None = None) -> np.ndarray:
        """The classification head's logits [labels] of one text."""
        return self._checked(self._run(ids, types).logits[0])

    @staticmethod
    def _checked(tensor: torch.Tensor) -> np.ndarray:
        if tensor.dtype != torch.float64:
            raise SystemExit(f"the library answers in {tensor.dtype}, not in f64")
        return tensor.numpy()


class Decoder(Library):
    """A checkpoint of a decoder with its head for next words."""

    headless = False

    def next_logits(self, ids: list[int]) -> np.ndarray:
        """Logits [s, v] of the token after each token of one text."""
        return self._checked(self._run(ids, None).logits[0])

    def continued(self, ids: list[int], tokens: int) -> list[int]:
        """The likeliest continuation, from the library's own loop with its cache of keys and values; a token that ends a text ends
        it."""
        settings = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        given = torch.tensor([ids])
        with everything_in_f64():
            written = self.model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
        return written[0, len(ids) :].tolist()


class Gated(torch.nn.Module):
    """act(first half of W x) * second half."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = torch.nn.functional.linear(x, self.weight).chunk(2, dim=-1)
        return torch.nn.functional.gelu(gate) * up


class JinaInLibrary(Library):
    """Jina v2, which the library does not have: its BERT with positions of zero, ALiBi given as the attention mask, and a gated
    feed-forward put into each layer."""

    native = False

    def __init__(self, folder: Path, attention: str = "eager"):
        raw = json.loads((folder / "config.json").read_text())
        tensors = {
            name: torch.from_numpy(values) for name, values in load_tensors(folder / "model.safetensors").items()
        }
        same = "hidden_size intermediate_size layer_norm_eps num_attention_heads num_hidden_layers type_vocab_size vocab_size"
        config = transformers.BertConfig(
            **{key: raw[key] for key in same.split()}, max_position_embeddings=raw["max_position_embeddings"]
        )
        config._attn_implementation = attention
        with everything_in_f64():
            self.model = transformers.BertModel(config).eval()
            parts = self.model.state_dict()
            parts["embeddings.position_embeddings.weight"].zero_()
            for name in parts.keys() & tensors.keys():
                parts[name] = tensors.pop(name)
            for index, layer in enumerate(self.model.encoder.layer):
                prefix = f"encoder.layer.{index}"
                layer.intermediate = Gated(tensors.pop(f"{prefix}.mlp.gated_layers.weight"))
                for end in ("weight", "bias"):
                    parts[f"{prefix}.output.dense.{end}"] = tensors.pop(f"{prefix}.mlp.wo.{end}")
                    parts[f"{prefix}.output.LayerNorm.{end}"] = tensors.pop(f"{prefix}.mlp.layernorm.{end}")
            self.model.load_state_dict(parts, strict=False)
        if tensors:
            raise SystemExit(f"{folder.name}: {', '.join(tensors)}: no place for them")
        self.slopes = torch.tensor(alibi_slopes(raw["num_attention_heads"]), dtype=torch.float64)
        self.has_types = True

    def _mask(self, tokens: int) -> torch.Tensor:
        return -self.slopes[None, :, None, None] * torch.from_numpy(abs(distances(tokens)))
