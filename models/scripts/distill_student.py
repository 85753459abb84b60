"""The bundled encoder itself: its tokenizer, its network before training, and its files.

Comes in: the teacher's tokenizer, counts of its pieces in the training texts, and a projection of the teacher's embeddings to the
student's width. Goes out: a tokenizer with fewer pieces, a `BertModel` whose words start where the teacher has them, and a folder
that the Rust runtime, `transformers` and `sentence-transformers` load. It never trains and never measures.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm
from transformers import BertConfig, BertModel

from distill_teacher import Teacher, pack

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 512
# Cosine waves over the logarithm of the position: neighbours differ at the start of a text, and far on hardly.
POSITION_WAVES = 24
# Root mean square of the initial word vectors: a rate of 1e-3 moves them by one part in a hundred a step.
WORD_SCALE = 0.1


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def count_pieces(tokenizer: Tokenizer, texts: list[str]) -> Counter[str]:
    """How often each of the teacher's pieces occurs in the texts."""
    counts: Counter[str] = Counter()
    for start in tqdm(range(0, len(texts), 10_000), desc="counting pieces", unit="×10⁴"):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 10_000], add_special_tokens=False):
            counts.update(encoding.tokens)
    return counts


def choose_pieces(vocabulary: dict[str, int], counts: Counter[str], size: int) -> list[str]:
    """The special tokens, every single character that the teacher knows (so that any text that it can read can be spelt), and
    then the most frequent pieces. Frequency is half that in the texts and half 1 / rank in the teacher's vocabulary, which is
    sorted by the frequency in the text that BERT was trained on."""
    special = set(SPECIAL)
    plain = [piece for piece in vocabulary if piece not in special and not piece.startswith("[unused")]

    def is_character(piece: str) -> bool:
        # Only letters and digits are ever continued: the pre-tokenizer splits at punctuation, the normaliser at ideographs.
        if len(piece) == 1:
            return True
        return len(piece) == 3 and piece.startswith("##") and piece[2].isalnum() and not "一" <= piece[2] <= "鿿"

    kept = {piece for piece in plain if is_character(piece)}
    words = sorted((piece for piece in plain if len(piece.removeprefix("##")) > 1), key=vocabulary.__getitem__)
    total = sum(counts.values())
    harmonic = sum(1 / (rank + 1) for rank in range(len(words)))
    score = {word: counts[word] / total + 1 / (rank + 1) / harmonic for rank, word in enumerate(words)}
    if len(kept) + len(SPECIAL) >= size:
        raise SystemExit(f"--pieces {size}: {len(kept)} single characters alone need more; give at least 6000")
    best = sorted(words, key=lambda word: (-score[word], word))
    kept.update(best[: size - len(SPECIAL) - len(kept)])
    return SPECIAL + sorted(kept, key=vocabulary.__getitem__)


def reduced_tokenizer(teacher: Tokenizer, pieces: list[str]) -> Tokenizer:
    """The teacher's tokenizer (normaliser, pre-tokenizer, template) with these pieces alone."""
    raw = json.loads(teacher.to_str())
    ids = {piece: index for index, piece in enumerate(pieces)}
    raw["model"]["vocab"] = ids
    raw["added_tokens"] = [
        {"id": ids[piece], "content": piece, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for piece in SPECIAL
    ]
    for name, token in raw["post_processor"]["special_tokens"].items():
        token["ids"] = [ids[name]]
    raw["truncation"] = raw["padding"] = None
    return Tokenizer.from_str(json.dumps(raw))


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    """The share of tokens that are [UNK], special tokens not counted."""
    tokens = [token for one in tokenizer.encode_batch(texts, add_special_tokens=False) for token in one.tokens]
    return tokens.count("[UNK]") / max(1, len(tokens))


# ---- network --------------------------------------------------------------------------------------------------------


class SmoothPositions(nn.Module):
    """position table [POSITIONS, h] = waves [POSITIONS, k] · parameter [k, h]: what few texts are long enough to train is
    filled in from its neighbours. The table is written out when the model is saved."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.log1p(torch.arange(POSITIONS)) / np.log(POSITIONS)
        waves = torch.cos(np.pi * place[:, None] * torch.arange(POSITION_WAVES))
        self.register_buffer("waves", waves / np.sqrt(POSITION_WAVES))

    def forward(self, parameter: torch.Tensor) -> torch.Tensor:
        return self.waves @ parameter

    def right_inverse(self, table: torch.Tensor) -> torch.Tensor:
        return torch.linalg.lstsq(self.waves, table).solution


def make_student(words: np.ndarray, layers: int, intermediate: int) -> BertModel:
    """An untrained encoder around the word vectors [pieces, h]. What attention and feed-forward add starts at zero, and a norm
    of what is normal already changes nothing: it begins as exactly the mean of its normalised words (`embed_words`)."""
    size, hidden = words.shape
    config = BertConfig(
        vocab_size=size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=intermediate,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        initializer_range=1 / np.sqrt(hidden),
    )
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        scale = WORD_SCALE / np.sqrt((words**2).mean())
        model.embeddings.word_embeddings.weight.copy_(torch.from_numpy(words * scale))
        model.embeddings.token_type_embeddings.weight.zero_()
        model.embeddings.position_embeddings.weight.zero_()
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
    parametrize.register_parametrization(model.embeddings.position_embeddings, "weight", SmoothPositions())
    return model


def embed_words(model: BertModel, rows: list[list[int]]) -> torch.Tensor:
    """What `embed_rows` gives while the layers add nothing, without running them: [n, h]. Trains words at a fifteenth of the
    cost."""
    lengths = torch.tensor([len(row) for row in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    words = model.embeddings.word_embeddings(torch.tensor([one for row in rows for one in row]))
    normal = nn.functional.layer_norm(words, words.shape[-1:], eps=model.config.layer_norm_eps)
    mean = torch.zeros(len(rows), words.shape[-1]).index_add(0, owner, normal) / lengths[:, None]
    last = model.encoder.layer[-1].output.LayerNorm
    return nn.functional.normalize(mean * last.weight + last.bias, dim=1)


def embed_batch(model: BertModel, rows: list[list[int]]) -> torch.Tensor:
    """Normalised means of the last hidden states of one padded batch of token ids: [n, h]."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return nn.functional.normalize(mean, dim=1)


def embed_rows(model: BertModel, rows: list[list[int]]) -> torch.Tensor:
    """The same for any number of texts, each beside others of its length: [n, h], in the order given."""
    batches = pack(rows)
    embedded = torch.cat([embed_batch(model, [rows[at] for at in batch]) for batch in batches])
    order = torch.tensor([at for batch in batches for at in batch])
    return torch.empty_like(embedded).index_copy(0, order, embedded)


def embed_texts(model: BertModel, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """A trained model's embeddings of texts, f32 [n, h]; what is longer than its positions is cut."""
    rows = [cut(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    model.eval()
    with torch.no_grad():
        return embed_rows(model, rows).numpy()


def cut(ids: list[int]) -> list[int]:
    """At most POSITIONS ids, the last of them [SEP]."""
    return ids if len(ids) <= POSITIONS else ids[: POSITIONS - 1] + ids[-1:]


def start_words(teacher: Teacher, pieces: list[str], projection: np.ndarray, cache: Path) -> np.ndarray:
    """What the teacher says to each piece alone, in the student's width: [pieces, h]."""
    texts = [piece.removeprefix("##") for piece in pieces]
    return teacher.embed_cached(texts, cache, "words").astype(np.float32) @ projection


# ---- files ----------------------------------------------------------------------------------------------------------


def save(model: BertModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the folder: weights as f16, the tokenizer, and the settings that say how to pool."""
    from safetensors.torch import save_file

    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if "parametrizations" not in name and "position_ids" not in name:
            tensors[name] = tensor
    tensors["embeddings.position_embeddings.weight"] = model.embeddings.position_embeddings.weight
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in sorted(tensors.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")))
    config = model.config
    write_json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.intermediate_size,
            "layer_norm_eps": config.layer_norm_eps,
            "max_position_embeddings": config.max_position_embeddings,
            "model_type": "bert",
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "torch_dtype": "float16",
            "type_vocab_size": config.type_vocab_size,
            "vocab_size": config.vocab_size,
        },
    )
    modes = dict.fromkeys(("cls_token", "max_tokens", "mean_sqrt_len_tokens"), False) | {"mean_tokens": True}
    pooling = {"word_embedding_dimension": config.hidden_size}
    pooling |= {f"pooling_mode_{name}": is_used for name, is_used in sorted(modes.items())}
    write_json(folder / "1_Pooling/config.json", pooling)
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{step}"}
        for at, (path, step) in enumerate(steps)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": POSITIONS, "do_lower_case": False})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": POSITIONS,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
        }
        | {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
