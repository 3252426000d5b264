"""Is the imagination true to the actions? The same frame under different actions, beside the simulator.

    python evaluation/counterfactual.py --checkpoint outputs/demo-train/checkpoint \
        --demonstrations outputs/demo-train/held_out --output_dir outputs/demo-train/counterfactual

From states of held-out episodes the simulator carries out one command several times: along each axis, and with the
gripper opened and closed. The model imagines the same from the same frame. Writes `report.md`, `results.json` and
`pictures.png` (a row an action: given frame, simulator, imagined). See docs/world_model.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import h5py
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from evaluation.arguments import parse_arguments, require_positive
from evaluation.atomic_files import write_atomically, write_json, write_text
from evaluation.checkpoints import check_imagined_camera, check_simulator_fit, fingerprint_checkpoint, load_checkpoint
from evaluation.counterfactual_measures import agreement, centroid, effect_correlation, find_shift
from evaluation.libero_env import LiberoEnv
from evaluation.libero_rendering import GRIPPER, segmentation_names
from evaluation.recorded_actions import read_recorded_actions
from evaluation.report import markdown_table
from evaluation.rerender_ledger import find_task_named
from evaluation.rerendering import stand_as_recorded
from evaluation.run_settings import current_commit, package_versions
from evaluation.sampling import SamplingArguments
from evaluation.video import enlarge, label
from evaluation.world_model import decode_frames, imagine_tokens
from evaluation.world_model_windows import Window, choose_windows
from tokenization.demonstrations import Demonstration

logger = logging.getLogger("worldvla.counterfactual")

# In the robot's own frame: x points away from it, y to its left, z up. The last number is the gripper's, 0: as it is.
ACTIONS = {
    "forward": (1, 0, 0, 0),
    "backward": (-1, 0, 0, 0),
    "left": (0, 1, 0, 0),
    "right": (0, -1, 0, 0),
    "up": (0, 0, 1, 0),
    "down": (0, 0, -1, 0),
    "open gripper": (0, 0, 0, -1),
    "close gripper": (0, 0, 0, 1),
}
OPPOSITES = (("forward", "backward"), ("left", "right"), ("up", "down"), ("open gripper", "close gripper"))
NUM_MOTIONS = 6  # the first actions of the table
REACH = 40  # pixels of a picture of 128, how far the gripper is looked for
HOW = (
    "Displacement of the gripper in the picture, less the mean over the motions of the same start. The truth is the "
    "middle of the gripper's segmentation mask in the simulator. In imagined frames the gripper is found by the shift "
    "of its pixels in the given frame that fits best; the same search in the simulator's own frames, drawn by the "
    "tokenizer, says what the instrument can reach at most (the ceiling). Chance: rank correlation 0, signs 50 %; a "
    "hand that stands still scores 0 in both. In "
    "brackets the 95 % interval, by bootstrap over the starts. Effects: correlation, over the pixels around the "
    "gripper, of what differs between two opposite actions in imagination and simulator."
)


@dataclass(kw_only=True)
class CounterfactualArguments(SamplingArguments):
    """Options of `evaluation/counterfactual.py`."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a WorldVLA checkpoint with its processor."})
    demonstrations: list[str] = field(metadata={"help": "Held-out HDF5 files of one task or of several, with states."})
    output_dir: str = field(metadata={"help": "Folder for report.md, results.json and pictures.png."})
    starts: int = field(default=8, metadata={"help": "Starting states in all, spread over the episodes."})
    num_frames: int = field(default=8, metadata={"help": "Times that a command is given."})
    strength: float = field(default=0.5, metadata={"help": "Share of the largest command of the checkpoint's limits."})
    camera: str = field(
        default="agentview",
        metadata={"help": "Camera that is imagined: the first that the checkpoint was trained on."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Whose action limits, where the checkpoint holds those of several data sets."}
    )
    device: str = field(default="cpu", metadata={"help": "torch device of the model."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "starts", "num_frames", "strength")
        self.check_sampling()
        if self.strength > 1:
            raise ValueError(f"`--strength` is a share of the largest command, at most 1, got {self.strength}.")


class Simulated(NamedTuple):
    """What the simulator shows from one start.

    Attributes:
        given (`np.ndarray` of shape `(H, W, 3)`): the frame before the first command.
        gripper (`np.ndarray` of shape `(H, W)`): bool, where the gripper is in it.
        after (`np.ndarray` of shape `(A, H, W, 3)`): the frame after the last command of each action.
        moved (`np.ndarray` of shape `(A, 2)`): displacement of the gripper, pixels down and right.
    """

    given: np.ndarray
    gripper: np.ndarray
    after: np.ndarray
    moved: np.ndarray


def choose_starts(arguments: CounterfactualArguments) -> list[Window]:
    """Spread the starting states over the episodes.

    Args:
        arguments (`CounterfactualArguments`): all options.

    Returns:
        `list[Window]`: at most as many as asked for.
    """
    found = choose_windows(arguments.demonstrations, arguments.camera, arguments.num_frames, episodes=arguments.starts)
    per_episode = -(-arguments.starts // len(found)) + 1  # the first steps of all episodes look alike
    windows = choose_windows(
        arguments.demonstrations, arguments.camera, arguments.num_frames, per_episode, arguments.starts
    )
    later = [window for window in windows if window.start > 0] or windows
    return [later[place] for place in np.unique(np.linspace(0, len(later) - 1, arguments.starts).round().astype(int))]


def command_table(limits: dict[str, Any], strength: float, gripper: float) -> np.ndarray:
    """The command of each action.

    Args:
        limits (`dict`): `low` and `high` of the data set.
        strength (`float`): share of the largest command.
        gripper (`float`): what the gripper is told while the hand moves, -1 or 1.

    Returns:
        `np.ndarray` of shape `(A, 7)`: inside the limits and the simulator's range.
    """
    low, high = (np.clip(np.asarray(limits[name], float), -1, 1) for name in ("low", "high"))
    commands = np.zeros((len(ACTIONS), len(low)))
    for row, (*direction, hand) in enumerate(ACTIONS.values()):
        signs = np.array(direction)
        commands[row, :3] = strength * np.where(signs > 0, high[:3], np.where(signs < 0, low[:3], 0.0))
        commands[row, -1] = hand or gripper
    return commands


def simulate(env: LiberoEnv, demonstration: Demonstration, start: int, commands: np.ndarray, camera: str) -> Simulated:
    """Carry out every action from one recorded state; each begins with a reset, so none knows of another.

    Args:
        env (`LiberoEnv`): its task, at the model's image size.
        demonstration (`Demonstration`): the episode.
        start (`int`): step of the state.
        commands (`np.ndarray` of shape `(A, N, D)`): N commands of each action.
        camera (`str`): whose frames.

    Returns:
        `Simulated`.
    """
    with h5py.File(demonstration.path, "r") as file:
        attributes = dict(file["data"][demonstration.name].attrs)
    state, hand = demonstration.states[start], np.sign(demonstration.actions[start, -1])
    index = segmentation_names(env.domain).index(GRIPPER)

    def stand() -> None:
        stand_as_recorded(env, attributes)
        env.set_simulator_state(state)
        # The fingers' target is no part of a state: without this they would go half-way first.
        env.domain.robots[0].gripper.current_action = np.array([-1.0, 1.0]) * hand

    stand()
    given, gripper = env.render(camera), env.render_segmentation(camera) == index
    after, moved = [], []
    for sequence in commands:
        stand()
        for command in sequence:
            env.step(command)
        after.append(env.render(camera))
        moved.append(centroid(env.render_segmentation(camera) == index) - centroid(gripper))
    return Simulated(given, gripper, np.stack(after), np.stack(moved))


def simulate_starts(
    arguments: CounterfactualArguments, processor: Any, limits: dict[str, Any], starts: list[Window]
) -> tuple[list[Simulated], np.ndarray]:
    """Carry out every action from every start.

    Args:
        arguments (`CounterfactualArguments`): all options.
        processor (`WorldVLAProcessor`): turns commands into tokens.
        limits (`dict`): `low` and `high` of the data set.
        starts (`list[Window]`): S starts, those of a file together.

    Returns:
        `tuple`: what was seen, and the token ids of the commands `(S, A, N, D)`.
    """
    ids, simulated = [], []
    for path in tqdm(dict.fromkeys(start.demonstration.path for start in starts), desc="simulate", unit="file"):
        task = find_task_named(read_recorded_actions(Path(path)).task_name)
        with LiberoEnv(
            task.suite, task.task_id, cameras=(), image_size=processor.image_tokenizer.image_size[0]
        ) as env:
            for start in [start for start in starts if start.demonstration.path == path]:
                hand = float(np.sign(start.demonstration.actions[start.start, -1]) or -1)
                table = command_table(limits, arguments.strength, hand)
                tokens = processor.encode_actions(table, arguments.dataset_name)
                ids.append(np.repeat(tokens[:, None], arguments.num_frames, axis=1))
                # What the model is told, to the bin, is what the simulator does.
                told = np.clip(processor.decode_actions(ids[-1], arguments.dataset_name), -1, 1)
                simulated.append(simulate(env, start.demonstration, start.start, told, arguments.camera))
    return simulated, np.stack(ids)


def measure(simulated: list[Simulated], imagined: np.ndarray, drawn: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """Compare displacements and effects.

    Args:
        simulated (`list[Simulated]`): S starts.
        imagined (`np.ndarray` of shape `(S, A, H, W, 3)`): uint8, the last imagined frames.
        drawn (`np.ndarray` of shape `(S, A, H, W, 3)`): uint8, the simulator's last frames through the tokenizer.
        given (`np.ndarray` of shape `(S, H, W, 3)`): uint8, the given frames through the tokenizer.

    Returns:
        `dict`: `imagined` and `ceiling`, see `agreement`; `effects`: pair of actions -> mean correlation.
    """
    reach = round(REACH * given.shape[1] / 128)
    truth = np.stack([each.moved for each in simulated])[:, :NUM_MOTIONS]
    found = {
        name: np.stack(
            [
                [find_shift(given[row], each.gripper, frame, reach) for frame in frames[row, :NUM_MOTIONS]]
                for row, each in enumerate(simulated)
            ]
        )
        for name, frames in (("imagined", imagined), ("ceiling", drawn))
    }
    names, effects = list(ACTIONS), {}
    for pair in OPPOSITES:
        one, other = (names.index(name) for name in pair)
        correlations = [
            effect_correlation(
                imagined[row, one],
                imagined[row, other],
                each.after[one],
                each.after[other],
                _around(each.gripper, reach),
            )
            for row, each in enumerate(simulated)
        ]
        effects[" / ".join(pair)] = float(np.mean(correlations))
    agreements = {name: agreement(shifts, truth) for name, shifts in found.items()}
    return agreements | {"effects": effects, "truth": truth.tolist(), "found": found["imagined"].tolist()}


def _around(mask: np.ndarray, margin: int) -> np.ndarray:
    """The box around a mask, with a margin, as a mask."""
    rows, columns = np.nonzero(mask)
    box = np.zeros(mask.shape, bool)
    top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
    box[top : rows.max() + margin + 1, left : columns.max() + margin + 1] = True
    return box


def imagine_starts(
    model: Any,
    processor: Any,
    simulated: list[Simulated],
    action_ids: np.ndarray,
    names: Sequence[str],
    sampling: SamplingArguments,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Imagine every action from every start.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        simulated (`list[Simulated]`): S starts.
        action_ids (`np.ndarray` of shape `(S, A, N, D)`): token ids of the commands.
        names (`Sequence[str]`): of the starts; all actions of one draw the same numbers: what differs is their doing.
        sampling (`SamplingArguments`): whether codes are drawn.

    Returns:
        `tuple`: the last imagined frames, the simulator's through the tokenizer, both `(S, A, H, W, 3)`, and the given
        ones through the tokenizer `(S, H, W, 3)`.
    """
    given_ids = processor.encode_images([each.given for each in simulated])
    imagined, drawn = [], []
    for first, ids, each, name in zip(given_ids, action_ids, simulated, names, strict=True):
        repeated = first[None].expand(len(ids), -1, -1)
        options = sampling.sampling_options([name] * len(ids), model.device)
        last = imagine_tokens(model, processor, repeated, torch.as_tensor(ids), **options)[:, -1]
        imagined.append(decode_frames(processor, last))
        drawn.append(decode_frames(processor, processor.encode_images(list(each.after))))
    return np.stack(imagined), np.stack(drawn), decode_frames(processor, given_ids)


def format_report(result: dict[str, Any]) -> str:
    """The numbers as Markdown."""

    def cell(value: dict[str, Any]) -> str:
        if value["value"] is None:
            return ""
        bounds = value["interval"]
        return f"{value['value']:.2f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")

    rows = [
        [name, axis, cell(row["rank_correlation"]), cell(row["sign_accuracy"]), row["pairs"], row["signs"]]
        for name in ("imagined", "ceiling")
        for axis, row in result[name].items()
    ]
    header = ["frames", "direction in the picture", "rank correlation", "sign accuracy", "pairs", "signs"]
    effects = [[pair, f"{value:.2f}"] for pair, value in result["effects"].items()]
    parts = [
        "# Same frame, different actions",
        f"{len(result['truth'])} starts, {len(ACTIONS)} actions, {result['settings']['num_frames']} commands each.",
        HOW,
        markdown_table(header, rows),
        markdown_table(["opposite actions", "correlation of effects"], effects),
        "![given frame, simulator, imagined](pictures.png)",
        markdown_table(["setting", "value"], [[key, f"`{value}`"] for key, value in result["settings"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def draw_actions(simulated: Simulated, imagined: np.ndarray) -> np.ndarray:
    """A row an action of one start: given frame, simulator, imagined."""
    rows = []
    for name, real, frame in zip(ACTIONS, simulated.after, imagined, strict=True):
        cells = {"given": simulated.given, f"{name}: simulator": real, f"{name}: imagined": frame}
        rows.append(np.concatenate([label(enlarge(each, 256), text) for text, each in cells.items()], axis=1))
    return np.concatenate(rows)


def run_counterfactual(arguments: CounterfactualArguments) -> dict[str, Any]:
    """Simulate, imagine, compare, write.

    Args:
        arguments (`CounterfactualArguments`): all options.

    Returns:
        `dict`: see `measure`, with `settings`.

    Raises:
        ValueError: if episodes, checkpoint and simulator do not fit each other.
    """
    starts = choose_starts(arguments)
    check_imagined_camera(arguments.checkpoint, arguments.camera)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    check_simulator_fit(model, processor, arguments.dataset_name)
    limits = processor.action_tokenizer.limits[processor.action_tokenizer.choose_dataset(arguments.dataset_name)]
    height, width = processor.image_tokenizer.image_size
    if height != width:
        raise ValueError(f"The simulator renders squares; the checkpoint works at {height} x {width} pixels.")
    simulated, ids = simulate_starts(arguments, processor, limits, starts)
    names = [start.name for start in starts]
    imagined, drawn, given = imagine_starts(model, processor, simulated, ids, names, arguments)
    result = measure(simulated, imagined, drawn, given)
    result["settings"] = {
        **asdict(arguments),
        "starts": names,
        "checkpoint_fingerprint": fingerprint_checkpoint(arguments.checkpoint, model),
        "commit": current_commit(),
        "versions": package_versions(),
    }
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", result)
    write_text(folder / "report.md", format_report(result))
    write_atomically(folder / "pictures.png", Image.fromarray(draw_actions(simulated[0], imagined[0])).save)
    return result


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(CounterfactualArguments, argv)
    result = run_counterfactual(arguments)
    for axis, row in result["imagined"].items():
        logger.info("%s: %s", axis, {key: row[key] for key in ("rank_correlation", "sign_accuracy")})
    logger.info("report in %s", Path(arguments.output_dir) / "report.md")


if __name__ == "__main__":
    main(sys.argv[1:])
