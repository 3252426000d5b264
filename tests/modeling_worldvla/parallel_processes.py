"""What each of the processes of test_interfaces_parallel.py does; started by torchrun.

torchrun --nproc_per_node 2 -m tests.modeling_worldvla.parallel_processes tensor FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers.distributed import DistributedConfig

from modeling_worldvla import WorldVLAForCausalLM

from .sequences import Writer, training_batch


def prompt(kind):
    return torch.tensor([getattr(Writer(1), kind)()[0]])


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def largest_difference(got, expected):
    return (full(got).detach() - expected).abs().max().item()


def training_step(model, rows=slice(None)):
    """Loss and gradients of one step; the rows of this process only, counts over all."""
    from modeling_worldvla import count_labels

    ids, mask, labels = training_batch()
    counts = count_labels(labels, model.config)
    loss = model(ids[rows], attention_mask=mask[rows], labels=labels[rows], num_items_in_batch=counts).loss
    loss.backward()
    return loss.detach()


def gradients_differ(model, expected, factor=1.0):
    """Largest difference of any gradient, and its name."""
    wanted = dict(expected.named_parameters())
    differences = {
        name: largest_difference(parameter.grad * factor, wanted[name].grad)
        for name, parameter in model.named_parameters()
    }
    name = max(differences, key=lambda name: differences[name])
    return name, differences[name]


def decoding(model, single):
    """Whether both give the same actions and the same frame."""
    if hasattr(model, "unshard"):  # FSDP2: outside of forward its weights have to be asked for
        for name in ("predict_action_chunk", "predict_next_frame"):
            register_fsdp_forward_method(model, name)
    ways = (("predict_action_chunk", "policy"), ("predict_next_frame", "world_model"))
    return {name: torch.equal(*(getattr(m, name)(prompt(kind)) for m in (model, single))) for name, kind in ways}


def tensor_parallel(folder):
    single = WorldVLAForCausalLM.from_pretrained(folder)
    model = WorldVLAForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2))
    ids, mask, _ = training_batch()
    real = mask.bool()
    projection = model.model.layers[0].self_attn.q_proj.weight
    report = {"local_heads": projection.to_local().shape[0] // model.config.head_dim}
    with torch.no_grad():
        got, expected = (full(m(ids, attention_mask=mask).logits)[real] for m in (model, single))
    report["logits"] = largest_difference(got, expected)
    report |= decoding(model, single)
    report["loss"] = largest_difference(training_step(model), training_step(single))
    report["gradients"] = gradients_differ(model, single)
    return report


def fully_sharded(folder):
    rank = distributed.get_rank()
    single = WorldVLAForCausalLM.from_pretrained(folder)
    model = WorldVLAForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2))
    weight = model.model.layers[0].mlp.up_proj.weight
    report = {"local_rows": weight.to_local().shape[0]}
    loss = training_step(model, slice(2 * rank, 2 * rank + 2))
    distributed.all_reduce(loss)
    report["loss"] = largest_difference(loss, training_step(single))
    report["gradients"] = gradients_differ(model, single, factor=2.0)  # FSDP2 takes the mean over processes
    report |= decoding(model, single)
    return report


def main():
    mode, folder = sys.argv[1:]
    distributed.init_process_group("gloo")
    report = {"tensor": tensor_parallel, "sharded": fully_sharded}[mode](folder)
    (Path(folder) / f"report_{distributed.get_rank()}.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
