"""The options of the evaluation scripts: flat dataclasses read by `transformers.HfArgumentParser`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import HfArgumentParser

from evaluation.libero_env import SETTLING_STEPS
from evaluation.policy_arguments import PolicyArguments
from evaluation.protocol import STEP_LIMITS
from tokenization.choices_worldvla import require_choice


@dataclass(kw_only=True)
class RolloutArguments(PolicyArguments):
    """Options of `evaluation/run.py`: a policy acts in LIBERO."""

    output_dir: str = field(metadata={"help": "Results folder; the same command goes on in it."})
    suite: list[str] = field(default_factory=lambda: ["libero_object"], metadata={"help": "LIBERO suites."})
    task_ids: list[int] = field(default_factory=list, metadata={"help": "Tasks of each suite; all when not given."})
    episodes: int = field(default=1, metadata={"help": "Episodes per task."})
    first_state: int = field(default=0, metadata={"help": "Benchmark initial state of the first episode."})
    num_envs: int = field(
        default=1, metadata={"help": "Simulator processes; each needs about a core and 2.5 GB. Changes no result."}
    )
    videos: str = field(
        default="1", metadata={"help": "Which episodes are filmed: none, failures, all, or the first N of each task."}
    )
    traces: bool = field(
        default=False, metadata={"help": "Write frames and actions beside each video, for evaluation/imagine.py."}
    )
    step_limits: str = field(
        default="openvla", metadata={"help": f"Whose step limits: {', '.join(STEP_LIMITS)} (docs/evaluation.md)."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "One step limit for all suites instead."})
    settling_steps: int = field(default=SETTLING_STEPS, metadata={"help": "Still steps after each reset."})
    image_size: int = field(default=128, metadata={"help": "Pixels, height and width, that the simulator renders."})
    seed: int = field(default=0, metadata={"help": "The episode of initial state k is reset with seed + k."})
    simulator_timeout: float = field(
        default=120.0, metadata={"help": "Seconds without a sign of life after which a simulator is replaced."}
    )
    max_attempts: int = field(
        default=3, metadata={"help": "Attempts at an episode whose simulator fails, before it counts as an error."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        super().__post_init__()
        require_positive(self, "episodes", "num_envs", "max_steps", "image_size", "simulator_timeout", "max_attempts")
        require_choice("step limits", self.step_limits, list(STEP_LIMITS))
        if self.settling_steps < 0:
            raise ValueError(f"`--settling_steps` counts steps, at least 0, got {self.settling_steps}.")
        if not self.videos.isdecimal():
            require_choice("choice of videos", self.videos, ["none", "failures", "all"])


@dataclass
class ReconstructArguments:
    """Options of `evaluation/reconstruct.py`: how well a VQ-GAN draws again what it sees."""

    vq_model: str = field(
        metadata={"help": "The VQ-GAN: its own folder, or a folder or Hub id that holds it in `vq_model/`."}
    )
    output_dir: str = field(metadata={"help": "Folder for report.md, results.json and pictures.png."})
    demonstrations: list[str] = field(
        default_factory=list, metadata={"help": "HDF5 files or folders of demonstrations."}
    )
    images: list[str] = field(default_factory=list, metadata={"help": "Folders of images."})
    cameras: list[str] = field(
        default_factory=lambda: ["agentview"], metadata={"help": "Cameras of the demonstrations: agentview, wrist."}
    )
    frames: int = field(default=500, metadata={"help": "Pictures in all, spread over episodes, cameras and images."})
    metrics: list[str] = field(
        default_factory=lambda: ["psnr", "ssim"],
        metadata={"help": "Any of psnr, ssim (run anywhere), lpips, rfid (need torchvision and weights)."},
    )
    regions: list[str] = field(
        default_factory=list, metadata={"help": "Measure inside these too: segmentation, saliency, faces."}
    )
    image_size: list[int] = field(
        default_factory=list,
        metadata={"help": "Height and width, or one number for both; by default the first picture's."},
    )
    batch_size: int = field(default=16, metadata={"help": "Pictures that the VQ-GAN sees at once."})
    shown: int = field(default=8, metadata={"help": "Pictures in pictures.png."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice of pictures."})
    device: str = field(default="cpu", metadata={"help": "torch device."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "frames", "batch_size", "shown")
        if not self.demonstrations and not self.images:
            raise ValueError("There is nothing to reconstruct. Give `--demonstrations`, `--images` or both.")
        if len(self.image_size) > 2 or any(side <= 0 for side in self.image_size):
            raise ValueError(f"`--image_size` is one or two numbers larger than 0, got {self.image_size}.")
        if not set(self.metrics) - {"rfid"}:
            raise ValueError("`--metrics` needs one that compares picture by picture, such as `psnr`.")


def require_positive(arguments: Any, *names: str) -> None:
    """Refuse options that must be larger than zero and are not; None stands for a default.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"`--{name}` must be larger than 0, got {value}.")


def parse_arguments(argument_class: Any, argv: Sequence[str]) -> Any:
    """Read a command line into one dataclass.

    Args:
        argument_class (`type`): the dataclass.
        argv (`Sequence[str]`): the command line without the program's name.

    Returns:
        The filled dataclass.

    Raises:
        ValueError: for an unknown flag; names the nearest one.
    """
    parsed, unknown = HfArgumentParser(argument_class).parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True
    )
    if unknown:
        require_choice("flag", unknown[0].removeprefix("--").split("=")[0], [f.name for f in fields(argument_class)])
        raise ValueError(f"Unexpected argument `{unknown[0]}`. Options are written `--name value`.")
    return parsed
