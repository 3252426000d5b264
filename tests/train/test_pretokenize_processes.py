"""Several processes tokenize together; one of them is killed; the same command goes on. As users launch it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train.pretokenize
from train.episodes import TokenizedEpisodes

from ..conftest import DATASET
from .made_up_demonstrations import write_demonstrations

ROOT = Path(__file__).resolve().parents[2]
# The second process dies, as by `kill -9`, while it writes its second shard.
KILLED = """
import os, signal, sys
sys.path[0] = {root!r}
import datasets
import train.pretokenize
save, calls = datasets.Dataset.save_to_disk, []
def die(self, folder):
    calls.append(save(self, folder))
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
datasets.Dataset.save_to_disk = die
train.pretokenize.main(sys.argv[1:])
"""


def launch(script, flags, port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(script), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def flags(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    processor.save_pretrained(folder / "processor")
    (folder / "demos").mkdir()
    for number in range(3):
        write_demonstrations(folder / "demos" / f"task_{number}_demo.hdf5", 2, cameras=("agentview", "wrist"))
    return ["--demonstrations", str(folder / "demos"), "--processor", str(folder / "processor"), "--dataset_name",
            DATASET, "--cameras", "agentview", "wrist", "--split", "official"]  # fmt: skip


def rows_of(folder):
    return {name: list(rows) for name, rows in TokenizedEpisodes.load(folder).splits.items()}


def test_a_killed_process_and_the_same_command_again(flags, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    train.pretokenize.main([*flags, "--output_dir", str(alone)])
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT)))
    killed = launch(script, [*flags, "--output_dir", str(together)], 29541)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    with pytest.raises(FileNotFoundError, match="holds no finished data set.*goes on where it stopped"):
        TokenizedEpisodes.load(together)
    finished = {path.name: path.stat().st_mtime_ns for path in (together / "shards").iterdir() if path.name[0] != "."}
    leftovers = list((together / "shards").glob(".*"))
    assert 1 <= len(finished) <= 5 and leftovers
    done = launch("train/pretokenize.py", [*flags, "--output_dir", str(together)], 29542)
    assert done.returncode == 0, done.stderr[-9000:]
    shards = {path.name: path.stat().st_mtime_ns for path in (together / "shards").iterdir()}
    assert len(shards) == 6 and shards.items() >= finished.items()  # nothing was encoded again, nothing is left over
    assert done.stderr.count("already tokenized") == len(finished)
    assert rows_of(together) == rows_of(alone)
    assert set(rows_of(together)) == {"train", "val_ind", "val_ood"}
    cards = [json.loads((folder / "data_card.json").read_text()) for folder in (alone, together)]
    assert cards[0] == cards[1]
