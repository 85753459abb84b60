"""The text that the bundled language model learns from: Debian's text goes in, documents come out.

Comes in: what distill_corpus.py reads, Debian's package lists, and the one-line summaries of the manual pages of a few packages.
Goes out: prose, and short chats that rules make of facts: of packages (what they are, how to install them), of commands, of the
model itself, and of what it cannot know. A fact is worded anew each time that it is asked for, by a random number of the caller's.
A document belongs to a group, and a group is held out as a whole or not at all. It knows no tokenizer and no model.
"""

import gzip
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import distill_corpus as corpus
from distill_corpus import Source, Text, squeeze

# How many packages count as well known: those that most others depend on or suggest.
KNOWN = 500
# Sections of what other packages need and nobody asks about.
UNASKED = frozenset(
    "libs libdevel oldlibs debug introspection perl python ruby javascript golang rust haskell java ocaml php gnu-r lisp doc "
    "metapackages kernel tasks localization zope gnustep".split()
)
SENTENCE_WORDS_MAX = 32  # of an answer's second sentence
SUMMARY_WORDS_MAX = 16

MANUALS = [
    Source(package, licence, "names and one-line summaries of its manual pages")
    for package, licence in (
        ("bzip2", "BSD-style"),
        ("coreutils", "GPL-3+"),
        ("cron", "ISC-style, GPL-2+"),
        ("curl", "curl (MIT-style)"),
        ("diffutils", "GPL-3+"),
        ("dpkg", "GPL-2+"),
        ("e2fsprogs", "GPL-2"),
        ("fdisk", "GPL-2+"),
        ("file", "BSD-2-Clause"),
        ("findutils", "GPL-3+"),
        ("git-man", "GPL-2"),
        ("grep", "GPL-3+"),
        ("gzip", "GPL-3+"),
        ("iproute2", "GPL-2"),
        ("iputils-ping", "BSD-3-Clause"),
        ("less", "GPL-3+ or Less"),
        ("login", "BSD-3-Clause"),
        ("make", "GPL-3+"),
        ("man-db", "GPL-2+"),
        ("mount", "GPL-2+"),
        ("openssh-client", "OpenSSH (BSD-style)"),
        ("passwd", "BSD-3-Clause"),
        ("procps", "GPL-2+, LGPL-2+"),
        ("psmisc", "GPL-2+"),
        ("rsync", "GPL-3+"),
        ("sed", "GPL-3+"),
        ("systemd", "LGPL-2.1+"),
        ("tar", "GPL-3+"),
        ("util-linux", "GPL-2+"),
    )
]

Turns = tuple[tuple[str, str], ...]  # (role, what it says)
PROSE = "text"  # the role of a document that is no chat

WHAT = (
    "What is {}?|What's {}?|what is {}|Tell me about {}.|tell me about {}|What is the package {}?|What does the package {} do?|"
    "Describe {}.|{}?|What is {} for?|What is {} good for?|Can you explain {}?|Do you know {}?|Explain what {} is."
).split("|")
BRIEFLY = "In short, what is {}?|What is {} in a few words?|Describe {} in one line.|Briefly, what is {}?".split("|")
INSTALL = "How do I install {}?|how can I get {}?|How is {} installed?|I want to install {}.|Install {}".split("|")
REMOVE = "How do I remove {}?|How can I uninstall {}?|How do I get rid of {}?".split("|")
WHICH = "Which package is this: {}?|Which package is a {}?|I am looking for this: {}. What is its name?|Name the package: {}".split(
    "|"
)
COMMAND = (
    "What does the command {} do?|What does {} do?|What is the {} command?|What is the command {} for?|Explain the command {}.|"
    "what does the command {} do"
).split("|")
COMMAND_FOR = "Which command is this: {}?|Which command do I use for this: {}?|Name a command: {}".split("|")
PROVIDES = "Which package has the command {}?|Where does the command {} come from?|What package is {} in?".split("|")
SYSTEM = (
    "You are a helpful assistant.|You are a helpful assistant. Answer briefly.|Answer the user's question.|Be brief.|"
    "You are an assistant for users of Debian.|You are an AI assistant."
).split("|")
THANKS = "Thanks|Thank you!|thank you|Thanks, that helps.".split("|")
WELCOME = "You are welcome."
ABILITIES = "I can say in a line what a Debian package or a command is for, and how to install it."
HELLO = f"Hello. {ABILITIES}"
WHO = f"I am a tiny language model, trained on texts of Debian. {ABILITIES}"
DEBIAN = "Debian is a free operating system, made by volunteers. Its software comes as packages, which apt installs."
BEYOND = "I do not know that. I only know a little about Debian's packages and commands."
TALK = {
    "Hello|Hi|hello|hi|Hey|Hello!|Good morning|Hi there|Good evening": HELLO,
    "Who are you?|What are you?|who are you|What is your name?|Tell me about yourself.|Which model are you?": WHO,
    "What can you do?|Help|help|How can you help me?|What do you know?|What can I ask you?": ABILITIES,
    "|".join(THANKS): WELCOME,
    "Bye|Goodbye|bye|See you": "Goodbye.",
    "How are you?|How are you today?|how are you": "I am a program and always well. What would you like to know about Debian?",
    "Are you a human?|Are you a person?|Are you real?": "No. I am a tiny language model inside a program.",
    "What is Debian?|Tell me about Debian.|what is debian|Explain Debian.": DEBIAN,
    "How do I install a package?|How do I install software?|How can I install a program?": "Run: apt install NAME",
    "How do I remove a package?|How do I uninstall software?": "Run: apt remove NAME",
    "How do I update my system?|How do I upgrade all packages?|How can I update Debian?": "Run: apt update && apt upgrade",
    "How do I search for a package?|How can I find a package?": "Run: apt search WORD",
    "How do I list the installed packages?|Which packages are installed?": "Run: apt list --installed",
    "Which files are in a package?|How do I see the files of a package?": "Run: dpkg -L NAME",
    "Which package does a file belong to?|How do I find the package of a file?": "Run: dpkg -S PATH",
    "How do I read a manual page?|How do I get help on a command?": "Run: man COMMAND",
}
# Slots are filled with words of WordNet; none of these can the model answer.
UNKNOWABLE = (
    "What is the capital of {}?|Who invented the {}?|Why is the {} {}?|Write a poem about {}.|How old is the {}?|"
    "Translate {} into French.|Who was {}?|What will the {} cost?|Tell me a story about a {} {}.|How many {} are there?|"
    "What do you think of {}?|When was the {} born?|Is {} better than {}?|Write a letter to my {}.|Where is {}?|"
    "Sing a song about {}.|What colour is a {}?|How do I cook {}?|Who won the {}?|Calculate {} times {}."
).split("|")


@dataclass(frozen=True)
class Document:
    """A piece of prose, whose one turn has the role `PROSE`, or a chat."""

    turns: Turns


@dataclass(frozen=True)
class Package:
    """What a chat can say of a package: its description's first line, and the first sentence of the rest, or nothing."""

    name: str
    short: str
    sentence: str
    group: str
    known: bool


@dataclass(frozen=True)
class Command:
    """What a chat can say of a command."""

    name: str
    summary: str
    package: str


# ---- facts ----------------------------------------------------------------------------------------------------------


def sentence_of(text: str) -> str:
    """Its first letter large, and a stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def first_sentence(paragraph: str) -> str:
    """The first sentence of a paragraph where it can stand alone, or nothing."""
    match = re.match(r"([A-Z].{20,}?[a-z)\"'][.!?])(?= [A-Z]|$)", paragraph)
    if not match or not corpus.is_prose(match[1]) or len(match[1].split()) > SENTENCE_WORDS_MAX:
        return ""
    return match[1]


def best_known(package_lists: str) -> set[str]:
    """Names of the packages that the most sources depend on, recommend or suggest, but for libraries."""
    sections: dict[str, str] = {}
    sources = defaultdict(set)
    for stanza in package_lists.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" not in fields:
            continue
        sections[fields["Package"]] = fields.get("Section", "")
        source = fields.get("Source", fields["Package"]).split()[0]
        for relation in ("Depends", "Recommends", "Suggests"):
            for name in re.findall(r"(?:^|[,|]\s*)([a-z0-9][a-z0-9+.-]+)", fields.get(relation, "")):
                sources[name].add(source)
    asked = [name for name in sources if sections.get(name, "libs") not in UNASKED and not name.startswith("lib")]
    return set(sorted(asked, key=lambda name: (-len(sources[name]), name))[:KNOWN])


def packages(folder: Path) -> list[Package]:
    """Every package of the lists, by name."""
    known = best_known(corpus.package_lists(folder / "apt", "Packages"))
    found = {}
    for stanza in (folder / "descriptions.txt").read_text().split("\n\n"):
        match = re.search(r"^Package: (\S+)\n.*?^Description-en: (.*?)\n(.*)", stanza + "\n", re.DOTALL | re.MULTILINE)
        if not match:
            continue
        name, short, rest = match.groups()
        paragraph = squeeze(re.split(r"^ \.$|^  ", rest, maxsplit=1, flags=re.MULTILINE)[0])
        found[name] = Package(
            name, squeeze(short), first_sentence(paragraph), corpus.package_group(name), known=name in known
        )
    return [found[name] for name in sorted(found)]


def plain_roff(text: str) -> str:
    """A line of a manual page without its marks."""
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\[&|^,/]|\\s[-+]?\d", "", text)
    return squeeze(re.sub(r"\\\(aq|\\\(cq", "'", re.sub(r"\\-|\\\(e[mn]", "-", text)).replace("\\ ", " "))


def summary(page: str) -> str:
    """The one-line summary of a manual page, or nothing."""
    mdoc = re.search(r"^\.Nd +(.+)$", page, re.MULTILINE)
    if mdoc:
        return plain_roff(mdoc[1])
    section = re.search(r'^\.S[Hh] +"?NAME"?\s*\n((?:(?!\.S[Hh]).*\n){1,6})', page, re.MULTILINE)
    if not section:
        return ""
    lines = [line for line in section[1].splitlines() if not line.startswith(".")]
    _, dash, said = plain_roff(" ".join(lines)).partition(" - ")
    return said if dash else ""


def commands(folder: Path) -> list[Command]:
    """Every command that has a manual page with a summary, by name."""
    found = {}
    for source in MANUALS:
        for path in sorted((folder / source.package / "usr/share/man").glob("man[18]/*.[18]*")):
            if path.is_symlink() or not path.is_file():
                continue
            name = re.sub(r"\.[18]\w*(\.gz)?$", "", path.name)
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", errors="replace") as file:
                said = summary(file.read())
            if said and "\\" not in said and len(said.split()) <= SUMMARY_WORDS_MAX:
                found.setdefault(name, Command(name, said.rstrip("."), source.package.removesuffix("-man")))
    # Of services, of pages on a part of a command (git-add of git), and of names too long to be typed, nobody asks.
    typed = [name for name in sorted(found) if "." not in name and "@" not in name and name.count("-") < 2]
    return [found[name] for name in typed if name.partition("-")[0] not in found or "-" not in name]


# ---- chats ----------------------------------------------------------------------------------------------------------


def with_system(turns: list[tuple[str, str]], chance: random.Random) -> Turns:
    """The chat, one time in eight behind words of whoever runs the model."""
    if chance.random() < 0.125:
        turns = [("system", chance.choice(SYSTEM)), *turns]
    return tuple(turns)


def exchange(question: str, answer: str) -> list[tuple[str, str]]:
    return [("user", question), ("assistant", answer)]


def about_package(package: Package, chance: random.Random) -> Document:
    """A chat of one to three questions about a package."""
    name, short = package.name, sentence_of(package.short)
    long = f"{short} {package.sentence}".strip()
    install, remove = f"Run: apt install {name}", f"Run: apt remove {name}"
    at = chance.random()
    if at < 0.62:
        turns = exchange(chance.choice(WHAT).format(name), long)
    elif at < 0.78:
        turns = exchange(chance.choice(BRIEFLY).format(name), short)
    elif at < 0.86 or not package.known:
        turns = exchange(chance.choice(INSTALL).format(name), install)
    else:
        turns = exchange(chance.choice(WHICH).format(package.short.rstrip(".")), f"It is {name}.")
    if chance.random() < 0.25:
        questions, answer = chance.choice([(INSTALL, install), (REMOVE, remove)])
        turns += exchange(chance.choice(questions).format("it"), answer)
        if chance.random() < 0.3:
            turns += exchange(chance.choice(THANKS), WELCOME)
    return Document(with_system(turns, chance))


def about_command(command: Command, chance: random.Random) -> Document:
    """A chat of one or two questions about a command."""
    at = chance.random()
    where = f"The command {command.name} is in the package {command.package}."
    if at < 0.6:
        turns = exchange(chance.choice(COMMAND).format(command.name), sentence_of(command.summary))
        if chance.random() < 0.25:
            turns += exchange("Which package is it in?", where)
    elif at < 0.8:
        turns = exchange(chance.choice(PROVIDES).format(command.name), where)
    else:
        turns = exchange(chance.choice(COMMAND_FOR).format(command.summary), f"Use the command {command.name}.")
    return Document(with_system(turns, chance))


def question(words: str, name: str, answer: str) -> Document:
    """A chat of one question."""
    return Document(tuple(exchange(words.format(name), sentence_of(answer))))


def small_talk(questions: str, chance: random.Random) -> Document:
    """A question of `TALK` and its answer."""
    turns = exchange(chance.choice(questions.split("|")), TALK[questions])
    return Document(with_system(turns, chance))


def beyond(words: list[str], chance: random.Random) -> Document:
    """A question that the model cannot answer, and its saying so."""
    question = chance.choice(UNKNOWABLE)
    filled = question.format(*(chance.choice(words) for _ in range(question.count("{}"))))
    return Document(with_system(exchange(filled, BEYOND), chance))


# ---- everything -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """All there is to learn from, or all that is held out."""

    technical: list[Document]  # pages of documentation
    described: list[Document]  # long descriptions of packages
    known: list[Package]
    packages: list[Package]  # the others
    commands: list[Command]
    words: list[str]

    def draw(self, kind: str, chance: random.Random) -> Document:
        """A document of a kind."""
        match kind:
            case "prose":
                return chance.choice(chance.choice((self.technical, self.described)))
            case "known":
                return about_package(chance.choice(self.known), chance)
            case "packages":
                return about_package(chance.choice(self.packages), chance)
            case "commands":
                return about_command(chance.choice(self.commands), chance)
            case "talk":
                return small_talk(chance.choice(list(TALK)), chance)
            case _:
                return beyond(self.words, chance)

    def chats(self, chance: random.Random) -> list[Document]:
        """A chat about every package and every command."""
        asked = [about_package(package, chance) for package in self.known + self.packages]
        return asked + [about_command(command, chance) for command in self.commands]


def is_held_out(group: str) -> bool:
    """Whether training must never see a group."""
    return Text("", "", "", group).held_out


def read(folder: Path) -> tuple[Library, Library, dict[str, str]]:
    """Fetches and reads everything: what to learn from, what is held out, and each source's version."""
    versions = corpus.fetch(folder, [*corpus.SOURCES, *MANUALS])
    texts = list(corpus.everything(folder))
    words = sorted({text.text for text in texts if text.kind == "word" and re.fullmatch("[a-z]{3,10}", text.text)})
    parts: dict[bool, dict[str, dict[str, Document]]] = {
        at: {"documents": {}, "descriptions": {}} for at in (False, True)
    }
    for text in texts:
        if text.kind == "passage" and corpus.family(text) != "wordnet":
            document = Document(((PROSE, text.text),))
            parts[text.held_out][corpus.family(text)].setdefault(text.text, document)
    for family, held_out in parts[True].items():  # what is said in both places is not held out
        parts[True][family] = {text: one for text, one in held_out.items() if text not in parts[False][family]}
    all_packages, all_commands = packages(folder), commands(folder)
    trained_on = {package.short for package in all_packages if not is_held_out(package.group)}
    trained_on |= {package.sentence for package in all_packages if not is_held_out(package.group)} - {""}

    def library(held_out: bool) -> Library:
        some = [package for package in all_packages if is_held_out(package.group) == held_out]
        if held_out:
            some = [package for package in some if not trained_on & {package.short, package.sentence}]
        return Library(
            technical=list(parts[held_out]["documents"].values()),
            described=list(parts[held_out]["descriptions"].values()),
            known=[package for package in some if package.known],
            packages=[package for package in some if not package.known],
            commands=[one for one in all_commands if is_held_out(f"command/{one.name}") == held_out],
            words=words,
        )

    return library(False), library(True), versions
