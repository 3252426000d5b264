"""Train WorldVLA on tokenized demonstrations, both roles together.

    python train/run.py train/recipes/demo.yaml --tokens tokens/ --output_dir outputs/run
    accelerate launch train/run.py train/recipes/demo.yaml --tokens tokens/ --output_dir outputs/run

Killed at any moment, the same command goes on from the last complete checkpoint. When it ends, `output_dir` itself
holds one folder with everything: model, processor with VQ-GAN and action limits, data card, metrics, model card.
"""

import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from tokenization import WorldVLAProcessor
from train.argument_parsing import parse_arguments
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.atomic_files import write_json
from train.collation import WorldVLACollator
from train.episodes import DATA_CARD, PROCESSOR, SampleDataset, TokenizedEpisodes, WindowOptions
from train.trainer import WorldVLATrainer

logger = logging.getLogger("worldvla.train")

# Options of ModelArguments that a checkpoint keeps its own value for.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "swin_norm",
)


def load_processor(episodes: TokenizedEpisodes) -> WorldVLAProcessor:
    """Load the processor that made the tokens, and check that it still does.

    Args:
        episodes (`TokenizedEpisodes`): the data set.

    Returns:
        `WorldVLAProcessor`: from the data set's own folder.

    Raises:
        ValueError: if the VQ-GAN beside the tokens is not the one that made them.
    """
    processor = WorldVLAProcessor.from_pretrained(episodes.folder / PROCESSOR)
    made_by, found = episodes.card["image_token_hash"], processor.image_token_hash()
    if made_by != found:
        raise ValueError(
            f"The tokens in `{episodes.folder}` were made by another VQ-GAN ({made_by[:12]}) than the processor's "
            f"({found[:12]}). Run train/pretokenize.py again into a new folder."
        )
    return processor


def build_model(
    model_arguments: ModelArguments, data_arguments: DataArguments, processor: WorldVLAProcessor
) -> WorldVLAForCausalLM:
    """Make a new model for the processor's vocabulary, or load a checkpoint.

    Args:
        model_arguments (`ModelArguments`): sizes and loss weights, or the checkpoint.
        data_arguments (`DataArguments`): M, K and the history, which the config remembers.
        processor (`WorldVLAProcessor`): gives every token id.

    Returns:
        `WorldVLAForCausalLM`: ready to train.

    Raises:
        ValueError: if a checkpoint has other token ids than the processor that made the tokens.
    """
    options = {f.name: getattr(model_arguments, f.name) for f in fields(model_arguments)}
    path = options.pop("model_name_or_path")
    options |= {name: getattr(data_arguments, name) for name in ("n_obs_steps", "chunk_size", "world_model_history")}
    ids = processor.model_config()
    if path is None:
        return WorldVLAForCausalLM(
            WorldVLAConfig(**ids, **options, num_key_value_heads=model_arguments.num_attention_heads)
        )
    model = WorldVLAForCausalLM.from_pretrained(
        path, **{name: value for name, value in options.items() if name not in SIZES}
    )
    if model.config.derived_from is None and not Path(path).is_dir():
        model.config.derived_from = path  # the model card names it, and its licence
    different = [
        f"{name}: {getattr(model.config, name)} != {value}"
        for name, value in ids.items()
        if getattr(model.config, name) != value
    ]
    if different:
        raise ValueError(
            f"Checkpoint `{path}` uses other token ids than the processor of the tokens ({'; '.join(different)}). "
            "Tokenize the demonstrations again with `--processor` set to that checkpoint."
        )
    return model


def build_datasets(
    episodes: TokenizedEpisodes, arguments: DataArguments, processor: WorldVLAProcessor, seed: int
) -> dict[str, SampleDataset]:
    """Cut the samples of every split.

    Args:
        episodes (`TokenizedEpisodes`): the data set.
        arguments (`DataArguments`): which windows.
        processor (`WorldVLAProcessor`): lays the samples out.
        seed (`int`): see `list_windows`.

    Returns:
        `dict[str, SampleDataset]`: by split.
    """
    options = WindowOptions(**{f.name: getattr(arguments, f.name) for f in fields(WindowOptions)})
    card = episodes.card
    return {
        name: SampleDataset(split, tuple(card["grid"]), processor, options, card["dataset_name"], seed)
        for name, split in episodes.splits.items()
    }


def has_checkpoint(output: Path) -> bool:
    """Whether a run in this folder can be resumed; the folder may not exist yet."""
    return output.is_dir() and get_last_checkpoint(str(output)) is not None


def save_everything(
    trainer: WorldVLATrainer, model: WorldVLAForCausalLM, processor: WorldVLAProcessor, episodes: TokenizedEpisodes
) -> None:
    """Write processor, data card, log, model and model card into the output folder."""
    if trainer.is_world_process_zero():
        output = Path(str(trainer.args.output_dir))
        processor.tokenizer.model_max_length = model.config.max_position_embeddings
        processor.save_pretrained(output)
        write_json(output / DATA_CARD, episodes.card)
        write_json(output / "training_log.json", trainer.state.log_history)
    trainer.save_state()
    trainer.save_model()  # last: with `--push_to_hub true` it uploads the folder
    if not trainer.args.push_to_hub:
        trainer.create_model_card()


def main(argv: list[str]) -> dict[str, Any]:
    """Command line entry: train, evaluate on the held-out splits, save.

    Args:
        argv (`list[str]`): `[recipe.yaml] [--flags]`.

    Returns:
        `dict`: metrics of the last evaluation, empty without held-out episodes.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model_arguments, data_arguments, training_arguments = parse_arguments(
        [ModelArguments, DataArguments, WorldVLATrainingArguments], argv
    )
    set_seed(training_arguments.seed)
    episodes = TokenizedEpisodes.load(data_arguments.tokens)
    processor = load_processor(episodes)
    model = build_model(model_arguments, data_arguments, processor)
    samples = build_datasets(episodes, data_arguments, processor, training_arguments.seed)
    logger.info("%.1fM parameters, %d training samples", model.num_parameters() / 1e6, len(samples["train"]))
    held_out = {name: split for name, split in samples.items() if name != "train"}
    trainer = WorldVLATrainer(
        model=model,
        args=training_arguments,
        train_dataset=samples["train"],
        eval_dataset=held_out or None,
        data_collator=WorldVLACollator(model.config.pad_token_id),
    )
    trainer.train(resume_from_checkpoint=has_checkpoint(Path(training_arguments.output_dir)))
    metrics = trainer.evaluate() if held_out else {}
    save_everything(trainer, model, processor, episodes)
    return metrics


if __name__ == "__main__":
    main(sys.argv[1:])
