"""The model card: README.md of a checkpoint, written from what lies in its folder.

Everything generated stands between two marker lines; what people write outside of them is kept when the card is
written anew. Nothing is invented: what no file says is "not recorded" or "not evaluated".
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .card_results_worldvla import NOT_EVALUATED, TASKS, CardResults, holds_results, read_results
from .card_sections_worldvla import (
    describe_data,
    describe_licence,
    describe_model,
    describe_training,
    describe_use,
    how_to_run,
)
from .configuration_worldvla import WorldVLAConfig

logger = logging.getLogger("worldvla.model_card")

CARD_FILE = "README.md"
EVALUATION_FOLDER = "evaluation"
BEGIN = "<!-- worldvla card, begin: generated; what you write outside of these two lines is kept -->"
END = "<!-- worldvla card, end -->"
LICENCE = "apache-2.0"
TAGS = ("worldvla", "vision-language-action", "world-model", "robotics")


def build_model_card(
    folder: str | Path,
    repo_id: str | None = None,
    evaluation_files: Sequence[str | Path] | None = None,
    datasets: Sequence[str] = (),
    existing: ModelCard | None = None,
    name: str | None = None,
) -> ModelCard:
    """Write the card of a checkpoint, without saving it.

    Args:
        folder (`str` or `Path`): holds `config.json`; and, where it is there, weights, processor, `data_card.json`,
            `training_log.json` and `training_args.json`.
        repo_id (`str`, *optional*): where it will lie on the Hub; the commands of the card name it.
        evaluation_files (`Sequence[str | Path]`, *optional*): results of evaluation/run.py, evaluation/imagine.py,
            evaluation/measure_world_model.py and evaluation/reconstruct.py; by default those found in the sub-folder
            `evaluation/`.
        datasets (`Sequence[str]`): Hub ids of the training data.
        existing (`ModelCard`, *optional*): the card so far. Text outside of the marker lines and metadata are kept.
        name (`str`, *optional*): title; by default the last part of `repo_id`, or the folder's name.

    Returns:
        `ModelCard`: `str(card)` is README.md.

    Raises:
        FileNotFoundError: if there is no `config.json`, or no such file of results.
        ValueError: if a file cannot be read, holds no results, or markers were damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"No model in `{folder}`: config.json is missing. Save one there with `model.save_pretrained`."
        )
    name = name or (repo_id or folder.resolve().name).split("/")[-1]
    checkpoint = repo_id or "."
    files = find_results(folder) if evaluation_files is None else evaluation_files
    results = [read_results(path, checkpoint) for path in files]
    config = WorldVLAConfig.from_pretrained(folder).to_dict()  # the file leaves out what has its default
    processor, data, log, options = (
        _read_json(folder / f"{file}.json")
        for file in ("processor_config", "data_card", "training_log", "training_args")
    )
    sections = {
        f"# {name}": describe_use(),
        "## The model": describe_model(folder, config, processor),
        "## How to run": how_to_run(config, processor, data, checkpoint),
        "## Training data": describe_data(data),
        "## Training": describe_training(log, options),
        "## Evaluation": _describe_results(results),
        "## Licence": describe_licence(config),
    }
    text = "\n\n".join(f"{title}\n{body}" for title, body in sections.items())
    entries = [entry for result in results for entry in result.entries]
    return _merge(existing, text, _metadata(name, config, datasets, entries))


def write_model_card(folder: str | Path, **options: Any) -> Path:
    """Write README.md into a checkpoint's folder; what people wrote into the one there is kept.

    Args:
        folder (`str` or `Path`): the checkpoint.
        **options: see `build_model_card`.

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: as `build_model_card`.
        ValueError: as `build_model_card`.
    """
    path = Path(folder, CARD_FILE)
    options.setdefault("existing", load_card(path) if path.is_file() else None)
    build_model_card(folder, **options).save(path)
    return path


def find_results(folder: Path) -> list[Path]:
    """List the results in a checkpoint's sub-folder `evaluation/`.

    Args:
        folder (`Path`): the checkpoint.

    Returns:
        `list[Path]`: JSON files that a card can show, sorted by name. Others are named in a warning, damaged ones too.
    """
    found = []
    for path in sorted(folder.joinpath(EVALUATION_FOLDER).rglob("*.json")):
        try:
            known = holds_results(json.loads(path.read_text("utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError):
            known = False
        if known:
            found.append(path)
        else:
            logger.warning("`%s` holds no results that a model card can show: left out.", path)
    return found


def load_card(path: str | Path) -> ModelCard:
    """Read a card.

    Args:
        path (`str` or `Path`): README.md.

    Returns:
        `ModelCard`: with its metadata.

    Raises:
        ValueError: if the metadata at its top cannot be read.
    """
    import yaml

    try:
        return ModelCard.load(str(path))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"The metadata between the first two `---` of the card `{path}` cannot be read: {error}. Correct it there."
        ) from error


def handwritten_text(card: ModelCard) -> str:
    """What people wrote into a card: everything outside of the marker lines.

    Args:
        card (`ModelCard`): any card.

    Returns:
        `str`: empty for cards that this module or transformers made.

    Raises:
        ValueError: if only one of the two marker lines is there, or they are in the wrong order.
    """
    before, after = _split(card)
    return f"{before.strip()}\n\n{after.strip()}".strip()


def _describe_results(results: Sequence[CardResults]) -> str:
    """Every kind of result, or that there is none."""
    parts = []
    for task in TASKS:
        texts = [result.text for result in results if result.task == task]
        parts.append(f"### {task}\n" + ("\n\n".join(texts) or NOT_EVALUATED))
    return "\n\n".join(parts)


def _metadata(
    name: str, config: Mapping[str, Any], datasets: Sequence[str], entries: list[EvalResult]
) -> ModelCardData:
    """What the generated card says about the checkpoint in its YAML header."""
    base = config.get("derived_from")
    licence: dict[str, Any] = (
        {"license": LICENCE} if base is None else {"license": "other", "license_name": "see-base-model"}
    )
    if base is not None:
        licence["license_link"] = f"https://huggingface.co/{base}"
    return ModelCardData(
        **licence,
        library_name="transformers",
        pipeline_tag="robotics",
        tags=list(TAGS),
        base_model=base,
        datasets=list(datasets) or None,
        model_name=name if entries else None,
        eval_results=entries or None,
    )


def _merge(existing: ModelCard | None, text: str, data: ModelCardData) -> ModelCard:
    """Put the generated text into a card, and the metadata beside what is there already."""
    if existing is None:
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{BEGIN}\n{text}\n{END}\n")
    before, after = _split(existing)
    if any(line.startswith("# ") for line in before.splitlines()):
        text = text.partition("\n")[2]  # that card has its title
    block = f"{BEGIN}\n{text}\n{END}\n"
    body = "\n\n".join(part for part in (before.strip("\n"), block.strip("\n"), after.strip("\n")) if part)
    merged = _merge_metadata(existing.data, data)
    return ModelCard(f"---\n{merged.to_yaml()}\n---\n\n{body}\n")


def _merge_metadata(old: Any, new: ModelCardData) -> ModelCardData:
    """Keep what a card says; add what it does not; replace the results that an earlier generation wrote."""
    values = dict(vars(old))
    for name, value in vars(new).items():
        if name in ("tags", "datasets"):
            before = values.get(name) or []
            values[name] = list(dict.fromkeys([*([before] if isinstance(before, str) else before), *(value or [])]))
        elif name == "eval_results":
            kept = [entry for entry in values.get(name) or [] if entry.task_name not in TASKS]
            values[name] = [*(value or []), *kept]
        elif values.get(name) is None:
            values[name] = value
    if new.license == "other" and values["license"] == LICENCE:  # written when other weights lay there
        values |= {name: getattr(new, name) for name in ("license", "license_name", "license_link")}
    if values["eval_results"] and values.get("model_name") is None:
        raise ValueError("The card's `model-index` has results but no `name`. Write the model's name there.")
    return ModelCardData(**{name: value for name, value in values.items() if value not in (None, [])})


def _split(card: ModelCard) -> tuple[str, str]:
    """What stands before and after the generated part; all of it before where there is none."""
    text = card.text.replace("\r\n", "\n")
    begins, ends = text.count(BEGIN), text.count(END)
    if (begins, ends) == (0, 0):
        return ("", "") if _is_placeholder(text) else (text, "")
    if (begins, ends) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"The card's marker lines were damaged: {begins} of `{BEGIN}` and {ends} of `{END}`. Write each on a line "
            "of its own, once and in this order, or remove both and everything between them."
        )
    before, _, rest = text.partition(BEGIN)
    return before, rest.partition(END)[2]


def _is_placeholder(text: str) -> bool:
    """Whether a card is the form that transformers uploads, with nothing filled in."""
    description = (
        "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
        "automatically generated."
    )
    form = ModelCard.from_template(ModelCardData(), model_description=description)
    return text.split() == form.text.split()


def _read_json(path: Path) -> Any:
    """A JSON file, or an empty dict where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`{path}` is no JSON: {error}. Save the checkpoint again.") from error


__all__ = ["build_model_card", "find_results", "handwritten_text", "load_card", "write_model_card"]
