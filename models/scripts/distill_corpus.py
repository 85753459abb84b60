"""The text that the bundled encoder learns from: Debian packages of text go in, labelled pieces of text come out.

Comes in: Debian packages, fetched by `apt-get download` into a folder and unpacked there (nothing is installed), the package
descriptions of apt's own lists, or a folder of text files that the caller names.
Goes out: a list of `Text`: a word or phrase, a sentence, or a passage of many sentences, each with the group that it belongs to.
Texts of one group are related (a notion and its kinds, paragraphs of one page), and a group is held out as a whole or not at all.
It never looks at the teacher, and gives the same list for the same packages.
"""

import gzip
import hashlib
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

SEED = 11
# One group in so many is held out.
HELD_OUT_EVERY = 40
# Words of a passage: from a paragraph's length to more than the student's 512 positions can hold.
PASSAGE_WORDS = (60, 340)
SENTENCE_WORDS_MAX = 60
# The share of the words that each kind and family of text gets: general language before technical, and enough long texts.
SHARES = {
    ("word", "wordnet"): 0.03,
    ("sentence", "wordnet"): 0.42,
    ("sentence", "descriptions"): 0.14,
    ("sentence", "documents"): 0.16,
    ("passage", "wordnet"): 0.07,
    ("passage", "descriptions"): 0.07,
    ("passage", "documents"): 0.11,
}


@dataclass(frozen=True)
class Source:
    """A Debian package whose text is read, and the terms of that text as its copyright file states them."""

    package: str
    licence: str
    what: str


SOURCES = [
    Source("wordnet-base", "WordNet 3.0 licence (permissive)", "glosses, examples and phrases of WordNet 3.0"),
    Source("jargon-text", "public domain", "the Jargon File"),
    Source("dict-devil", "public domain", "The Devil's Dictionary by Ambrose Bierce"),
    Source("sqlite3-doc", "public domain", "documentation of SQLite"),
    Source("postgresql-doc-15", "PostgreSQL licence (permissive)", "documentation of PostgreSQL"),
    Source("python3.11-doc", "Python Software Foundation licence (permissive)", "documentation of Python"),
]
DESCRIPTIONS = Source(
    "(package lists)",
    "each package's own; all of Debian's section main, free by Debian's guidelines",
    "descriptions of the packages in Debian's section main",
)


@dataclass(frozen=True)
class Text:
    """A piece of text. `kind`: word, sentence or passage. `group`: what it is related by."""

    text: str
    kind: str
    source: str
    group: str

    @property
    def held_out(self) -> bool:
        """Whether training must never see it: decided by the group's name alone."""
        return int.from_bytes(hashlib.sha256(self.group.encode()).digest()[:4], "big") % HELD_OUT_EVERY == 0


# ---- fetching -------------------------------------------------------------------------------------------------------


def run(command: list[str], **options) -> str:
    """What a command prints; exits with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: {done.stderr.strip()}\nThis needs a Debian system and an up-to-date package list "
            "(apt-get update). Without one, give your own folder of text with --text."
        )
    return done.stdout


def fetch(folder: Path, sources: list[Source] = SOURCES) -> dict[str, str]:
    """Downloads and unpacks every package that is not in `folder` yet. Returns each package's version."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {}
    for source in sources:
        unpacked = folder / source.package
        found = sorted(folder.glob(f"{source.package}_*.deb"))
        if not found:
            print(f"downloading {source.package}")
            run(["apt-get", "download", source.package], cwd=folder)
            found = sorted(folder.glob(f"{source.package}_*.deb"))
        if not unpacked.is_dir():
            run(["dpkg", "-x", str(found[-1]), str(unpacked)])
        versions[source.package] = run(["dpkg-deb", "-f", str(found[-1]), "Version"]).strip()
    descriptions = folder / "descriptions.txt"
    if not descriptions.is_file():
        descriptions.write_text(package_descriptions(folder / "apt"))
    distribution = run(["sh", "-c", ". /etc/os-release && echo $PRETTY_NAME"]).strip()
    versions[DESCRIPTIONS.package] = distribution
    return versions


def package_descriptions(state: Path) -> str:
    """Debian's English package descriptions."""
    print("downloading Debian's package descriptions")
    return package_lists(state, "Translations", update=True)


def package_lists(state: Path, kind: str, *, update: bool = False) -> str:
    """The `Translations` or `Packages` of Debian's section main, from package lists kept in `state`, which are downloaded when there
    are none yet or `update` says so; the system's own lists stay as they are."""
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    options = [
        "-o",
        "Acquire::Languages=en",
        "-o",
        f"Dir::State::Lists={state}/lists",
        "-o",
        f"Dir::Cache={state}/cache",
    ]
    if update or not any((state / "lists").glob("*_main_*")):
        run(["apt-get", *options, "update"])
    targets = run(["apt-get", *options, "indextargets", "--format", "$(FILENAME)", f"Created-By: {kind}"])
    files = [name for name in targets.splitlines() if "_main_" in name]
    return "".join(run(["/usr/lib/apt/apt-helper", "cat-file", name]) for name in sorted(files))


# ---- reading --------------------------------------------------------------------------------------------------------


def squeeze(text: str) -> str:
    """One line, single spaces."""
    return " ".join(text.split())


def is_prose(text: str) -> bool:
    """Whether at least 7 of 10 characters are letters or spaces: tables, signatures and code are not."""
    return bool(text) and sum(c.isalpha() or c.isspace() for c in text) >= 0.7 * len(text)


def wordnet(folder: Path) -> Iterator[Text]:
    """Glosses, examples and phrases; the group is the more general notion, so that a notion's kinds stay together. What is said
    of the kinds of one notion, joined, makes passages on general matters."""
    chance = random.Random(f"{SEED} wordnet-base")
    kinds: dict[str, list[str]] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"usr/share/wordnet/data.{part}").read_text().splitlines():
            if line.startswith("  "):
                continue  # the licence
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            above = [pointers[at + 1] for at in range(len(pointers) - 3) if pointers[at] in ("@", "@i", "&", "\\")]
            group = f"wordnet/{part}/{above[0] if above else fields[0]}"
            examples = re.findall(r'"([^"]{8,})"', gloss)
            definition = squeeze(re.sub(r'[;:]?\s*"[^"]*"', "", gloss)).strip(" ;:")
            for word in words:
                yield Text(word, "word", "wordnet-base", group)
            if definition:
                yield Text(definition, "sentence", "wordnet-base", group)
            for example in examples:
                yield Text(squeeze(example), "sentence", "wordnet-base", group)
            joined = ". ".join([f"{words[0]}: {definition}", *(squeeze(example) for example in examples)])
            kinds.setdefault(group, []).append(joined)
            if examples:
                yield Text(f"{joined}.", "sentence", "wordnet-base", group)
    for group, blocks in kinds.items():
        for text in paged(blocks, "wordnet-base", group, chance):
            if text.kind == "passage":
                yield text


def package_group(name: str) -> str:
    """The family of a package: `gcc` of `gcc-doc`."""
    return f"package/{re.sub(r'^lib|[-0-9.].*$', '', name) or name}"


def descriptions(text: str) -> Iterator[Text]:
    """The first line of each description, its paragraphs, and the whole; the group is the package family."""
    for stanza in text.split("\n\n"):
        match = re.search(r"^Package: (\S+)\n.*?^Description-en: (.*?)\n(.*)", stanza + "\n", re.DOTALL | re.MULTILINE)
        if not match:
            continue
        name, short, rest = match.groups()
        group = package_group(name)
        paragraphs = [squeeze(p) for p in re.split(r"^ \.$", rest, flags=re.MULTILINE)]
        paragraphs = [p for p in paragraphs if is_prose(p)]
        yield Text(squeeze(short), "sentence", DESCRIPTIONS.package, group)
        for paragraph in paragraphs:
            yield Text(paragraph, "sentence", DESCRIPTIONS.package, group)
        if len(paragraphs) > 1:
            yield Text(" ".join(paragraphs), "passage", DESCRIPTIONS.package, group)


class Page(HTMLParser):
    """The paragraphs and headings of a page, in order."""

    BLOCKS = frozenset({"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "td", "div"})
    SKIPPED = frozenset({"script", "style", "pre", "table", "nav", "svg"})

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.current: list[str] = []
        self.skipping = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in self.SKIPPED and self.skipping > 0
        if tag in self.BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.current.append(data)

    def flush(self) -> None:
        block = squeeze("".join(self.current)).replace("¶", "").strip()
        self.current = []
        if len(block.split()) >= 3 and is_prose(block):
            self.blocks.append(block)


def paged(blocks: list[str], source: str, group: str, chance: random.Random) -> Iterator[Text]:
    """A page's blocks one by one, and runs of neighbouring blocks joined to passages of random length."""
    for block in blocks:
        yield Text(block, "sentence", source, group)
    passage, wanted = [], chance.randint(*PASSAGE_WORDS)
    for block in blocks:
        passage += block.split()
        if len(passage) >= wanted:
            yield Text(" ".join(passage[: PASSAGE_WORDS[1]]), "passage", source, group)
            passage, wanted = [], chance.randint(*PASSAGE_WORDS)


def html(folder: Path, source: str) -> Iterator[Text]:
    """Every page below a folder; the group is the page."""
    chance = random.Random(f"{SEED} {source}")
    for path in sorted(folder.rglob("*.html")):
        page = Page()
        page.feed(path.read_text(errors="replace"))
        page.flush()
        yield from paged(page.blocks, source, f"{source}/{path.relative_to(folder)}", chance)


def plain(text: str, source: str) -> Iterator[Text]:
    """Text whose paragraphs are divided by empty lines; ten paragraphs in a row are a group."""
    chance = random.Random(f"{SEED} {source}")
    blocks = [squeeze(re.sub(r"[│├┤┼─┌┐└┘┴┬_*]+", " ", block)) for block in re.split(r"\n\s*\n", text)]
    blocks = [block for block in blocks if len(block.split()) >= 4 and is_prose(block)]
    for start in range(0, len(blocks), 10):
        yield from paged(blocks[start : start + 10], source, f"{source}/{start}", chance)


def everything(folder: Path) -> Iterator[Text]:
    """All texts of the unpacked packages in `folder`."""
    yield from wordnet(folder / "wordnet-base")
    yield from descriptions((folder / "descriptions.txt").read_text())
    for package in ("sqlite3-doc", "postgresql-doc-15", "python3.11-doc"):
        yield from html(folder / package, package)
    with gzip.open(folder / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz", "rt", errors="replace") as file:
        yield from plain(file.read(), "jargon-text")
    with gzip.open(folder / "dict-devil/usr/share/dictd/devil.dict.dz", "rt", errors="replace") as file:
        yield from plain(file.read(), "dict-devil")


def own(folder: Path) -> Iterator[Text]:
    """All `.txt` files below a folder of the caller's."""
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise SystemExit(f"{folder}: no .txt file in it; give text files whose paragraphs are divided by empty lines")
    for path in paths:
        yield from plain(path.read_text(errors="replace"), str(path.relative_to(folder)))


def family(text: Text) -> str:
    """What a text's share is counted under: one source outweighs none of the others by its mere size."""
    return {"wordnet-base": "wordnet", DESCRIPTIONS.package: "descriptions"}.get(text.source, "documents")


def choose(texts: Iterator[Text], words_max: int) -> list[Text]:
    """Each text once, in random order, until `words_max` words are reached, a share of them for each kind and family."""
    seen: dict[str, Text] = {}
    for text in texts:
        limit = SENTENCE_WORDS_MAX if text.kind == "sentence" else PASSAGE_WORDS[1]
        cut = " ".join(text.text.split()[:limit])
        if cut and cut.lower() not in seen:
            seen[cut.lower()] = Text(cut, text.kind, text.source, text.group)
    chosen = list(seen.values())
    random.Random(SEED).shuffle(chosen)
    present = {(text.kind, family(text)) for text in chosen}
    shares = {key: share for key, share in SHARES.items() if key in present}
    left = {key: share / sum(shares.values()) * words_max for key, share in shares.items()}
    kept = []
    for text in chosen:
        key = (text.kind, family(text))
        if left.get(key, 0) > 0:
            left[key] -= len(text.text.split())
            kept.append(text)
    random.Random(SEED).shuffle(kept)  # what has a small share was met early
    return kept
