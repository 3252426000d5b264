"""The options of `train/run_vqgan.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenization import VQ_MODEL_PRESETS
from tokenization.choices_worldvla import require_choice
from tokenization.regions import REGION_PROVIDERS
from train.argument_parsing import require_not_negative, require_positive, require_share
from train.perceptual import PERCEPTUAL_NETWORKS


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
