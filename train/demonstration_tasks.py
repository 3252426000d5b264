"""Opens demonstrations of any kind, task by task, and names what they hold.

Shape legend: `T` steps.
"""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenization.demonstrations import (
    Demonstration,
    LeRobotReading,
    find_demonstration_files,
    read_demonstrations,
)
from tokenization.noops import drop_noops
from train.pretokenize_arguments import DemonstrationArguments

EPISODES_PER_SHARD = 50  # as many as LIBERO's files hold


@dataclass(frozen=True)
class DemonstrationTask:
    """What one task was demonstrated with.

    Attributes:
        name (`str`): the HDF5 file's name without suffix, or the instruction in a LeRobot data set.
        source (`str`): name of the file or folder.
        episodes (`Sequence[Demonstration]`): the demonstrations.
        dropped (`int`): no-ops that were left out of them.
    """

    name: str
    source: str
    episodes: Sequence[Demonstration]
    dropped: int = 0

    def shards(self) -> list["DemonstrationTask"]:
        """Divide into parts that are tokenized, and kept, one at a time."""
        starts = range(0, len(self.episodes), EPISODES_PER_SHARD)
        return [
            DemonstrationTask(self.name, self.source, self.episodes[start : start + EPISODES_PER_SHARD])
            for start in starts
        ]

    def content_name(self, camera: str, made_by: str) -> str:
        """Name of the tokens: changes when anything does that decides them.

        Args:
            camera (`str`): whose frames are tokenized.
            made_by (`str`): what else decides the tokens, such as the hash of the image tokenizer.

        Returns:
            `str`: task and 16 hexadecimal digits; fit to be a file's name.
        """
        content = hashlib.sha256(f"{made_by}:{camera}".encode())
        for path in dict.fromkeys(path for episode in self.episodes for path in episode.files(camera)):
            content.update(_digest(path, path.stat().st_mtime_ns, path.stat().st_size))
        content.update(json.dumps([episode.identity() for episode in self.episodes], sort_keys=True).encode())
        readable = re.sub(r"[^\w.-]+", "_", self.name)[:80]
        return f"{readable}-{content.hexdigest()[:16]}"


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, modified: int, size: int) -> bytes:
    """SHA-256 of a file; many episodes of a LeRobot data set share one."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            content.update(block)
    return content.digest()


def open_tasks(arguments: DemonstrationArguments) -> list[DemonstrationTask]:
    """Open and check everything that the command line names.

    Args:
        arguments (`DemonstrationArguments`): the demonstrations, and how they are read.

    Returns:
        `list[DemonstrationTask]`: one per HDF5 file, one per instruction of a LeRobot data set.

    Raises:
        FileNotFoundError: if a path or data set does not exist.
        ValueError: if something is damaged or lacks the camera; the message names it.
    """
    reading = LeRobotReading(action_feature=arguments.action_feature, rotate_180=arguments.rotate_180)
    tasks = []
    for path in find_demonstration_files(arguments.demonstrations):
        groups: dict[str, list[Demonstration]] = {}
        for episode in read_demonstrations(path, lerobot=reading):
            for camera in arguments.cameras:
                episode.require_camera(camera)
            groups.setdefault(episode.instruction if path.is_dir() else path.stem, []).append(episode)
        for name, episodes in groups.items():
            kept = [drop_noops(episode) for episode in episodes] if arguments.drop_noops else episodes
            dropped = sum(map(len, episodes)) - sum(map(len, kept))
            tasks.append(DemonstrationTask(name, path.name, kept, dropped))
    return tasks
