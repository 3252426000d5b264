"""Every schedule that transformers knows trains as it is asked to, or is refused before the first step."""

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from train.arguments import WorldVLATrainingArguments
from train.learning_rates import WITHOUT_WARMUP


def make(tmp_path, **changes):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "learning_rate": 1e-3, "max_steps": 100}
    return WorldVLATrainingArguments(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            "`--warmup_steps 5` does nothing with .*`constant_with",
        ),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 100}, "`--warmup_steps 100` never reach .*after 100 steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "`--lr_scheduler_type cosine_with_min_lr` needs `min_lr`"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs `num_decay_steps`, which was not given"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pover": 2}},
            "Unknown option of the schedule `polynomial`: `pover`.*Did you mean `power`",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"min_lr": 0}},
            "takes no options, got `--lr_scheduler_kwargs` with `min_lr`",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-2}},
            "`min_lr` of .* is 0.01, not below `--learning_rate 0.001`",
        ),
        ({"lr_scheduler_kwargs": '["min_lr"]'}, "must be a mapping such as"),
        ({"learning_rate": 0.0}, "`--learning_rate` must be larger than 0, got 0.0"),
        ({"learning_rate": float("nan")}, "`--learning_rate` must be larger than 0, got nan"),
    ],
)
def test_schedules_that_cannot_be_meant_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


OPTIONS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-5, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 20},
    "polynomial": {"power": 2.0},
    "reduce_lr_on_plateau": {"factor": 0.5, "min_lr": 1e-6},
    "greedy": {"patience": 3},
}


@pytest.mark.parametrize("schedule", list(SchedulerType))
def test_what_is_accepted_is_what_transformers_takes(tmp_path, schedule):
    """The names that are let through make a schedule."""
    warmup = 0 if schedule in WITHOUT_WARMUP else 10
    options = OPTIONS.get(schedule.value)
    changes = {"lr_scheduler_type": schedule.value, "lr_scheduler_kwargs": options, "warmup_steps": warmup}
    arguments = make(tmp_path, eval_strategy="steps", **changes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    assert get_scheduler(schedule, optimizer, warmup, 100, arguments.lr_scheduler_kwargs) is not None
