"""Train a small VQ-GAN on recorded frames.

    python train/run_vqgan.py --demonstrations demos/ --output_dir vqgan/
    accelerate launch train/run_vqgan.py --demonstrations demos/ --output_dir vqgan/

Killed at any moment, the same command goes on from the last complete checkpoint. The result is
`<output_dir>/vq_model/`, a diffusers `VQModel`.
"""

import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from diffusers import VQModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from tokenization import vq_model_config
from train.arguments import VQGANArguments, parse_arguments
from train.atomic_files import new_folder, write_json
from train.frames import FrameArray
from train.vqgan_losses import CodebookUsage, reconstruction_loss

logger = logging.getLogger("worldvla.vqgan")

SETTINGS = "settings.json"
# Options that may change between a run and its continuation.
FREE_OPTIONS = ("output_dir", "max_steps", "save_every", "log_every")


class VQGANObjective(nn.Module):
    """One training forward: encode, quantize, decode, compare. A module, so that data parallelism wraps it.

    Args:
        vq_model (`diffusers.VQModel`): the model that is trained.
        arguments (`VQGANArguments`): weights of the terms.
    """

    def __init__(self, vq_model: Any, arguments: VQGANArguments) -> None:
        super().__init__()
        self.vq_model = vq_model
        self.arguments = arguments

    def forward(self, frames: Tensor, pixel_weights: Tensor) -> dict[str, Tensor]:
        """Compute the loss and what is logged.

        Args:
            frames (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].
            pixel_weights (`torch.FloatTensor` of shape `(B, 1, H, W)`): weight of each pixel.

        Returns:
            `dict`: `loss` with gradient; detached `reconstruction`, `codebook`, `psnr` (dB), `indices` and `latents`.
        """
        latents = self.vq_model.encode(frames).latents
        quantized, codebook_loss, info = self.vq_model.quantize(latents)
        decoded = self.vq_model.decoder(self.vq_model.post_quant_conv(quantized))
        reconstruction = reconstruction_loss(decoded, frames, pixel_weights, self.arguments.l2_weight)
        squared_error = (decoded.detach().clamp(-1, 1) - frames).square().mean()
        return {
            "loss": reconstruction + self.arguments.codebook_weight * codebook_loss,
            "reconstruction": reconstruction.detach(),
            "codebook": codebook_loss.detach(),
            "psnr": 10 * torch.log10(4 / squared_error),
            "indices": info[2].reshape(-1),
            "latents": latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1]),
        }


def draw_batches(num_frames: int, batch_size: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Shuffled frame numbers, epoch after epoch; step s is the same whether the run was interrupted or not.

    Args:
        num_frames (`int`): frames to draw from.
        batch_size (`int`): frames per step, all processes together.
        seed (`int`): seed of the order.
        first_step (`int`): steps to skip.

    Yields:
        `np.ndarray` of shape `(batch_size,)`: frame numbers.
    """
    position = first_step * batch_size
    while True:
        places = [divmod(place, num_frames) for place in range(position, position + batch_size)]
        epochs = {epoch for epoch, _ in places}
        orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_frames) for epoch in epochs}
        yield np.array([orders[epoch][index] for epoch, index in places])
        position += batch_size


def learning_rate_at(step: int, arguments: VQGANArguments) -> float:
    """Linear warm-up, then cosine to a tenth of the peak, as a factor of the peak."""
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    progress = (step - arguments.warmup_steps) / max(1, arguments.max_steps - arguments.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint and its step, or None."""
    found = [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*")]
    return (max(found)[1], max(found)[0]) if found else None


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint under a temporary name, rename it, and only then drop older ones."""
    temporary = folder / f".step-{step}"
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        temporary.rename(folder / f"step-{step}")
        for older in folder.glob("step-*"):
            if older.name != f"step-{step}":
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def check_settings(arguments: VQGANArguments, output: Path) -> None:
    """Refuse to continue a run that was started with other settings.

    Raises:
        ValueError: names the settings that changed.
    """
    settings = {key: value for key, value in asdict(arguments).items() if key not in FREE_OPTIONS}
    path = output / SETTINGS
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        changed = [
            f"{key}: {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"`{output}` holds a run with other settings ({'; '.join(changed)}). "
                "Choose another `--output_dir`, or delete this one."
            )
    write_json(path, settings)


def train(arguments: VQGANArguments) -> Path:
    """Train, or go on training, and save the model.

    Args:
        arguments (`VQGANArguments`): all options.

    Returns:
        `Path`: folder of the trained `VQModel`.
    """
    # Without `cpu`, several processes on a machine without an accelerator would not find each other.
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=not torch.accelerator.is_available())
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        check_settings(arguments, output)
    set_seed(arguments.seed)
    with accelerator.main_process_first():
        frames = FrameArray.from_demonstrations(arguments.demonstrations, arguments.camera, output)
    vq_model: Any = VQModel(**vq_model_config(arguments.preset))
    objective = VQGANObjective(vq_model, arguments)
    optimizer = torch.optim.AdamW(vq_model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, arguments))
    usage = CodebookUsage(vq_model.config.num_vq_embeddings, accelerator.device)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    accelerator.register_for_checkpointing(schedule, usage)
    resumed = last_checkpoint(output)
    if resumed:
        accelerator.load_state(str(resumed[0]))
        logger.info("going on from step %d", resumed[1])
    run_steps(accelerator, objective, optimizer, schedule, usage, frames, arguments, resumed[1] if resumed else 0)
    if accelerator.is_main_process:
        with new_folder(output / "vq_model") as folder:
            accelerator.unwrap_model(objective).vq_model.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return output / "vq_model"


def run_steps(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    usage: CodebookUsage,
    frames: FrameArray,
    arguments: VQGANArguments,
    first_step: int,
) -> None:
    """Do the optimizer steps from `first_step` to the end, with log lines and checkpoints."""
    output = Path(arguments.output_dir)
    world = accelerator.num_processes
    batches = draw_batches(len(frames), arguments.batch_size * world, arguments.seed, first_step)
    progress = tqdm(
        total=arguments.max_steps, initial=first_step, desc="VQ-GAN", disable=not accelerator.is_main_process
    )
    for step in range(first_step, arguments.max_steps):
        mine = next(batches)[accelerator.process_index :: world]
        pictures, weights = frames.batch(mine, arguments.moving_region_weight)
        result = objective(pictures.to(accelerator.device), weights.to(accelerator.device))
        accelerator.backward(result["loss"])
        accelerator.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        usage.update(accelerator.gather(result["indices"]))
        done = step + 1
        if (done % arguments.log_every == 0 or done == arguments.max_steps) and accelerator.is_main_process:
            log_step(output, progress, done, result, usage, schedule)
        # The first revival replaces the random start; the last tenth of the run leaves the codes alone.
        if (done == 1 or done % arguments.revive_every == 0) and done < 0.9 * arguments.max_steps:
            revive(accelerator, objective, usage, result["latents"], arguments.seed + done)
        if done % arguments.save_every == 0 and done < arguments.max_steps:
            save_checkpoint(accelerator, output, done)
        progress.update()
    progress.close()


def revive(accelerator: Accelerator, objective: nn.Module, usage: CodebookUsage, latents: Tensor, seed: int) -> None:
    """Place unused codes anew, the same on every process."""
    codebook = accelerator.unwrap_model(objective).vq_model.quantize.embedding.weight
    usage.revive(codebook.data, accelerator.gather(latents), torch.Generator().manual_seed(seed))
    if accelerator.num_processes > 1:
        broadcast(codebook.data)


def log_step(
    output: Path,
    progress: tqdm,
    step: int,
    result: dict[str, Tensor],
    usage: CodebookUsage,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Show the step in the progress bar and append it to `log.jsonl`."""
    line = {
        "step": step,
        "reconstruction": float(result["reconstruction"]),
        "codebook": float(result["codebook"]),
        "psnr": float(result["psnr"]),
        "perplexity": usage.perplexity,
        "learning_rate": schedule.get_last_lr()[0],
    }
    progress.set_postfix(psnr=f"{line['psnr']:.1f} dB", codes=f"{line['perplexity']:.0f}")
    with (output / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([VQGANArguments], argv)
    if last_checkpoint(Path(arguments.output_dir)) is None and (Path(arguments.output_dir) / "vq_model").exists():
        raise FileExistsError(f"`{arguments.output_dir}` already holds a finished VQ-GAN. Choose another folder.")
    folder = train(arguments)
    logger.info("VQ-GAN saved in %s", folder)


if __name__ == "__main__":
    main(sys.argv[1:])
