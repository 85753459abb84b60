"""What goes with the bundled language model's weights: the facts of a training run go in, figures, a model card and golden outputs
come out.

The golden outputs are what `transformers` computes in f32 on the CPU from the files as they are stored, one text at a time.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from distill_corpus import DESCRIPTIONS, SOURCES
from language_corpus import MANUALS, Document
from language_tokenizer import Encoded

GOLDEN_CHATS = [
    [("user", "What is git?")],
    [("system", "You are a helpful assistant."), ("user", "What does the command ls do?")],
    [
        ("user", "What is nginx?"),
        ("assistant", "Small, powerful, scalable web/proxy server."),
        ("user", "How do I install it?"),
    ],
]
CONTINUED = 24  # tokens of a golden continuation
TOP = 10  # logits
EXAMPLES = (
    "Hello",
    "What is git?",
    "What is vim?",
    "Tell me about postgresql.",
    "What does the command grep do?",
    "How do I install nginx?",
    "Which command do I use for this: list directory contents?",
    "What is the capital of France?",
)
ANSWER_TOKENS = 64


def figures(ask: Callable[[Encoded], np.ndarray], documents: list[Encoded]) -> dict[str, float]:
    """Perplexity by token and by byte, and bits a byte, of what is learnt of some documents; `ask` gives the natural logarithm of P of
    each token but the first."""
    nats = -sum(float(ask(document)[document.learnt[1:]].sum()) for document in documents)
    tokens = sum(int(document.learnt.sum()) for document in documents)
    size = sum(document.bytes for document in documents)
    return {"token": math.exp(nats / tokens), "byte": math.exp(nats / size), "bits": nats / size / math.log(2)}


def table(facts: dict) -> str:
    """Perplexities as a table of Markdown."""
    names = list(facts["sizes"])
    lines = ["| held-out perplexity, by token / by byte | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for way, figures in facts["quality"].items():
        cells = [f"{figures[name]['token']:.2f} / {figures[name]['byte']:.3f}" for name in names]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    sizes = [f"{documents} documents, {tokens} tokens" for documents, tokens in facts["sizes"].values()]
    return "\n".join([*lines, "| measured on | " + " | ".join(sizes) + " |"])


def recall_table(facts: dict) -> str:
    """Shares of answers known by heart, as a table of Markdown."""
    lines = [f"| {name} | {share:.0%} |" for name, share in facts["recalled"].items()]
    return "\n".join(["| question on what was trained on | right to the letter |", "|---|---|", *lines])


def verdict(facts: dict) -> str:
    """Where the network predicts worse than n-grams do, in a sentence."""
    own, baseline = facts["quality"].values()
    worse = [name for name in facts["sizes"] if own[name]["token"] > baseline[name]["token"]]
    if not worse:
        return "The network predicts better than the n-grams throughout."
    return f"The n-grams predict better: {', '.join(worse)}. A longer training (`--minutes`) is what helps."


def loaded(folder: Path) -> tuple[transformers.PreTrainedTokenizerFast, transformers.LlamaForCausalLM]:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer, transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def check_template(folder: Path, documents: list[Document], encoded: list[Encoded]) -> None:
    """Stops where the chat template makes other tokens of a chat than the model was trained on."""
    tokenizer, _ = loaded(folder)
    for document, wanted in zip(documents, encoded):
        ids = tokenizer.apply_chat_template(messages(list(document.turns)), return_dict=False)
        if ids[: len(wanted.ids)] != wanted.ids.tolist():
            raise SystemExit(
                f"the chat template makes {ids} of {document.turns}, but training read {wanted.ids.tolist()}"
            )


@torch.inference_mode()
def continued(model: transformers.LlamaForCausalLM, ids: list[int], tokens: int) -> tuple[list[int], float]:
    """The likeliest continuation, and by how much the likeliest token led at least."""
    written: list[int] = []
    closest = math.inf
    for _ in range(tokens):
        logits = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        closest = min(closest, float(best.values[0] - best.values[1]))
        written.append(int(best.indices[0]))
    return written, closest


def answers(folder: Path) -> str:
    """What the model answers to a few questions when the likeliest token is taken each time."""
    tokenizer, model = loaded(folder)
    lines = []
    for asked in EXAMPLES:
        ids = tokenizer.apply_chat_template(messages([("user", asked)]), add_generation_prompt=True, return_dict=False)
        written, _ = continued(model, ids, ANSWER_TOKENS)
        until = written.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in written else len(written)
        lines.append(f"> **{asked}**  \n> {tokenizer.decode(written[:until])}\n")
    return "\n".join(lines)


def write_golden(folder: Path, path: Path) -> None:
    """Token ids of a few chats, the last logits' largest, and greedy continuations, which end tokens do not stop."""
    tokenizer, model = loaded(folder)
    cases = []
    for chat in GOLDEN_CHATS:
        given = messages(chat)
        text = tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.apply_chat_template(given, add_generation_prompt=True, return_dict=False)
        with torch.inference_mode():
            top = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(TOP)
        greedy, closest = continued(model, ids, CONTINUED)
        cases.append(
            {
                "messages": given,
                "text": text,
                "ids": ids,
                "top_ids": top.indices.tolist(),
                "top_logits": top.values.tolist(),
            }
            | {"greedy": greedy, "greedy_text": tokenizer.decode(greedy), "lead_min": closest}
        )
    reference = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32 on the CPU"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"reference": {json.dumps(reference)},\n"cases": [\n{lines}\n]}}\n')


def sources(versions: dict[str, str]) -> str:
    """A table of the texts' origins and licences."""
    lines = ["| package | version | licence of the text | what is read |", "|---|---|---|---|"]
    for source in [*SOURCES, DESCRIPTIONS, *MANUALS]:
        lines.append(f"| {source.package} | {versions[source.package]} | {source.licence} | {source.what} |")
    return "\n".join(lines)


def card(facts: dict) -> str:
    """The model's README.md."""
    config = facts["config"]
    return f"""---
license: apache-2.0
---
# {facts["name"]}

A language model that says in a line what a Debian package or a command is for. Small enough to ship inside the program, so that a
chat works with nothing downloaded: it shows that generation runs, and how; it is no source of knowledge. For real work take a larger model.

| | |
|---|---|
| network | Llama: {config["num_hidden_layers"]} layers of width {config["hidden_size"]}, {config["num_attention_heads"]} heads on {config["num_key_value_heads"]} key heads, feed-forward {config["intermediate_size"]}, tied head; {facts["parameters"]:,} parameters, stored as f16 |
| tokenizer | byte-level BPE, {config["vocab_size"]:,} tokens |
| longest text | {config["max_position_embeddings"]} tokens |
| chat | `<\\|begin\\|>`, then for each message its role's token (`<\\|system\\|>`, `<\\|user\\|>`, `<\\|assistant\\|>`) and its text; an answer ends with `<\\|end\\|>` |

## What it answers
The likeliest token each time:

{facts["answers"]}

## Quality
As `models/scripts/train_language_model.py` printed it, from these files, on text that it was not trained on, held out by pages and by families of
packages. The baseline is an interpolated Kneser-Ney model of the same tokens, counted on {facts["counted"]:,} of those that the network has read. Of chats only the
answers count, behind their questions; nobody can know what a held-out package is, but its name says something.
{verdict(facts)}

{table(facts)}

What it has learnt by heart, when the likeliest token is taken each time, of {facts["known"]} well-known packages and {facts["commands"]} commands:

{recall_table(facts)}

## Where it comes from
Trained from random weights for {facts["minutes"]:.0f} minutes on {facts["where"]}: {facts["steps"]:,} batches, {facts["tokens"]:,} tokens. The chats are made by
rules from package descriptions and from the one-line summaries of manual pages, those of the {facts["known"]} packages that most others depend
on or suggest more often than the rest. The texts:

{sources(facts["versions"])}

The files hold no text, but the tokenizer's pieces of words. The weights are under the Apache License 2.0, this project's.

## Limits
- It knows a few words on each of some thousand packages and commands; of others it makes up what their names suggest, with the same confidence.
- English. It cannot reason, count, translate or write code, and it forgets what was said some sentences ago.
- Descriptions are those of {facts["versions"][DESCRIPTIONS.package]}.

## Make it again
```
python3 -m venv target/language-venv
target/language-venv/bin/pip install -r models/scripts/requirements-language.txt
target/language-venv/bin/python models/scripts/train_language_model.py --steps {facts["steps"]}
```
Seeds are fixed. With `--steps` the rate follows the batches, with `--minutes` the clock; another processor, number of threads or version of a
package rounds differently: each gives other weights of like quality. A graphics card trains it longer in less time: `--device cuda --minutes 20`.
"""
