"""What each process of test_processes.py does; started by torchrun, or called in one process.

torchrun --nproc_per_node 2 -m tests.train.equal_runs FOLDER whole|sharded|scores
"""

import json
import sys
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
from train.trainer import WorldVLATrainer, as_forward

STEPS, BATCH = 2, 8  # samples of a step, over all processes and micro-batches


class KeepGradients(TrainerCallback):
    """Copies all gradients before each step of the optimizer."""

    def __init__(self, model):
        self.model, self.gradients = model, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [weight.grad for weight in self.model.parameters()]
        whole = [gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient for gradient in gradients]
        self.gradients.append(torch.cat([gradient.flatten() for gradient in whole]).clone())


def run(folder, dtype, processes, micro_batches, packed_length=None, sharded=False):
    """Train two steps of eight samples, then evaluate: losses, gradients and metrics."""
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
    trainer = WorldVLATrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset={"val_ind": samples[:-1]},
        data_collator=PackingCollator(model.config, packed_length)
        if packed_length
        else WorldVLACollator(model.config.pad_token_id),
        bin_values=torch.linspace(-1, 1, model.config.num_action_tokens).expand(model.config.action_dim, -1),
    )
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


def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind != "whole":
        torch.distributed.init_process_group("gloo")
    results = (
        score_sharded(folder)
        if kind == "scores"
        else {
            f"{dtype}, {micro_batches} micro-batches, packed {length}": run(
                folder, dtype, 2, micro_batches, length, kind == "sharded"
            )
            for dtype in (torch.float64, torch.float32)
            for micro_batches, length in ((1, None), (2, None), (2, 260))
        }
    )
    rank = torch.distributed.get_rank()
    torch.save(results, folder / f"results_{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
