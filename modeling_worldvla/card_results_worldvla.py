"""Evaluation results as a model card tells them: every number with its sample size, interval, command and commit.

Read are the files that the project's own commands write; they are told apart by their keys, not by their names:
`summary.json` of evaluation/run.py, the JSON beside the video of evaluation/imagine.py, `results.json` of
evaluation/measure_world_model.py and of evaluation/reconstruct.py.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from .sampling_worldvla import describe_sampling

POLICY, WORLD_MODEL, VQ_GAN = "Policy in LIBERO", "World model", "VQ-GAN"
TASKS = (POLICY, WORLD_MODEL, VQ_GAN)
NOT_EVALUATED = "Not evaluated."
_IMAGINED_ROLLOUTS = "evaluation/imagine.py --checkpoint {checkpoint} --rollouts results/"
_PSNR_NAMES = {
    "imagined": "imagined",
    "copy_last_frame": "floor: the first frame, repeated",
    "copy_last_reconstruction": "the same floor, through the VQ-GAN",
    "reconstruction": "ceiling: real frames, through the VQ-GAN",
}
_SAMPLING = ("temperature", "top_p", "sampling_seed")
_HEX = 12  # digits of a hash that a card shows


class CardResults(NamedTuple):
    """What one file of results says: about which of `TASKS`, as Markdown, and as entries of the `model-index`."""

    task: str
    text: str
    entries: list[EvalResult]


def read_results(path: str | Path, checkpoint: str) -> CardResults:
    """Read one file of results.

    Args:
        path (`str` or `Path`): the file.
        checkpoint (`str`): folder or Hub id that the commands of the card name.

    Returns:
        `CardResults`: ready for the card.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, of no known kind, or lacks a number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file of results `{path}`. Give files that exist: {_known_files()}.")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"The results in `{path}` are no JSON: {error}. Run the evaluation again.") from error
    source = _source_of(content)
    if source is None:
        raise ValueError(f"`{path}` holds no results that a card can show. Give {_known_files()}.")
    try:
        text, entries = source.read(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{path}` looks like {source.writer}, but is not whole: {type(error).__name__} {error}. Run the "
            "evaluation again."
        ) from error
    except ValueError as error:
        raise ValueError(f"`{path}`: {error} Run the evaluation again.") from error
    return CardResults(source.task, f"{text}\n\n{_provenance(source, content['settings'], checkpoint)}", entries)


def holds_results(content: Any) -> bool:
    """Tell results that a card can show from other files.

    Args:
        content (`Any`): a parsed JSON file.

    Returns:
        `bool`: whether one of the project's commands wrote it.
    """
    return _source_of(content) is not None


def markdown_row(cells: Sequence[Any]) -> str:
    """One row of a Markdown table; no cell can break out of it."""
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def markdown_lines(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(markdown_row(row) for row in (header, ["---"] * len(header), *rows))


def _policy(content: Mapping[str, Any]) -> tuple[str, list[EvalResult]]:
    """Success of a policy."""
    settings, suite = content["settings"], str(content["suite"])
    successes, episodes = _number(content["successes"]), _number(content["episodes"])
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes:g} of {episodes:g} episodes cannot succeed.")
    rate = successes / episodes
    success = f"{successes:g}/{episodes:g} ({100 * rate:.1f} %, {_percent_interval(content.get('interval_95'))})"
    tasks = settings.get("task_ids")
    states, first = settings.get("episodes"), settings.get("first_state") or 0
    rows = [
        ["success", success],
        ["tasks", ", ".join(map(str, tasks)) if tasks else "all of the suite"],
        [
            "initial states",
            f"the benchmark's {first} to {first + states - 1} of each task" if states else "not recorded",
        ],
        ["step limit", settings.get("max_steps") or "the suite's"],
    ]
    entry = EvalResult(
        task_type="robotics",
        task_name=POLICY,
        dataset_type="libero",
        dataset_name=f"LIBERO {suite}",
        dataset_config=suite,
        metric_args={"episodes": int(episodes), "task_ids": list(tasks) if tasks else "all"},
        metric_type="success_rate",
        metric_name=f"success rate: {success}",
        metric_value=round(rate, 4),
    )
    return markdown_lines(["LIBERO suite", suite], rows), [entry]


def _world_model(content: Mapping[str, Any]) -> tuple[str, list[EvalResult]]:
    """Closeness of imagined frames."""
    frames = int(_number(content["num_frames"]))
    episodes = content.get("num_episodes", 1)
    intervals = content.get("psnr_db_interval_95") or {}
    source = "played" if content["settings"].get("rollouts") else "recorded"
    how_many = f"{frames} frames of {episodes} {source} episode{'s' * (episodes != 1)}"
    rows = [
        [_PSNR_NAMES.get(name, name), f"{_number(value):.2f}", _interval(intervals.get(name), 2)]
        for name, value in content["psnr_db"].items()
    ]
    entry = EvalResult(
        task_type="robotics",
        task_name=WORLD_MODEL,
        dataset_type=f"{source}_episodes",
        dataset_name=f"{source.capitalize()} episodes",
        metric_args={"frames": frames, "episodes": episodes},
        metric_type="psnr",
        metric_name=f"PSNR of imagined frames, dB ({how_many})",
        metric_value=round(_number(content["psnr_db"]["imagined"]), 3),
    )
    text = f"Frame after frame from one real frame and the actions that were carried out, {how_many}"
    table = markdown_lines(["mean PSNR", "dB", "95 % interval"], rows)
    return f"{text}; {_describe_choice(content['settings'])}.\n\n{table}", [entry]


def _measured_world_model(content: Mapping[str, Any]) -> tuple[str, list[EvalResult]]:
    """Scores of imagined frames over windows of recorded episodes, by length and by part of the picture."""
    windows, episodes = (int(_number(content[name])) for name in ("num_windows", "num_episodes"))
    chosen = _describe_choice(content["settings"])
    rows, entries = [], []
    for frames, parts in content["horizons"].items():
        for part, compared in parts.items():
            for metric, score in compared["imagined"].items():
                mean, interval = _number(score["mean"]), _interval(score["interval"], 3)
                others = [
                    compared.get(name, {}).get(metric) for name in ("copy_last_reconstruction", "reconstruction")
                ]
                shown = [f"{_number(other['mean']):.3f}" if other else "" for other in others]
                rows.append([frames, part, metric, f"{mean:.3f}", interval, *shown])
                entries.append(
                    EvalResult(
                        task_type="robotics",
                        task_name=WORLD_MODEL,
                        dataset_type="recorded_episodes",
                        dataset_name="Recorded episodes",
                        metric_args={"frames": int(frames), "windows": windows, "episodes": episodes, "part": part},
                        metric_type=metric,
                        metric_name=f"{metric} of {frames} imagined frames, {part} ({windows} windows; {chosen})",
                        metric_value=round(mean, 4),
                    )
                )
    header = ["frames", "part", "score", "imagined, mean", "95 % interval", "floor", "ceiling"]
    text = (
        f"{windows} windows of {episodes} recorded episodes, frame after frame from real ones and the actions that "
        f"were carried out; {chosen}. Floor: the last real frame, repeated; ceiling: the real frames; both through "
        "the VQ-GAN."
    )
    return f"{text}\n\n{markdown_lines(header, rows)}", entries


def _describe_choice(settings: Mapping[str, Any]) -> str:
    """How the codes of imagined frames were chosen."""
    temperature, top_p = (settings.get(name) for name in ("temperature", "top_p"))
    if temperature is None:
        return "always the likeliest codes"
    return f"codes {describe_sampling(_number(temperature), None if top_p is None else _number(top_p))}"


def _vq_gan(content: Mapping[str, Any]) -> tuple[str, list[EvalResult]]:
    """Fidelity of reconstructions: all pictures together, by part of the picture."""
    rows, entries = [], []
    for part, scores in content["groups"]["all"].items():
        frames, episodes = scores["frames"], scores["episodes"]
        for metric, value in scores.items():
            if isinstance(value, dict):
                mean = _number(value["mean"])
                rows.append([part, metric, f"{mean:.3f}", _interval(value.get("interval"), 3), frames, episodes])
                entries.append(
                    EvalResult(
                        task_type="image-to-image",
                        task_name=VQ_GAN,
                        dataset_type="recorded_demonstrations",
                        dataset_name="Recorded demonstrations",
                        metric_args={"frames": frames, "episodes": episodes, "part": part},
                        metric_type=metric,
                        metric_name=f"{metric} of reconstructions, {part} ({frames} frames, {episodes} episodes)",
                        metric_value=round(mean, 4),
                    )
                )
    codebook = content["codebook"]
    text = markdown_lines(["part", "metric", "mean", "95 % interval", "frames", "episodes"], rows)
    used = f"{codebook['used']} of {codebook['codes']} codes used, perplexity {_number(codebook['perplexity']):.1f}"
    return f"{text}\n\n{used}.", entries


class _Source(NamedTuple):
    """A command of evaluation/, and what a card makes of the file that it writes.

    Attributes:
        task (`str`): which of `TASKS` it measures.
        writer (`str`): the file, for messages.
        keys (`tuple[str, ...]`): which every such file has, and no other one all of.
        read (callable): turns the content into Markdown and entries of the `model-index`.
        command (`str`): the command, with folders as a stranger would name them.
        options (`tuple[str, ...]`): those that the numbers depend on. Paths are left out: a card is public, and the
            reader has other folders.
    """

    task: str
    writer: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[str, list[EvalResult]]]
    command: str
    options: tuple[str, ...]


_SOURCES = (
    _Source(
        POLICY,
        "summary.json of evaluation/run.py",
        ("suite", "episodes", "successes", "settings"),
        _policy,
        "evaluation/run.py --checkpoint {checkpoint} --output_dir results/",
        ("suite", "task_ids", "episodes", "first_state", "camera", "image_size", "chunk_size", "n_action_steps")
        + ("max_steps", "seed", "dataset_name"),
    ),
    _Source(
        WORLD_MODEL,
        "the JSON file of evaluation/imagine.py",
        ("num_frames", "psnr_db", "settings"),
        _world_model,
        "evaluation/imagine.py --checkpoint {checkpoint} --demonstrations demos/ --output imagined.mp4",
        ("episode", "camera", "start", "num_frames", "dataset_name", *_SAMPLING),
    ),
    _Source(
        WORLD_MODEL,
        "results.json of evaluation/measure_world_model.py",
        ("horizons", "num_windows", "settings"),
        _measured_world_model,
        "evaluation/measure_world_model.py --checkpoint {checkpoint} --demonstrations held_out/ "
        "--output_dir world_model/",
        ("num_frames", "metrics", "regions", "windows_per_episode", "episodes", "camera", "dataset_name", *_SAMPLING),
    ),
    _Source(
        VQ_GAN,
        "results.json of evaluation/reconstruct.py",
        ("groups", "codebook", "settings"),
        _vq_gan,
        "evaluation/reconstruct.py --vq_model {checkpoint} --demonstrations demos/ --output_dir reconstructions/",
        ("cameras", "frames", "metrics", "regions", "image_size", "seed"),
    ),
)


def _source_of(content: Any) -> _Source | None:
    """The command that wrote some results; none for anything else."""
    if not isinstance(content, dict):
        return None
    return next((source for source in _SOURCES if all(key in content for key in source.keys)), None)


def _provenance(source: _Source, settings: Mapping[str, Any], checkpoint: str) -> str:
    """The command, without paths, and what the file says about weights and code."""
    command, options = source.command, source.options
    if settings.get("rollouts"):
        command, options = _IMAGINED_ROLLOUTS, ("dataset_name", *_SAMPLING)
    if settings.get("temperature") is None:
        options = tuple(name for name in options if name not in _SAMPLING)
    parts = ["python", command.format(checkpoint=checkpoint)]
    for name in options:
        value = settings.get(name)
        if value is not None and value != []:
            parts.append(f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    hashes = {
        "weights": settings.get("checkpoint_fingerprint") or settings.get("vq_model_hash"),
        "commit of the code": settings.get("commit"),
    }
    notes = [f"{name} `{str(value)[:_HEX]}`" if value else f"{name} not recorded" for name, value in hashes.items()]
    return f"`{' '.join(' '.join(parts).split())}`; {', '.join(notes)}."


def _number(value: Any) -> float:
    """A finite number, or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"Expected a finite number, got {value!r}.")
    return float(value)


def _interval(bounds: Any, digits: int) -> str:
    """An interval for a cell of a table."""
    if not bounds:
        return "not recorded"
    low, high = bounds
    return f"{_number(low):.{digits}f} to {_number(high):.{digits}f}"


def _percent_interval(bounds: Any) -> str:
    """An interval of shares, in percent."""
    if not bounds:
        return "interval not recorded"
    low, high = bounds
    return f"95 % interval {100 * _number(low):.1f} to {100 * _number(high):.1f} %"


def _known_files() -> str:
    """The files that a card can show, for error messages."""
    return ", ".join(source.writer for source in _SOURCES)


__all__ = ["CardResults", "NOT_EVALUATED", "TASKS", "holds_results", "markdown_lines", "read_results"]
