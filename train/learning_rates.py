"""Whether a learning rate's schedule and the options given for it belong together."""

import inspect
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from tokenization.choices_worldvla import require_choice

WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
_CLASSES = {SchedulerType.REDUCE_ON_PLATEAU: ReduceLROnPlateau, SchedulerType.GREEDY: GreedyLR}
_GIVEN_BY_THE_TRAINER = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
# One of these must be given; their signatures do not say so.
_NEEDED = {
    SchedulerType.COSINE_WITH_MIN_LR: ("min_lr", "min_lr_rate"),
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: ("min_lr", "min_lr_rate"),
}


def require_schedule(arguments: Any) -> None:
    """Refuse a learning rate whose schedule lacks something, or ignores something that was given.

    Args:
        arguments (`transformers.TrainingArguments`): all options of training.

    Raises:
        ValueError: names the option, the schedule, and what to do.
    """
    schedule, options = SchedulerType(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs or {}
    if not isinstance(options, dict):
        raise ValueError(f'`--lr_scheduler_kwargs` must be a mapping such as {{"min_lr": 1e-6}}, got {options!r}.')
    _require_warmup(arguments, schedule)
    known, needed = _list_options(schedule)
    for name in options:
        if not known:
            raise ValueError(
                f"`--lr_scheduler_type {schedule.value}` takes no options, got `--lr_scheduler_kwargs` with `{name}`. "
                "Leave it out, or choose another schedule."
            )
        require_choice(f"option of the schedule `{schedule.value}`:", name, known)
    if missing := [name for name in needed if name not in options]:
        _refuse_missing(schedule, missing[0])
    choices = _NEEDED.get(schedule, ())
    if choices and not any(name in options for name in choices):
        _refuse_missing(schedule, choices[0])
    _require_lower_end(arguments.learning_rate, schedule, options)


def _require_warmup(arguments: Any, schedule: SchedulerType) -> None:
    """Refuse a warm-up that is ignored, or that never ends."""
    steps = arguments.warmup_steps or 0
    if steps and schedule in WITHOUT_WARMUP:
        raise ValueError(
            f"`--warmup_steps {steps:g}` does nothing with `--lr_scheduler_type {schedule.value}`. Choose "
            "`constant_with_warmup` or another schedule with a warm-up, or leave it out."
        )
    if 0 < arguments.max_steps <= steps:
        raise ValueError(
            f"`--warmup_steps {steps:g}` never reach `--learning_rate {arguments.learning_rate:g}`: training ends "
            f"after {arguments.max_steps} steps. Give fewer, or a share of the steps such as 0.05."
        )


def _list_options(schedule: SchedulerType) -> tuple[list[str], list[str]]:
    """The options that a schedule understands, and those of them without a default."""
    if schedule in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        return [], []  # transformers passes them none
    function: Any = _CLASSES.get(schedule, TYPE_TO_SCHEDULER_FUNCTION[schedule])
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _GIVEN_BY_THE_TRAINER and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return list(parameters), [name for name, value in parameters.items() if value.default is inspect.Parameter.empty]


def _refuse_missing(schedule: SchedulerType, name: str) -> None:
    raise ValueError(
        f"`--lr_scheduler_type {schedule.value}` needs `{name}`, which was not given. Add it, for example "
        f"`--lr_scheduler_kwargs '{{\"{name}\": ...}}'`, or choose `cosine` or `linear`."
    )


def _require_lower_end(learning_rate: float, schedule: SchedulerType, options: dict[str, Any]) -> None:
    """Refuse a schedule that ends above the learning rate it comes down from."""
    for name in ("min_lr", "lr_end"):
        end = options.get(name)
        if end is not None and schedule not in _CLASSES and float(end) >= learning_rate:
            raise ValueError(
                f"`{name}` of `--lr_scheduler_type {schedule.value}` is {float(end):g}, not below `--learning_rate "
                f"{learning_rate:g}`. Lower it."
            )
