"""What a VQ-GAN run tells about itself: `log.jsonl`, pictures, and a tracker where one is wanted."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from train.vqgan_arguments import VQGANArguments

LOG = "log.jsonl"
PICTURES = "reconstructions"


def require_tracker(name: str) -> None:
    """Refuse a tracker that is not installed, before anything is computed.

    Args:
        name (`str`): `none`, `tensorboard`, `wandb` or `trackio`.

    Raises:
        ImportError: says what to install.
    """
    packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
    if name != "none" and not any(find_spec(package) for package in packages):
        raise ImportError(
            f"`--report_to {name}` needs the package `{name}`, which is not installed. Install it (`pip install "
            f"{name}`), or choose `--report_to none`: `{LOG}` and `{PICTURES}/` are written in any case."
        )


class RunReports:
    """Writes numbers and pictures into the run's folder and to its tracker; only the main process does.

    Args:
        arguments (`VQGANArguments`): all options.
        accelerator (`Accelerator`): says which process is the main one, and holds the tracker.
    """

    def __init__(self, arguments: VQGANArguments, accelerator: Accelerator) -> None:
        self.output, self.accelerator = Path(arguments.output_dir), accelerator
        if arguments.report_to != "none":
            settings = {
                key: value if _is_plain(value) else json.dumps(value) for key, value in vars(arguments).items()
            }
            accelerator.init_trackers("worldvla-vqgan", config=settings)

    def forget_after(self, step: int) -> None:
        """Drop lines of `log.jsonl` that an interrupted run wrote after its last checkpoint: they come again.

        Args:
            step (`int`): the step that the run goes on from.
        """
        path = self.output / LOG
        if not self.accelerator.is_main_process or not path.exists():
            return
        # The last line has no end if the run was killed while it wrote.
        whole = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        temporary = path.with_name(f".{LOG}")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Append a line to `log.jsonl`, and tell the tracker.

        Args:
            step (`int`): steps done.
            values (`dict[str, float]`): numbers by name.
        """
        if self.accelerator.is_main_process:
            with (self.output / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Write a picture to `reconstructions/step-<step>.png`, complete or absent, and show it to the tracker.

        Args:
            step (`int`): steps done.
            pixels (`np.ndarray` of shape `(H, W, 3)`): uint8.
        """
        folder = self.output / PICTURES
        folder.mkdir(exist_ok=True)
        temporary = folder / f".step-{step:07d}.png"
        Image.fromarray(pixels).save(temporary)
        temporary.replace(folder / f"step-{step:07d}.png")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({PICTURES: pixels[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({PICTURES: [pixels]}, step=step)

    def end(self) -> None:
        """Tell the tracker, and the other processes, that the run is over."""
        self.accelerator.end_training()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
