"""Tiny training runs in processes of their own, which tests kill, stop and start again.

The processes are forked from a server that has imported everything already, so each costs little more than its steps.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from train.arguments import WorldVLATrainingArguments
from train.collation import WorldVLACollator
from train.trainer import WorldVLATrainer

STEPS = 10  # two and a half epochs of four steps each
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
ARGUMENTS = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": STEPS,
    "save_steps": 3,
    "logging_steps": 1,
    "disable_tqdm": True,
    "lr_scheduler_type": "cosine",
    "learning_rate": 1e-2,
    "ema_decay": 0.9,
}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def write_task(folder, ids, samples):
    """Put down what every run of a test learns from and begins with; dropout shows a wrong random state."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 128}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "attention_dropout": 0.1}
    task = {"config": ids | sizes, "samples": [samples[index] for index in range(len(samples))]}
    (folder / "task.json").write_text(json.dumps(task))
    return folder / "task.json"


def run(task, output, interruption=None, processes=1, port=29571, **changes):
    """Train until the end or the interruption; returns the exit code of each process."""
    places = [(rank, processes, port) for rank in range(processes)]
    started = [
        CONTEXT.Process(target=train, args=(str(task), str(output), interruption, place, changes)) for place in places
    ]
    for process in started:
        process.start()
    started[-1].join(120)
    for process in started[:-1]:
        process.join(20)
        process.kill()  # one that waits for a killed one
    codes = [process.exitcode for process in started]
    assert None not in codes, "a run did not end"
    return codes


def train(task, output, interruption, place, changes):
    """What each process does."""
    torch.set_num_threads(1)
    join_processes(*place)
    task = json.loads(Path(task).read_text())
    arguments = WorldVLATrainingArguments(output_dir=output, **(ARGUMENTS | changes))
    torch.manual_seed(1)
    model = WorldVLAForCausalLM(WorldVLAConfig(**task["config"]))
    trainer = WorldVLATrainer(
        model=model,
        args=arguments,
        train_dataset=task["samples"],
        eval_dataset={"val_ind": task["samples"][:8]},
        data_collator=WorldVLACollator(model.config.pad_token_id),
    )
    if interruption is not None:
        kind, when = interruption
        INTERRUPTIONS[kind](trainer, when, Path(output))
    try:
        trainer.train(resume_from_checkpoint=True)
    except OSError as error:
        (Path(output).parent / "error.txt").write_text(str(error))
        raise
    trainer.exit_if_stopped()
    trainer.save_model(str(Path(output) / "final"))
    if trainer.is_world_process_zero():
        (Path(output) / "log.json").write_text(json.dumps(trainer.state.log_history))


def join_processes(rank, processes, port):
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class At(TrainerCallback):
    """Does something at an event of a step, in the last process alone."""

    def __init__(self, event, step, action):
        setattr(self, event, lambda args, state, control, **_: self.do(args, state, step, action))

    @staticmethod
    def do(args, state, step, action):
        if state.global_step == step and args.process_index == args.world_size - 1:
            action()


def kill_at_file_operation(trainer, which, output):
    """Kill at the n-th time that the run touches a file below its folder, or the first time for one event and path."""
    seen = []

    def notice(event, arguments):
        if event in FILE_EVENTS and str(output) in str(arguments[0]):
            seen.append((event, os.path.relpath(arguments[0], output)))
            if seen[-1] == which or len(seen) == which:
                kill()

    sys.addaudithook(notice)


def fill_disk(trainer, step, output):
    """From this step on no file can grow beyond 8 KiB."""
    limit = 8192
    action = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    trainer.add_callback(At("on_step_begin", step, action))


INTERRUPTIONS = {
    "file operation": kill_at_file_operation,
    "full disk": fill_disk,
    "kill in step": lambda trainer, step, _: trainer.add_callback(At("on_optimizer_step", step, kill)),
    "kill after step": lambda trainer, step, _: trainer.add_callback(At("on_step_end", step, kill)),
    "SIGTERM": lambda trainer, step, _: trainer.add_callback(
        At("on_step_begin", step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ),
    "SIGINT": lambda trainer, step, _: trainer.add_callback(
        At("on_step_begin", step, lambda: os.kill(os.getpid(), signal.SIGINT))
    ),
}
