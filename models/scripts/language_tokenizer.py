"""The bundled language model's tokenizer, and how documents become its tokens.

Comes in: documents. Goes out: a byte-level BPE tokenizer with its files, and per document the token ids and which of them the model
learns to write: all of prose, and of a chat what the assistant says. It is the same text that the chat template makes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from language_corpus import PROSE, Document

PAD, BEGIN, END, ASSISTANT = "<|pad|>", "<|begin|>", "<|end|>", "<|assistant|>"
SPECIALS = [PAD, BEGIN, END, "<|system|>", "<|user|>", ASSISTANT]
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('roles are system, user and assistant') }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim }}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each whether it is learnt; `bytes` of the text that is."""

    ids: np.ndarray
    learnt: np.ndarray
    bytes: int


def train(documents: list[Document], vocabulary: int) -> Tokenizer:
    """Byte pairs of the documents' texts (Sennrich et al. 2016, on bytes as in Radford et al. 2019)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for document in documents for _, text in document.turns), trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": BEGIN,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": context,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, documents: list[Document], context: int) -> list[Encoded]:
    """Each document's tokens, cut at `context`."""
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    texts = [text for document in documents for _, text in document.turns]
    encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    encoded = []
    for document in documents:
        ids, learnt, size = [begin], [False], 0
        for role, text in document.turns:
            spoken = next(encodings).ids
            writes = role in (PROSE, "assistant")
            if role != PROSE:
                ids.append(tokenizer.token_to_id(f"<|{role}|>"))
                learnt.append(False)
            ids += spoken + [end] * writes
            learnt += [writes] * (len(spoken) + writes)
            size += len(text.encode()) if writes else 0
        if len(ids) > context:
            kept = [token for token, is_learnt in zip(ids[:context], learnt) if is_learnt]
            ids, learnt = ids[:context], learnt[:context]
            size = len(tokenizer.decode(kept, skip_special_tokens=True).encode())
        encoded.append(Encoded(np.array(ids), np.array(learnt), size))
    return encoded
