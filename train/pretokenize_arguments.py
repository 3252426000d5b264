"""Which demonstrations are read, and how they become tokens: options of `train/pretokenize.py`.

`train/run.py` takes those of `DemonstrationArguments`, too, and then tokenizes on the fly.
"""

from dataclasses import dataclass, field, fields

from tokenization import BINNINGS
from tokenization.choices_worldvla import require_choice
from train.argument_parsing import require_positive, require_share

DATASET_NAME = "libero"


@dataclass
class DemonstrationArguments:
    """Which demonstrations, which of their pictures, how they are split, and what makes the tokens."""

    demonstrations: list[str] = field(
        default_factory=list,
        metadata={
            "help": "HDF5 files, folders that hold them, folders or Hub ids of LeRobot data sets (docs/data.md)."
        },
    )
    vq_model: str | None = field(
        default=None,
        metadata={"help": "Folder of train/run_vqgan.py; a processor is built around it."},
    )
    processor: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a complete processor to use instead of --vq_model."}
    )
    cameras: list[str] = field(
        default_factory=lambda: ["agentview"],
        metadata={
            "help": "Whose frames: agentview, wrist, or features of LeRobot data sets. The policy is shown all, in "
            "this order; the world model the first."
        },
    )
    drop_noops: bool = field(default=False, metadata={"help": "Leave out steps in which nothing is commanded."})
    action_feature: str | None = field(default=None, metadata={"help": "LeRobot feature that holds the commands."})
    rotate_180: bool = field(default=False, metadata={"help": "Turn the pictures of LeRobot data sets by 180°."})
    num_text_tokens: int = field(default=512, metadata={"help": "Text entries of a vocabulary that is built here."})
    num_action_bins: int = field(
        default=256, metadata={"help": "Bins of each action dimension, in a vocabulary that is built here."}
    )
    binning: str = field(default="uniform", metadata={"help": "Action bins: uniform (paper) or official."})
    action_quantile: float = field(
        default=0.0,
        metadata={
            "help": "Share of training actions cut off at either limit of a dimension; 0: smallest and largest."
        },
    )
    split: str = field(
        default="random",
        metadata={"help": "random: by trajectory; official: nine tenths of the tasks and of their trajectories."},
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of trajectories held out (val_ind)."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the random split."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_choice("split", self.split, ["random", "official"])
        require_choice("binning", self.binning, list(BINNINGS))
        require_positive(self, "num_text_tokens")
        if self.num_action_bins < 2:
            raise ValueError(f"`--num_action_bins` must be at least 2, got {self.num_action_bins}.")
        require_share(self, "validation_fraction")
        if not 0 <= self.action_quantile < 0.5:
            raise ValueError(f"`--action_quantile` must lie in [0, 0.5), got {self.action_quantile}.")
        if self.action_quantile and self.processor is not None:
            raise ValueError(
                "`--action_quantile` measures action limits, but `--processor` brings its own. Leave one of them out."
            )
        if self.demonstrations and (self.vq_model is None) == (self.processor is None):
            raise ValueError("Give exactly one of `--vq_model` (build a processor) and `--processor` (use one).")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"`--cameras` must name cameras, each of them once, got {self.cameras}.")

    def changed(self) -> list[str]:
        """Name the options that are not at their defaults.

        Returns:
            `list[str]`: names of fields.
        """
        defaults = DemonstrationArguments()
        return [f.name for f in fields(defaults) if getattr(self, f.name) != getattr(defaults, f.name)]


@dataclass
class PretokenizeArguments(DemonstrationArguments):
    """Options of `train/pretokenize.py`: demonstrations to an on-disk data set of tokens."""

    output_dir: str = field(
        default="outputs/tokens", metadata={"help": "Folder for the data set, its data card and its processor."}
    )
    dataset_name: str = field(default=DATASET_NAME, metadata={"help": "Name under which the action limits are kept."})
    batch_size: int = field(default=32, metadata={"help": "Frames encoded at once, on each device."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        super().__post_init__()
        require_positive(self, "batch_size")
        if not self.demonstrations:
            raise ValueError("Nothing to tokenize: give files, folders or data sets as `--demonstrations`.")
