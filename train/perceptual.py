"""Networks that compare pictures by what they show rather than pixel by pixel.

`segmentation_features` ships with this project and works offline; `lpips` is the field's, where its package and its
weights are at hand. Which one a run uses is always the user's choice: nothing falls back to another.

Shapes: `B` pictures, `H, W` pixels, `C` channels, `h, w` positions of a stage.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokenization.choices_worldvla import require_choice

PERCEPTUAL_NETWORKS = ("none", "lpips", "segmentation_features")
SEGMENTATION_FEATURES = Path(__file__).parent / "perceptual_weights" / "segmentation_features.safetensors"
CHANNELS = (16, 24, 32, 48, 64)
# Keeps the direction of a feature vector near zero from turning on rounding noise.
SMALLEST_NORM = 1e-3


class SegmentationFeatures(nn.Module):
    """A small convolutional network whose features tell the simulator's objects apart.

    Five stages, each at half the resolution of the one before (the first at that of the picture); two 3 x 3
    convolutions a stage, one in the first, each followed by ReLU. Trained by `train/run_perceptual.py`.

    Args:
        channels (`Sequence[int]`): channels of each stage.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(channels)
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, channels[0], 3, padding=1), nn.ReLU())]
        for before, width in zip(channels, channels[1:], strict=False):
            halve, refine = nn.Conv2d(before, width, 3, stride=2, padding=1), nn.Conv2d(width, width, 3, padding=1)
            stages.append(nn.Sequential(halve, nn.ReLU(), refine, nn.ReLU()))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Compute the features of every stage.

        Args:
            pictures (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].

        Returns:
            `list[torch.FloatTensor]`: one `(B, C, h, w)` a stage.
        """
        features, values = [], pictures
        for stage in self.stages:
            values = stage(values)
            features.append(values)
        return features

    @classmethod
    def from_file(cls, path: Path = SEGMENTATION_FEATURES) -> "SegmentationFeatures":
        """Load trained weights.

        Args:
            path (`Path`): safetensors file; the one that ships by default.

        Returns:
            `SegmentationFeatures`: in evaluation mode, without gradients.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"No weights of the network `segmentation_features` at `{path}`. They ship with the project; "
                "`train/run_perceptual.py` makes them."
            )
        weights = load_file(path)
        widths = [weight.shape[0] for name, weight in weights.items() if name.endswith(".0.weight")]
        network = cls(sorted(widths))
        network.load_state_dict(weights)
        return network.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the weights.

        Args:
            path (`Path`): safetensors file, complete or absent.
        """
        temporary = path.with_name(f".{path.name}")
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        temporary.replace(path)


class FeatureDistance(nn.Module):
    """How far apart two pictures are in the features of a network.

    At every position the channels are brought to length 1; squared differences are summed over channels, averaged over
    positions and then over stages. That is LPIPS without its calibration on human judgements: all channels count
    alike.

    Args:
        network (`nn.Module`): pictures to a list of features, such as `SegmentationFeatures`.

    References:
        LPIPS (arXiv 1801.03924) eq. 1, with w = 1.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, recorded: Tensor, reconstructed: Tensor) -> Tensor:
        """Compare pictures.

        Args:
            recorded (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1]; gets no gradient.
            reconstructed (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].

        Returns:
            `torch.FloatTensor` of shape `(B,)`: from 0 (alike) to 2.
        """
        with torch.no_grad():
            targets = self.network(recorded)
        distances = [
            (_unit_length(one) - _unit_length(other)).square().sum(1).mean((1, 2))
            for one, other in zip(targets, self.network(reconstructed), strict=True)
        ]
        return torch.stack(distances).mean(0)


def _unit_length(features: Tensor) -> Tensor:
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + SMALLEST_NORM**2).rsqrt()


class LPIPSDistance(nn.Module):
    """The `lpips` package's distance (VGG), in the form of `FeatureDistance`.

    Raises:
        ImportError: if the package, or torchvision, is not there; says what to install and what to choose instead.
        OSError: if the weights of VGG are not there and cannot be downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips
        except Exception as error:  # torchvision that does not fit torch raises RuntimeError
            raise ImportError(
                f"`--perceptual lpips` needs the packages `lpips` and `torchvision` ({error!r}). "
                "Install them (`pip install lpips torchvision`, in the build that fits your torch), or choose "
                "`--perceptual segmentation_features`, which ships with this project."
            ) from error
        try:
            self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except OSError as error:
            raise OSError(
                f"`--perceptual lpips` could not get the weights of VGG ({error}). Put them into torch's hub folder, "
                "or choose `--perceptual segmentation_features`, which ships with this project."
            ) from error

    def forward(self, recorded: Tensor, reconstructed: Tensor) -> Tensor:
        """Compare pictures: see `FeatureDistance.forward`."""
        return self.network(recorded, reconstructed).float().reshape(len(recorded))


def make_perceptual_distance(name: str) -> Any:
    """Make what compares pictures.

    Args:
        name (`str`): one of `PERCEPTUAL_NETWORKS`.

    Returns:
        `nn.Module` or None: takes two `(B, 3, H, W)` in [−1, 1], gives `(B,)`; None for `none`.

    Raises:
        ValueError: if the name is unknown.
        ImportError, OSError: if what it needs is not there.
    """
    require_choice("perceptual network", name, list(PERCEPTUAL_NETWORKS))
    if name == "none":
        return None
    if name == "lpips":
        return LPIPSDistance()
    return FeatureDistance(SegmentationFeatures.from_file()).eval().requires_grad_(False)


def class_logits(features: Sequence[Tensor], heads: Sequence[nn.Module], size: tuple[int, int]) -> Tensor:
    """Predict what each pixel shows, linearly from all stages.

    Args:
        features (`Sequence[torch.FloatTensor]`): of every stage.
        heads (`Sequence[nn.Module]`): a 1 x 1 convolution a stage.
        size (`tuple[int, int]`): height and width of the prediction.

    Returns:
        `torch.FloatTensor` of shape `(B, classes, *size)`.
    """
    maps = [
        F.interpolate(head(values).float(), size=size, mode="bilinear", align_corners=False)
        for head, values in zip(heads, features, strict=True)
    ]
    return torch.stack(maps).sum(0)
