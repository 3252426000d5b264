"""The options of `evaluation/imagine.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from evaluation.arguments import require_positive
from evaluation.sampling import SamplingArguments

OUTPUT_KINDS = (".mp4", ".gif", ".png")


@dataclass
class ImagineArguments(SamplingArguments):
    """Options of `evaluation/imagine.py`: what is imagined, from where, and how it is shown."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a WorldVLA checkpoint with its processor."})
    demonstrations: str | None = field(
        default=None, metadata={"help": "HDF5 file, or folder of them, with the recorded episodes."}
    )
    output: str | None = field(
        default=None,
        metadata={"help": "MP4 or GIF, or PNG with a strip of frames; the numbers are written beside it as JSON."},
    )
    rollouts: str | None = field(
        default=None,
        metadata={"help": "Results folder of evaluation/run.py with `--traces true`: imagine its filmed episodes."},
    )
    image: list[str] = field(
        default_factory=list,
        metadata={"help": "Pictures of the given frames, oldest first; or one video, whose frames are compared."},
    )
    actions: str | None = field(
        default=None, metadata={"help": "NPY or CSV file, a row per command: row i is given after frame i."}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "What the policy shall do inside the imagination, instead of given actions."}
    )
    names: list[str] = field(
        default_factory=list,
        metadata={"help": "Episodes of the run, such as libero_goal_task3_state12; all that have traces by default."},
    )
    episode: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Numbers of the recorded episodes, from 0."}
    )
    camera: str = field(
        default="agentview",
        metadata={"help": "Camera that is imagined: the first that the checkpoint was trained on."},
    )
    start: int = field(default=0, metadata={"help": "Step of the last given frame."})
    given_frames: int = field(default=1, metadata={"help": "Real frames that are given, up to step `start`."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames to imagine; by default to the end."})
    history: int | None = field(
        default=None, metadata={"help": "Most frames that the world model is shown; by default the checkpoint's."}
    )
    batch_size: int = field(default=1, metadata={"help": "Episodes that are imagined together."})
    n_obs_steps: int | None = field(
        default=None, metadata={"help": "Frames that the policy is shown; by default the checkpoint's."}
    )
    chunk_size: int | None = field(default=None, metadata={"help": "Actions that the policy predicts at once."})
    n_action_steps: int | None = field(default=None, metadata={"help": "How many of them are imagined; all."})
    through_pixels: bool = field(
        default=False, metadata={"help": "Draw frames and encode them again before the policy is shown them."}
    )
    frame_folder: str | None = field(
        default=None, metadata={"help": "Write every imagined frame into this folder as soon as it is there."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Whose action limits, where the checkpoint holds those of several data sets."}
    )
    device: str = field(default="cpu", metadata={"help": "torch device of the model."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "num_frames", "given_frames", "history", "batch_size")
        require_positive(self, "n_obs_steps", "chunk_size", "n_action_steps")
        self.check_sampling()
        if min([*self.episode, self.start]) < 0:
            listed = ", ".join(map(str, self.episode))
            raise ValueError(f"`--episode` and `--start` count from 0, got {listed} and {self.start}.")
        self._check_source()
        self._check_policy()
        if self.output is not None and Path(self.output).suffix.lower() not in OUTPUT_KINDS:
            raise ValueError(
                f"`--output` must end in {', '.join(OUTPUT_KINDS)}, got `{self.output}`. Choose one of these kinds."
            )

    def _check_source(self) -> None:
        """Exactly one source, and what goes with it."""
        if (self.demonstrations is not None) + (self.rollouts is not None) + bool(self.image) != 1:
            raise ValueError(
                "Give one of `--demonstrations`, `--image` and `--rollouts`: there the first frame comes from."
            )
        if (self.rollouts is None) != (self.output is not None):
            raise ValueError(
                "`--output` names what is drawn from `--demonstrations` or `--image`: it goes with these, and only "
                "with them. Videos of a run lie beside its own."
            )
        if self.names and self.rollouts is None:
            raise ValueError("`--names` chooses episodes of a run: it goes with `--rollouts`.")
        if self.actions is not None and not self.image:
            raise ValueError("`--actions` are given after the frames of `--image`: it goes with that only.")
        if self.image and (self.actions is None) == (self.instruction is None):
            raise ValueError("With `--image`, give either `--actions` or an `--instruction` for the policy.")

    def _check_policy(self) -> None:
        """An instruction goes with a number of frames; the policy's options go with an instruction."""
        if self.instruction is None:
            options = ("n_obs_steps", "chunk_size", "n_action_steps", "through_pixels")
            given = [name for name in options if getattr(self, name)]
            if given:
                raise ValueError(f"`--{given[0]}` is the policy's: it goes with `--instruction`.")
            return
        if not self.instruction.strip():
            raise ValueError("`--instruction` is empty. Say what the robot shall do.")
        if self.rollouts is not None:
            raise ValueError("`--rollouts` are imagined under the actions of the run: leave out `--instruction`.")
        if self.num_frames is None:
            raise ValueError("With `--instruction` the policy acts as long as it is asked to: give `--num_frames`.")
