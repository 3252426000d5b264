"""Corpora and the training script, on made-up packages of a few sentences."""

import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tokenization import VocabularyLayout
from tokenization.bpe_worldvla import encode_text, load_text_tokenizer
from tokenization.text_corpus import CORPORA, read_corpus, read_libero_instructions
from tokenization.train_bpe import TextTokenizerArguments, main, train_bpe

ROOT = Path(__file__).resolve().parents[2]
WORDNET = """  1 This is the licence, which is no gloss. | not read
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived; "an entity | a thing"
00001930 03 n 01 thing 0 000 | that which is perceived; "an entity | a thing"
00001931 03 n 01 bowl 0 000 | a round vessel
"""
VERSES = [
    '<div type="book"/><title>Luke</title><verse n="1"/><w lemma="x">The</w> <w>wind</w>,<note>or <i>breath</i></note>'
    "<w>blew</w>  &amp; fell .<verse n='2'/>It was\nnight",
    "<chapter/>A second block",
]
JARGON = "   :bug: n.\n\n   A “bug”:\n     it crawls.\n\n\n\nEnd"


def write(root, file, content):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "corpus"
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        write(root, f"usr/share/wordnet/data.{part_of_speech}", WORDNET.encode())
    table, blocks = struct.pack("<III", 0, 0, 0), b""
    for verses in VERSES:
        packed = zlib.compress(verses.encode())
        table += struct.pack("<III", len(blocks), len(packed), len(verses))
        blocks += packed
    for testament in ("ot", "nt"):
        folder = "usr/share/sword/modules/texts/ztext/engWEB2015eb/"
        write(root, f"{folder}{testament}.bzs", table)
        write(root, f"{folder}{testament}.bzz", blocks)
    write(root, "usr/share/doc/jargon-text/jargon.txt.gz", gzip.compress(JARGON.encode()))
    write(root, "usr/share/dictd/devil.dict.dz", gzip.compress(b"Bore, n.\n"))
    write(root, "usr/share/doc/jargon-text/changelog.Debian.gz", gzip.compress(b"jargon-text (4.4-1) unstable\n\n"))
    return root


def test_glosses_and_examples_of_wordnet(root):
    texts, record = read_corpus("wordnet", root)
    assert texts == ['that which is perceived; "an entity | a thing"', "a round vessel"]
    assert (record["texts"], record["bytes"]) == (2, len("".join(texts)))
    assert record["sha256"]["usr/share/wordnet/data.adv"] == hashlib.sha256(WORDNET.encode()).hexdigest()


def test_verses_without_notes_and_headings(root):
    texts, _ = read_corpus("world_english_bible", root)
    assert texts == ["The wind, blew & fell.", "It was night", "A second block"]


def test_paragraphs_keep_their_lines(root):
    texts, record = read_corpus("jargon_file", root)
    assert texts == ["   :bug: n.\n\n", "   A “bug”:\n     it crawls.\n\n", "End\n\n"]
    assert (record["package"], record["version"], record["licence"]) == ("jargon-text", "4.4-1", "public domain")
    assert read_corpus("devils_dictionary", root)[1]["version"] == "unknown"  # no changelog there


@pytest.mark.parametrize("name", CORPORA)
def test_missing_packages_are_named(name, tmp_path):
    package = CORPORA[name].package
    message = f"corpus `{package}` is not there: no file `.*`. Install it \\(`apt-get install {package}`\\), or unpack"
    with pytest.raises(FileNotFoundError, match=message):
        read_corpus(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("jargon_file", "usr/share/doc/jargon-text/jargon.txt.gz"),
        ("wordnet", "usr/share/wordnet/data.verb"),
        ("world_english_bible", "usr/share/sword/modules/texts/ztext/engWEB2015eb/nt.bzz"),
        ("world_english_bible", "usr/share/sword/modules/texts/ztext/engWEB2015eb/ot.bzs"),
    ],
)
def test_damaged_packages_are_named(root, name, file):
    (root / file).write_bytes(b"\xff\xfe damaged")
    with pytest.raises(ValueError, match=f"files of `{CORPORA[name].package}` below .* Install the package anew"):
        read_corpus(name, root)


def test_the_script_is_repeatable_and_records_what_it_read(root, tmp_path):
    """Once as a script, once here: neither the order of sets nor that of threads plays a part."""
    train_bpe(TextTokenizerArguments(output=str(tmp_path / "0"), corpus_root=str(root)))
    command = [
        sys.executable,
        "tokenization/train_bpe.py",
        "--output",
        str(tmp_path / "1"),
        "--corpus_root",
        str(root),
    ]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=120)
    for name in ("tokenizer.json", "training.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    record = json.loads((tmp_path / "0" / "training.json").read_text(encoding="utf-8"))
    content = (tmp_path / "0" / "tokenizer.json").read_bytes()
    assert record["tokenizer.json"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert set(record["corpora"]) == {*CORPORA, "libero_instructions"}
    entries = record["entries"]
    assert entries["all"] == sum(entries[kind] for kind in ("not text", "bytes", "merged", "reserved text")) == 65536
    assert 0 < entries["merged"] < 2000
    tokenizer = load_text_tokenizer(tmp_path / "0" / "tokenizer.json")
    task = read_libero_instructions()[0]
    assert len(encode_text(tokenizer, task, VocabularyLayout.official())) == len(task.split())


def test_options_of_the_script_are_checked(root, tmp_path):
    with pytest.raises(ValueError, match="`--min_frequency` must be at least 1, got 0"):
        TextTokenizerArguments(output="x", min_frequency=0)
    with pytest.raises(ValueError, match="--corpus_rot"):
        main(["--output", str(tmp_path), "--corpus_rot", str(root)])
    with pytest.raises(FileNotFoundError, match="pass `--corpus_root corpus/`"):
        train_bpe(TextTokenizerArguments(output=str(tmp_path / "new"), corpus_root=str(tmp_path / "empty")))
    assert not (tmp_path / "new").exists()
