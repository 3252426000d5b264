"""The options of the training scripts: flat dataclasses, read from flags and from YAML recipes.

`run.py [recipe.yaml] [--flags]`: flags beat the recipe, the recipe beats the defaults, an unknown key is an error.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from tokenization import BINNINGS, VQ_MODEL_PRESETS
from tokenization.choices_worldvla import require_choice
from tokenization.regions import REGION_PROVIDERS
from train.perceptual import PERCEPTUAL_NETWORKS


def require_positive(arguments: Any, *names: str) -> None:
    """Refuse options that must be larger than zero and are not.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if getattr(arguments, name) <= 0:
            raise ValueError(f"`--{name}` must be larger than 0, got {getattr(arguments, name)}.")


def require_not_negative(arguments: Any, *names: str) -> None:
    """Refuse options that must not lie below zero and do.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if getattr(arguments, name) < 0:
            raise ValueError(f"`--{name}` must not be negative, got {getattr(arguments, name)}.")


def require_share(arguments: Any, *names: str) -> None:
    """Refuse options that must lie in [0, 1) and do not.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if not 0 <= getattr(arguments, name) < 1:
            raise ValueError(f"`--{name}` must lie in [0, 1), got {getattr(arguments, name)}.")


def parse_region_weights(values: Sequence[str]) -> dict[str, float]:
    """Read `--regions segmentation:1.0 faces`.

    Args:
        values (`Sequence[str]`): `provider` or `provider:weight`; weight 1 where none is given.

    Returns:
        `dict[str, float]`: weight by provider.

    Raises:
        ValueError: if a weight is no positive number, or a provider comes twice.
    """
    weights: dict[str, float] = {}
    for value in values:
        name, _, number = value.partition(":")
        try:
            weight = float(number or 1.0)
        except ValueError:
            weight = -1.0
        if not 0 < weight < float("inf") or name in weights:
            raise ValueError(
                f"`--regions {value}`: expected each provider once, as `name` or `name:weight` with a weight above 0, "
                "such as `--regions segmentation:1.0 saliency:0.5`."
            )
        weights[name] = weight
    return weights


@dataclass
class VQGANArguments:
    """Options of `train/run_vqgan.py`: a VQ-GAN from recorded pictures."""

    output_dir: str = field(
        metadata={"help": "Folder for the trained VQ-GAN (diffusers layout), its log and pictures."}
    )
    demonstrations: list[str] = field(
        default_factory=list, metadata={"help": "HDF5 files of demonstrations, or folders that hold them."}
    )
    cameras: list[str] = field(
        default_factory=lambda: ["agentview"], metadata={"help": "Cameras whose pictures are learned."}
    )
    images: list[str] = field(
        default_factory=list, metadata={"help": "Folders of image files (with sub-folders) to learn from as well."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that pictures are resized and centre-cropped to; without it, demonstrations "
            "are taken as recorded, and images as the preset asks."
        },
    )
    frame_cache: str | None = field(
        default=None, metadata={"help": "Folder for the gathered pictures and their regions; output_dir by default."}
    )
    preset: str = field(default="tiny-128", metadata={"help": f"Architecture: {', '.join(VQ_MODEL_PRESETS)}."})
    vq_model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a VQ-GAN to start from, in the place of the preset's random weights."},
    )
    max_steps: int = field(default=2000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=16, metadata={"help": "Frames per step and process."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (AdamW, cosine to a tenth)."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps of linear warm-up."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the moving average of weights that is saved; 0: the last weights."}
    )
    mixed_precision: str = field(
        default="no", metadata={"help": "no, or bf16: twice as fast on processors with bfloat16 units."}
    )
    l2_weight: float = field(default=1.0, metadata={"help": "Weight of the squared error beside the absolute error."})
    codebook_weight: float = field(default=1.0, metadata={"help": "Weight of the codebook and commitment terms."})
    commitment_weight: float = field(
        default=1.0, metadata={"help": "beta: how much latents are pulled to codes, beside codes to latents."}
    )
    moving_region_weight: float = field(
        default=4.0,
        metadata={
            "help": "Extra weight of pixels that differ from their episode's median frame: the arm, the gripper and "
            "what they move, a few per cent of the picture. 0 weighs all pixels alike. Cameras that move have none."
        },
    )
    regions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Regions that deserve attention, as provider:weight: segmentation:1.0 saliency:0.5 faces:1.0. "
            "Held-out pictures are judged inside them as well."
        },
    )
    region_pixel_weight: float = field(
        default=0.0, metadata={"help": "Extra weight of pixels inside regions, in the reconstruction loss."}
    )
    region_patch_size: int = field(
        default=32, metadata={"help": "Side in pixels that regions are resized to before they are compared."}
    )
    perceptual: str = field(
        default="none",
        metadata={
            "help": "Network that compares pictures and regions: none; segmentation_features, which ships with this "
            "project; lpips, which needs the packages lpips and torchvision."
        },
    )
    perceptual_weight: float = field(default=1.0, metadata={"help": "Weight of the comparison of whole pictures."})
    adversarial_weight: float = field(
        default=0.0, metadata={"help": "Weight of the adversarial term, beside its adaptive weight; 0: no adversary."}
    )
    adversarial_start: int = field(default=0, metadata={"help": "Steps before the adversarial term begins."})
    discriminator_warmup: int = field(
        default=0, metadata={"help": "Steps before adversarial_start in which the discriminator learns already."}
    )
    discriminator_learning_rate: float = field(default=2e-4, metadata={"help": "Constant (AdamW)."})
    discriminator_channels: int = field(default=64, metadata={"help": "Channels of the discriminator's first layer."})
    discriminator_layers: int = field(default=3, metadata={"help": "Halvings in the discriminator."})
    revive_every: int = field(default=50, metadata={"help": "Codes unused for this many steps are placed anew."})
    held_out: float = field(
        default=0.02, metadata={"help": "Share of episodes (at least one) that is judged instead of learned; 0: none."}
    )
    eval_every: int = field(default=500, metadata={"help": "Steps between judgements of held-out pictures."})
    eval_frames: int = field(default=128, metadata={"help": "Held-out pictures that are judged, evenly spaced."})
    saved_dtype: str = field(
        default="float32",
        metadata={"help": "Weights in the file: float32, or float16 for half the bytes. Either is loaded in float32."},
    )
    save_every: int = field(default=200, metadata={"help": "Steps between checkpoints that a new run resumes from."})
    log_every: int = field(default=20, metadata={"help": "Steps between log lines."})
    image_every: int = field(
        default=500, metadata={"help": "Steps between pictures of held-out reconstructions; 0: none."}
    )
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, wandb, trackio or none."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, of the order of frames and of what is held out."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_choice("VQ-GAN preset", self.preset, list(VQ_MODEL_PRESETS))
        require_choice("mixed precision", self.mixed_precision, ["no", "bf16"])
        require_positive(self, "max_steps", "batch_size", "learning_rate", "revive_every", "save_every", "log_every")
        require_choice("perceptual network", self.perceptual, list(PERCEPTUAL_NETWORKS))
        require_choice("dtype of the file", self.saved_dtype, ["float32", "float16"])
        require_choice("tracker", self.report_to, ["none", "tensorboard", "wandb", "trackio"])
        require_positive(self, "max_grad_norm", "eval_every", "eval_frames", "region_patch_size")
        require_positive(self, "discriminator_learning_rate", "discriminator_channels", "discriminator_layers")
        require_not_negative(self, "perceptual_weight", "adversarial_weight", "adversarial_start", "image_every")
        require_not_negative(self, "discriminator_warmup")
        require_not_negative(self, "warmup_steps", "l2_weight", "codebook_weight", "commitment_weight")
        require_not_negative(self, "moving_region_weight", "region_pixel_weight")
        require_share(self, "ema_decay", "held_out")
        for name in parse_region_weights(self.regions):
            require_choice("region provider", name, REGION_PROVIDERS)


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


@dataclass
class ModelArguments:
    """Which model is trained: a new one of the given sizes, or an existing checkpoint."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or Hub id to start from; without it, random weights."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of a new model."})
    intermediate_size: int = field(default=704, metadata={"help": "Width of the MLP of a new model."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers of a new model."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads of a new model."})
    max_position_embeddings: int = field(default=2048, metadata={"help": "Longest sequence of a new model."})
    swin_norm: bool = field(default=False, metadata={"help": "Norm after attention and MLP (Chameleon-34B's order)."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights."})
    use_action_attention_mask: bool = field(
        default=True, metadata={"help": "Actions of a chunk do not see each other (paper); false: plain causal."}
    )
    world_model_loss_weight: float = field(default=0.04, metadata={"help": "alpha: weight of the world model's loss."})
    z_loss_weight: float = field(default=0.0, metadata={"help": "Weight of the z-loss (official code: 1e-5)."})
    loss_form: str = field(
        default="paper",
        metadata={"help": "paper: by role, over the step; official: by class weights, per micro-batch."},
    )
    loss_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Most labelled tokens whose logits exist at once; by default 256 MiB of them."},
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        require_choice("form of the loss", self.loss_form, ["paper", "official"])
        for name in ("world_model_loss_weight", "z_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name}` must not be negative, got {getattr(self, name)}.")


@dataclass
class DataArguments:
    """Which samples are drawn from a pretokenized data set."""

    tokens: str = field(metadata={"help": "Folder written by train/pretokenize.py."})
    n_obs_steps: int = field(default=2, metadata={"help": "M: frames that a policy sample shows."})
    chunk_size: int = field(default=5, metadata={"help": "K: actions that a policy sample asks for."})
    world_model_history: int = field(
        default=1, metadata={"help": "Most frame-action pairs a sample shows (paper: 1)."}
    )
    tail: str = field(
        default="shorten", metadata={"help": "End of an episode: shorten the last chunks, or drop them."}
    )
    policy_samples: bool = field(default=True, metadata={"help": "Train the policy role."})
    world_model_samples: bool = field(default=True, metadata={"help": "Train the world-model role."})
    world_model_ratio: float = field(
        default=1.0, metadata={"help": "World-model samples per policy sample and epoch (paper: 1)."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_choice("tail", self.tail, ["shorten", "drop"])
        require_positive(self, "n_obs_steps", "chunk_size", "world_model_history", "world_model_ratio")
        if not (self.policy_samples or self.world_model_samples):
            raise ValueError("Nothing to train: both `--policy_samples` and `--world_model_samples` are off.")


@dataclass
class WorldVLATrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults that fit both roles."""

    output_dir: str = field(default="outputs/run", metadata={"help": "Folder for checkpoints and the final model."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads all columns."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW beta2."})
    max_grad_norm: float = field(default=4.0, metadata={"help": "Gradient clipping."})
    report_to: str = field(default="none", metadata={"help": "Trackers: tensorboard, wandb, trackio or none."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"`--label_smoothing_factor {self.label_smoothing_factor}` would replace the two-role loss by the "
                "Trainer's own. Set `label_smoothing` in the model's config instead."
            )


def parse_arguments(argument_classes: Sequence[Any], argv: Sequence[str]) -> tuple[Any, ...]:
    """Read `[recipe.yaml] [--flags]` into dataclasses.

    Args:
        argument_classes (`Sequence[type]`): the dataclasses to fill.
        argv (`Sequence[str]`): the command line without the program's name.

    Returns:
        `tuple`: one filled dataclass per class, in order.

    Raises:
        ValueError: for an unknown key or flag (names the nearest one), a recipe that is not a mapping, a bad value.
        FileNotFoundError: if the recipe does not exist.
    """
    known = sorted({f.name for cls in argument_classes for f in fields(cls) if f.init})
    argv = list(argv)
    recipe = _read_recipe(Path(argv.pop(0)), known) if argv and not argv[0].startswith("-") else []
    parser = HfArgumentParser(argument_classes)
    *parsed, unknown = parser.parse_args_into_dataclasses(recipe + argv, return_remaining_strings=True)
    for flag in unknown:
        if flag.startswith("--"):
            require_choice("flag", flag[2:].split("=")[0], known)
        raise ValueError(f"Unexpected argument `{flag}`. Options are written `--name value`; a recipe comes first.")
    return tuple(parsed)


def _read_recipe(path: Path, known: Sequence[str]) -> list[str]:
    """Turn a YAML recipe into flags, so that flags that come later beat it."""
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at `{path}`. Give the path of a YAML file, or flags alone.")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"Recipe `{path}` must be a mapping of option: value, got {type(content).__name__}.")
    flags: list[str] = []
    for key, value in content.items():
        require_choice(f"key in recipe `{path}`:", str(key), known)
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags
