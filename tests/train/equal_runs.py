"""What each process of test_processes.py does; started by torchrun, or called in one process.

torchrun --nproc_per_node 2 -m tests.train.equal_runs FOLDER whole|sharded|scores|diverge
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback
from transformers.distributed import DistributedConfig

from modeling_worldvla import WorldVLAForCausalLM
from train.arguments import WorldVLATrainingArguments
from train.collation import WorldVLACollator
from train.packing import PackingCollator
from train.scores import LabelScores
from train.stopping import TrainingDivergedError
from train.trainer import WorldVLATrainer, as_forward

from .test_stopping import Break

STEPS, BATCH = 2, 8  # samples of a step, over all processes and micro-batches


class KeepGradients(TrainerCallback):
    """Copies all gradients before each step of the optimizer."""

    def __init__(self, model):
        self.model, self.gradients = model, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [weight.grad for weight in self.model.parameters()]
        whole = [gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient for gradient in gradients]
        self.gradients.append(torch.cat([gradient.flatten() for gradient in whole]).clone())


def make_trainer(folder, dtype, processes, micro_batches, packed_length=None, sharded=False):
    """A trainer of two steps of eight samples each, and its model."""
    samples = json.loads((folder / "samples.json").read_text())
    options = {"distributed_config": DistributedConfig(fsdp_size=processes)} if sharded else {}
    model = WorldVLAForCausalLM.from_pretrained(folder / "model", dtype=dtype, **options)
    arguments = WorldVLATrainingArguments(
        output_dir=str(folder / "out"),
        use_cpu=True,
        per_device_train_batch_size=BATCH // processes // micro_batches,
        gradient_accumulation_steps=micro_batches,
        per_device_eval_batch_size=4,
        max_steps=STEPS,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        seed=0,
    )
    packing, padding = PackingCollator(model.config, packed_length), WorldVLACollator(model.config.pad_token_id)
    trainer = WorldVLATrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset={"val_ind": samples[:-1]},
        data_collator=packing if packed_length else padding,
        bin_values=torch.linspace(-1, 1, model.config.num_action_tokens).expand(model.config.action_dim, -1),
    )
    return trainer, model


def run(*settings, **options):
    """Train two steps, then evaluate: losses, gradients and metrics."""
    trainer, model = make_trainer(*settings, **options)
    kept = KeepGradients(model)
    trainer.add_callback(kept)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss_action" in line]
    losses = torch.tensor([[line["loss_action"], line["loss_world_model"]] for line in lines], dtype=torch.float64)
    clocks = ("second", "time", "epoch")
    metrics = {name: value for name, value in trainer.evaluate().items() if not any(part in name for part in clocks)}
    return {"losses": losses, "gradients": kept.gradients, "metrics": metrics}


def score_sharded(folder):
    """Scores of all samples by a model that is sharded as accelerate shards it: its layers, and the rest as one."""
    samples = json.loads((folder / "samples.json").read_text())
    model = WorldVLAForCausalLM.from_pretrained(folder / "model")
    for part in (*model.model.layers, model):
        fully_shard(part)
    scores = LabelScores(model.config)
    as_forward(model, lambda: scores.update(model, WorldVLACollator(model.config.pad_token_id)(samples)))
    return {"scores": scores.metrics()}


def run_all(folder, sharded=False):
    """Every way to split a step over two processes."""
    return {
        f"{dtype}, {micro_batches} micro-batches, packed {length}": run(
            folder, dtype, 2, micro_batches, length, sharded=sharded
        )
        for dtype in (torch.float64, torch.float32)
        for micro_batches, length in ((1, None), (2, None), (2, 260))
    }


def diverge(folder):
    """The error in each process, when the loss of the second alone is no number."""
    trainer, model = make_trainer(folder, torch.float32, 2, 2)
    if torch.distributed.get_rank() == 1:
        trainer.add_callback(Break(model, 2, float("nan")))
    try:
        trainer.train()
    except TrainingDivergedError as error:
        return {"error": str(error), "step": trainer.state.global_step}
    return {}


def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind in ("sharded", "scores"):
        torch.distributed.init_process_group("gloo")
    kinds = {"whole": run_all, "sharded": partial(run_all, sharded=True), "scores": score_sharded, "diverge": diverge}
    results = kinds[kind](folder)
    torch.save(results, folder / f"results_{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
