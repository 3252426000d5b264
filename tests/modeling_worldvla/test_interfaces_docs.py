"""The Python blocks of docs/model.md run, one after the other."""

import importlib.util
import re
from pathlib import Path

import torch

from .sequences import Writer, tiny_model

DOC = Path(__file__).parents[2] / "docs" / "model.md"


def test_blocks_of_the_docs_run(tmp_path, monkeypatch):
    tiny_model(hidden_size=64).save_pretrained(tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    writer = Writer()
    samples = []
    for prompt, answer in (writer.policy(3, 2), writer.world_model(4), writer.policy(2, 4)):
        samples.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    known = {"prompt": writer.policy()[0], "samples": samples}
    run = 0
    for block in re.findall(r"```python\n(.*?)```", DOC.read_text("utf-8"), flags=re.DOTALL):
        needed = re.match(r"# needs: (\S+)", block)
        if needed and importlib.util.find_spec(needed.group(1)) is None:
            continue  # two processes and compilers have tests of their own
        exec(compile(block, str(DOC), "exec"), known)
        run += 1
    assert run >= 2
    assert known["chunk"].shape == (1, 4, 3) and torch.isfinite(known["loss"])
