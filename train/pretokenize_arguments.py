"""The options of `train/pretokenize.py`."""

from dataclasses import dataclass, field

from tokenization import BINNINGS
from tokenization.choices_worldvla import require_choice
from train.argument_parsing import require_positive


@dataclass
class PretokenizeArguments:
    """Options of `train/pretokenize.py`: demonstrations to an on-disk data set of tokens."""

    demonstrations: list[str] = field(
        metadata={
            "help": "HDF5 files, folders that hold them, folders or Hub ids of LeRobot data sets (docs/data.md)."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the data set, its data card and its processor."})
    vq_model: str | None = field(
        default=None,
        metadata={"help": "Folder of train/run_vqgan.py; a processor is built around it."},
    )
    processor: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a complete processor to use instead of --vq_model."}
    )
    dataset_name: str = field(default="libero", metadata={"help": "Name under which the action limits are kept."})
    camera: str = field(
        default="agentview", metadata={"help": "Whose frames: agentview, wrist, or a LeRobot feature."}
    )
    drop_noops: bool = field(default=False, metadata={"help": "Leave out steps in which nothing is commanded."})
    action_feature: str | None = field(default=None, metadata={"help": "LeRobot feature that holds the commands."})
    rotate_180: bool = field(default=False, metadata={"help": "Turn the pictures of LeRobot data sets by 180°."})
    num_text_tokens: int = field(default=512, metadata={"help": "Text entries of a vocabulary that is built here."})
    binning: str = field(default="uniform", metadata={"help": "Action bins: uniform (paper) or official."})
    action_quantile: float = field(
        default=0.0,
        metadata={
            "help": "Share of training actions cut off at either limit of a dimension; 0: smallest and largest."
        },
    )
    split: str = field(
        default="random", metadata={"help": "random: by trajectory; official: 90 % of tasks x 90 % of trajectories."}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of trajectories held out (val_ind)."})
    seed: int = field(default=0, metadata={"help": "Seed of the random split."})
    batch_size: int = field(default=32, metadata={"help": "Frames encoded at once."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_choice("split", self.split, ["random", "official"])
        require_choice("binning", self.binning, list(BINNINGS))
        require_positive(self, "batch_size", "num_text_tokens")
        if not 0 <= self.action_quantile < 0.5:
            raise ValueError(f"`--action_quantile` must lie in [0, 0.5), got {self.action_quantile}.")
        if self.action_quantile and self.processor is not None:
            raise ValueError(
                "`--action_quantile` measures action limits, but `--processor` brings its own. Leave one of them out."
            )
        if (self.vq_model is None) == (self.processor is None):
            raise ValueError("Give exactly one of `--vq_model` (build a processor) and `--processor` (use one).")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"`--validation_fraction` must lie in [0, 1), got {self.validation_fraction}.")
