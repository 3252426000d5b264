"""The options of `evaluation/measure_world_model.py`."""

from dataclasses import dataclass, field

from evaluation.arguments import require_positive
from evaluation.sampling import SamplingArguments
from evaluation.video_distance import LEAST_FRAMES, NETWORK, Fvd
from tokenization.choices_worldvla import require_choice
from tokenization.reconstruction_metrics import PICTURE_METRICS


@dataclass(kw_only=True)
class WorldModelArguments(SamplingArguments):
    """Options of `evaluation/measure_world_model.py`: how near imagined frames come to the real ones."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a WorldVLA checkpoint with its processor."})
    demonstrations: list[str] = field(
        metadata={"help": "Held-out episodes: HDF5 files, LeRobot data sets, or folders of them."}
    )
    output_dir: str = field(metadata={"help": "Folder for report.md, results.json and curves.png."})
    num_frames: list[int] = field(
        default_factory=lambda: [10, 50], metadata={"help": "Numbers of frames over which is averaged."}
    )
    metrics: list[str] = field(
        default_factory=lambda: ["psnr", "ssim"],
        metadata={"help": "Any of psnr, ssim (run anywhere), lpips (torchvision and weights), fvd (weights)."},
    )
    fvd_network: str = field(
        default=NETWORK, metadata={"help": "The I3D network of FVD: TorchScript file, or repository on the Hub."}
    )
    regions: list[str] = field(
        default_factory=list, metadata={"help": "Measure inside these too: segmentation, saliency, faces."}
    )
    windows_per_episode: int = field(default=1, metadata={"help": "Starting points in each episode."})
    episodes: int | None = field(default=None, metadata={"help": "Only so many of the episodes, evenly spread."})
    compare_with: str | None = field(
        default=None, metadata={"help": "results.json of another checkpoint on the same windows: paired differences."}
    )
    camera: str = field(
        default="agentview",
        metadata={"help": "Camera that is imagined: the first that the checkpoint was trained on."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Whose action limits, where the checkpoint holds those of several data sets."}
    )
    batch_size: int = field(default=8, metadata={"help": "Windows that are imagined at once. Changes no result."})
    device: str = field(default="cpu", metadata={"help": "torch device of model, VQ-GAN and networks."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "windows_per_episode", "episodes", "batch_size")
        self.check_sampling()
        if not self.num_frames or min(self.num_frames) < 1:
            raise ValueError(f"`--num_frames` takes numbers of frames, each at least 1, got {self.num_frames}.")
        self.num_frames = sorted(set(self.num_frames))
        for name in self.metrics:
            require_choice("metric", name, [*PICTURE_METRICS, Fvd.name])
        if not set(self.metrics) - {Fvd.name}:
            raise ValueError("`--metrics` needs one that compares frame by frame, such as `psnr`.")
        if Fvd.name in self.metrics and self.num_frames[0] < LEAST_FRAMES:
            raise ValueError(
                f"FVD needs clips of at least {LEAST_FRAMES} frames, got `--num_frames {self.num_frames[0]}`. Raise "
                "it, or leave `fvd` out of `--metrics`."
            )
