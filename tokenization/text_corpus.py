"""English texts that the shipped text tokenizer is trained on: four Debian packages and the instructions of LIBERO.

Every package is in the public domain or under a permissive licence. They are read where Debian installs them, or below
a folder that they were unpacked in, which needs no root:

    apt-get download wordnet-base sword-text-web jargon-text dict-devil
    for file in *.deb; do dpkg -x "$file" corpus/; done
"""

import gzip
import hashlib
import html
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBERO_INSTRUCTIONS = Path(__file__).parent / "text_tokenizer" / "libero_instructions.txt"

_SWORD_BLOCK = struct.Struct("<III")  # offset, length, length when unpacked
# Foot notes and headings stand in the middle of a sentence; all other marks surround text.
_NO_TEXT = re.compile(r"<(note|title)\b.*?</\1>", flags=re.DOTALL)
_VERSE_BEGINS = re.compile(r"<(?:verse|div|chapter)\b[^>]*>")
_MARK = re.compile(r"<[^>]*>")
_SPACE_BEFORE_SIGN = re.compile(r"\s+(?=[,.;:?!])")


@dataclass(frozen=True)
class Corpus:
    """One package of text.

    Attributes:
        package (`str`): name of the Debian package.
        licence (`str`): of the text.
        title (`str`): what it is.
        files (`tuple[str, ...]`): files to read, below the root of the file system.
        read (`Callable`): takes their contents, gives the texts.
    """

    package: str
    licence: str
    title: str
    files: tuple[str, ...]
    read: Callable[[list[bytes]], Iterator[str]]


def read_corpus(name: str, root: str | os.PathLike = "/") -> tuple[list[str], dict[str, Any]]:
    """Read the texts of one package.

    Args:
        name (`str`): a key of `CORPORA`.
        root (`str` or `os.PathLike`): folder that holds `usr/`: the file system, or where the package was unpacked.

    Returns:
        `tuple[list[str], dict]`: the texts, each once, in order; and what is known about them: package, version,
        licence, number of texts, bytes, and the sha256 of every file.

    Raises:
        FileNotFoundError: if a file is missing; says which package holds it and how to get it.
        ValueError: if a file is damaged.
    """
    corpus = CORPORA[name]
    contents = [_read_file(Path(root, file), corpus.package) for file in corpus.files]
    try:
        texts = list(dict.fromkeys(text for text in corpus.read(contents) if text.strip()))
    except (struct.error, zlib.error, EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"The files of `{corpus.package}` below `{root}` cannot be read ({error}). Install the package anew."
        ) from error
    record = {
        "package": corpus.package,
        "version": _package_version(corpus.package, Path(root)),
        "title": corpus.title,
        "licence": corpus.licence,
        "texts": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "sha256": {
            file: hashlib.sha256(content).hexdigest() for file, content in zip(corpus.files, contents, strict=True)
        },
    }
    return texts, record


def read_libero_instructions() -> list[str]:
    """What the robot is told in the 130 tasks of LIBERO, suite by suite; some tasks share their words.

    Returns:
        `list[str]`: 130 instructions.
    """
    return LIBERO_INSTRUCTIONS.read_text(encoding="utf-8").splitlines()


def _read_file(path: Path, package: str) -> bytes:
    """Content of a file of a package."""
    if not path.is_file():
        raise FileNotFoundError(
            f"The corpus `{package}` is not there: no file `{path}`. Install it (`apt-get install {package}`), or "
            f"unpack it into a folder (`apt-get download {package}`, `dpkg -x {package}_*.deb corpus/`) and pass "
            "`--corpus_root corpus/`."
        )
    return path.read_bytes()


def _package_version(package: str, root: Path) -> str:
    """Version of a package, from the first line of its changelog: `name (version) ...`."""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = root / "usr/share/doc" / package / name
        if path.is_file():
            first = gzip.decompress(path.read_bytes()).split(b"\n", 1)[0].decode()
            found = re.match(r"\S+ \((\S+)\)", first)
            if found:
                return found.group(1)
    return "unknown"


def _read_wordnet(contents: list[bytes]) -> Iterator[str]:
    """Glosses and examples: what follows the bar in the lines of WordNet's data files."""
    for content in contents:
        for line in content.decode("utf-8").splitlines():
            entry, bar, gloss = line.partition(" | ")
            if bar and entry[:1].isdigit():
                yield gloss.strip()


def _read_sword(contents: list[bytes]) -> Iterator[str]:
    """Verses of a Bible in the form of the SWORD project: tables of blocks, each followed by the packed blocks."""
    for table, blocks in zip(contents[::2], contents[1::2], strict=True):
        for offset, length, _ in _SWORD_BLOCK.iter_unpack(table):
            if not length:
                continue
            marked = zlib.decompress(blocks[offset : offset + length]).decode("utf-8")
            for verse in _VERSE_BEGINS.split(_NO_TEXT.sub(" ", marked)):
                words = html.unescape(_MARK.sub("", verse)).split()
                yield _SPACE_BEFORE_SIGN.sub("", " ".join(words))


def _read_paragraphs(contents: list[bytes]) -> Iterator[str]:
    """Paragraphs of packed text files; line breaks and indents stay, so that they are learned as well."""
    for content in contents:
        for paragraph in re.split(r"(?<=\n)\s*\n", gzip.decompress(content).decode("utf-8")):
            yield paragraph.rstrip() + "\n\n"


_WORDNET = "usr/share/wordnet/data."
_WORLD_ENGLISH_BIBLE = "usr/share/sword/modules/texts/ztext/engWEB2015eb/"

CORPORA: dict[str, Corpus] = {
    "wordnet": Corpus(
        package="wordnet-base",
        licence="WordNet 3.0 licence (permissive)",
        title="WordNet 3.0: glosses and examples",
        files=tuple(_WORDNET + part_of_speech for part_of_speech in ("noun", "verb", "adj", "adv")),
        read=_read_wordnet,
    ),
    "world_english_bible": Corpus(
        package="sword-text-web",
        licence="public domain",
        title="World English Bible: narrative in modern English",
        files=tuple(_WORLD_ENGLISH_BIBLE + file for file in ("ot.bzs", "ot.bzz", "nt.bzs", "nt.bzz")),
        read=_read_sword,
    ),
    "jargon_file": Corpus(
        package="jargon-text",
        licence="public domain",
        title="The Jargon File 4.4.7: technical and colloquial English",
        files=("usr/share/doc/jargon-text/jargon.txt.gz",),
        read=_read_paragraphs,
    ),
    "devils_dictionary": Corpus(
        package="dict-devil",
        licence="public domain",
        title="The Devil's Dictionary (1911): essays, dialogue and verse",
        files=("usr/share/dictd/devil.dict.dz",),
        read=_read_paragraphs,
    ),
}
