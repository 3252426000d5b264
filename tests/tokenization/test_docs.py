"""The Python in docs/tokens.md runs, as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from tokenization import WorldVLAProcessor

from .conftest import CORPUS

PAGE = Path(__file__).parents[2] / "docs" / "tokens.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def names(processor, frames):
    commands = np.linspace(-0.3, 0.3, 21).reshape(3, 7)
    return {"processor": processor, "previous": frames[0], "current": frames[1], "commands": commands}


def test_histories_and_reading_back(names, capsys):
    for snippet in SNIPPETS[:-1]:
        exec(snippet, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(names["sample"]["input_ids"]) > names["inputs"]["input_ids"].shape[1]
    assert [line.split(" ", 2)[2] for line in printed if line.endswith(" (4, 2)")] == ["(4, 2)"] * 2
    (comment,) = re.findall(r"reason\)  # (.*)", "".join(SNIPPETS))
    assert printed[-1] == comment


def test_a_small_vocabulary_is_made(names, tmp_path):
    names |= {"instructions": CORPUS, "folder": tmp_path}
    exec(SNIPPETS[-1], names)
    assert WorldVLAProcessor.from_pretrained(tmp_path).to_dict() == names["processor"].to_dict()
    assert names["config"].vocab_size == names["layout"].vocab_size
