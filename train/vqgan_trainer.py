"""The steps of a VQ-GAN run: forward, losses, codebook, moving average, checkpoints.

Shapes: `B` pictures, `H, W` pixels, `h, w` code positions, `N` = B · h · w, `E` code dimensions.
"""

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm.auto import tqdm

from train.codebook import CodebookUsage
from train.frames import FrameArray, FrameBatch, draw_batches
from train.vqgan_arguments import VQGANArguments
from train.vqgan_checkpoints import last_checkpoint, save_checkpoint
from train.vqgan_judgement import draw_pairs, judge, spread
from train.vqgan_losses import psnr_per_picture
from train.vqgan_objective import VQGANObjective
from train.vqgan_reports import RunReports
from train.weight_average import WeightAverage

logger = logging.getLogger("worldvla.vqgan")

CODEBOOK = "quantize.embedding.weight"
PICTURES_DRAWN = 8


class Reconstruction(nn.Module):
    """Encode, quantize, decode. A module, so that data parallelism wraps it.

    Args:
        vq_model (`diffusers.VQModel`): the model that is trained.
    """

    def __init__(self, vq_model: Any) -> None:
        super().__init__()
        self.vq_model = vq_model

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Reconstruct pictures.

        Args:
            frames (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].

        Returns:
            `dict`: `decoded (B, 3, H, W)`, `latents (B, E, h, w)`, their nearest `codes (B, E, h, w)` and `indices
            (N,)`. Gradients of `decoded` reach the latents straight through the quantizer.
        """
        latents = self.vq_model.encode(frames).latents
        with torch.autocast(frames.device.type, enabled=False):  # half precision would choose other codes
            latents = latents.float()
            with torch.no_grad():
                indices = self.vq_model.quantize(latents)[2][2].reshape(-1)
            batch, _, height, width = latents.shape
            codes = self.vq_model.quantize.embedding(indices).view(batch, height, width, -1).permute(0, 3, 1, 2)
        quantized = latents + (codes - latents).detach()
        decoded = self.vq_model.decoder(self.vq_model.post_quant_conv(quantized))
        return {"decoded": decoded, "latents": latents, "codes": codes, "indices": indices}


def learning_rate_at(step: int, arguments: VQGANArguments) -> float:
    """Linear warm-up, then cosine to a tenth of the peak, as a factor of the peak.

    Args:
        step (`int`): steps done.
        arguments (`VQGANArguments`): warm-up and length.

    Returns:
        `float`: in (0, 1].
    """
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    progress = (step - arguments.warmup_steps) / max(1, arguments.max_steps - arguments.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


class VQGANTrainer:
    """One run, from its last checkpoint or from the start.

    Args:
        vq_model (`diffusers.VQModel`): the model that is trained.
        frames (`FrameArray`): what it learns from and is judged on.
        arguments (`VQGANArguments`): all options.
        accelerator (`Accelerator`): device, precision and processes.
    """

    def __init__(self, vq_model: Any, frames: FrameArray, arguments: VQGANArguments, accelerator: Accelerator) -> None:
        self.arguments, self.accelerator, self.frames = arguments, accelerator, frames
        self.vq_model, self.output = vq_model, Path(arguments.output_dir)
        self.learned, self.held_out = frames.split(arguments.held_out, arguments.seed)
        fused = accelerator.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            vq_model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0, fused=fused
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, arguments))
        self.reconstruction, self.optimizer = accelerator.prepare(Reconstruction(vq_model), optimizer)
        self.objective = VQGANObjective(arguments, accelerator, vq_model.decoder.conv_out.weight)
        self.usage = CodebookUsage(vq_model.config.num_vq_embeddings, accelerator.device)
        accelerator.register_for_checkpointing(self.schedule, self.usage)
        self.average = WeightAverage(vq_model, arguments.ema_decay) if arguments.ema_decay else None
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.reports = RunReports(arguments, accelerator)

    def run(self) -> None:
        """Do the steps that are left, with log lines, judgements, pictures and checkpoints."""
        first_step = self._resume()
        arguments, accelerator = self.arguments, self.accelerator
        progress = tqdm(
            total=arguments.max_steps, initial=first_step, desc="VQ-GAN", disable=not accelerator.is_main_process
        )
        for done, batch in enumerate(self._batches(first_step), start=first_step + 1):
            line = self.step(batch.to(accelerator.device), done)
            if done % arguments.log_every == 0 or done == arguments.max_steps:
                self._log_step(line, done, progress)
            self._judge(done)
            if done % arguments.save_every == 0 and done < arguments.max_steps:
                save_checkpoint(accelerator, self.output, done)
            progress.update()
        progress.close()

    def _batches(self, first_step: int) -> Iterator[FrameBatch]:
        """This process's part of every batch that is left, read one ahead in a thread."""
        arguments, size = self.arguments, self.arguments.batch_size
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = draw_batches(len(self.learned), size * world, arguments.seed, first_step)
        mine = (self.learned[batch[rank * size : (rank + 1) * size]] for batch in batches)
        with ThreadPoolExecutor(max_workers=1) as reader:
            upcoming = reader.submit(self.frames.batch, next(mine))
            for _ in range(first_step, arguments.max_steps):
                batch, upcoming = upcoming.result(), reader.submit(self.frames.batch, next(mine))
                yield batch

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the steps done."""
        resumed = last_checkpoint(self.output)
        step = resumed[1] if resumed else 0
        if resumed:
            self.accelerator.load_state(str(resumed[0]))
            logger.info("going on from step %d", step)
        self.reports.forget_after(step)
        return step

    def step(self, batch: FrameBatch, done: int) -> dict[str, Tensor]:
        """One step of the VQ-GAN, and of its adversary where it has one.

        Args:
            batch (`FrameBatch`): on the device.
            done (`int`): number of this step, from 1.

        Returns:
            `dict[str, torch.Tensor]`: detached scalars, what is logged of this step.

        Raises:
            FloatingPointError: if a gradient is not finite.
        """
        result = self.reconstruction(batch.frames)
        loss, terms = self.objective.loss(batch, result, done)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.reconstruction.parameters(), self.arguments.max_grad_norm)
        self._require_finite(norm, terms, done)
        adversary = self.objective.adversary
        if adversary is not None and adversary.learns(done):
            terms["discriminator"] = adversary.loss(batch.frames, result["decoded"])
            self._require_finite(adversary.descend(terms["discriminator"]), terms, done)
            adversary.step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self._tend_codebook(result, done)
        line = {name: term.detach() for name, term in terms.items()}
        return line | {"psnr": psnr_per_picture(result["decoded"], batch.frames).mean()}

    def _tend_codebook(self, result: dict[str, Tensor], done: int) -> None:
        """Count the codes, follow the weights, and place dead codes anew when it is time."""
        self.usage.update(self.accelerator.gather(result["indices"]))
        if self.average is not None:
            self.average.update(self.vq_model)
        # The first revival replaces the random start; the last tenth of the run leaves the codes alone.
        at_random = done == 1 and self.arguments.vq_model is None
        if (at_random or done % self.arguments.revive_every == 0) and done < 0.9 * self.arguments.max_steps:
            self._revive(result["latents"].detach(), self.arguments.seed + done)

    def _require_finite(self, norm: Tensor, terms: dict[str, Tensor], done: int) -> None:
        """Stop before the weights are spoilt; the norm is the same on every process, so all stop."""
        if torch.isfinite(norm):
            return
        listed = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
        kept = last_checkpoint(self.output)
        where = f"The checkpoint of step {kept[1]} is kept." if kept else "There is no checkpoint yet."
        raise FloatingPointError(
            f"Step {done}: gradients are not finite (norm {float(norm)}; {listed}). {where} Lower `--learning_rate` "
            "or `--max_grad_norm`, or train with `--mixed_precision no`, in a new `--output_dir`."
        )

    def _revive(self, latents: Tensor, seed: int) -> None:
        """Place unused codes anew, the same on every process."""
        flat = self.accelerator.gather(latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).contiguous())
        codebook = self.vq_model.quantize.embedding.weight.data
        moved = self.usage.revive(codebook, flat, torch.Generator().manual_seed(seed))
        if self.accelerator.num_processes > 1:
            broadcast(codebook)
        if self.average is not None:
            self.average.replace_rows(CODEBOOK, moved, codebook)

    def _log_step(self, line: dict[str, Tensor], done: int, progress: tqdm) -> None:
        means = self.accelerator.reduce(torch.stack([value.float() for value in line.values()]), "mean")
        values = dict(zip(line, means.tolist(), strict=True)) | self.usage.summary()
        progress.set_postfix(psnr=f"{values['psnr']:.1f} dB", codes=f"{values['perplexity']:.0f}")
        self.reports.numbers(done, values | {"learning_rate": self.schedule.get_last_lr()[0]})

    def _judge(self, done: int) -> None:
        """Measure and draw held-out pictures, when it is time; always at the end."""
        arguments, last = self.arguments, done == self.arguments.max_steps
        measure = (done % arguments.eval_every == 0 or last) and len(self.held_out)
        draw = arguments.image_every and (done % arguments.image_every == 0 or last)
        if not measure and not draw:
            return
        model = self.final_model()
        if measure:
            chosen = spread(self.held_out, arguments.eval_frames)
            self.reports.numbers(done, judge(model, self.frames, chosen, arguments.batch_size, self.accelerator))
        if draw and self.accelerator.is_main_process:
            chosen = spread(self.held_out if len(self.held_out) else self.learned, PICTURES_DRAWN)
            device = self.accelerator.device
            self.reports.picture(done, draw_pairs(model, self.frames, chosen, arguments.batch_size, device))

    def final_model(self) -> Reconstruction:
        """Copy the model for use: in evaluation mode, with the averaged weights where there are some.

        Returns:
            `Reconstruction`: float32, without gradients; its `vq_model` is what is saved.
        """
        model = deepcopy(self.vq_model).eval().requires_grad_(False)
        if self.average is not None:
            self.average.copy_to(model)
        return Reconstruction(model)
