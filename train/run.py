"""Train WorldVLA on tokenized demonstrations, both roles together.

    python train/run.py train/recipes/demo.yaml --tokens tokens/ --output_dir outputs/run
    accelerate launch train/run.py train/recipes/demo.yaml --tokens tokens/ --output_dir outputs/run

Killed at any moment, the same command goes on from the last complete checkpoint; SIGTERM and SIGINT write one first
(exit code 75, docs/checkpoints.md). When it ends, `output_dir` itself
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

from tokenization import WorldVLAProcessor
from train.adapters import add_adapters
from train.argument_parsing import parse_arguments
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.episodes import Episodes, SampleDataset
from train.exporting import save_everything
from train.initialization import (
    build_model,
    require_checkpoint,
    require_positions,
    require_same_data,
    require_sharding,
    require_wanted_data,
)
from train.on_the_fly import open_data
from train.packing import choose_collator
from train.pretokenize_arguments import DemonstrationArguments
from train.run_settings import claim_folder, collect_settings
from train.scores import action_bin_values
from train.simulator_rollouts import RolloutPlan, SimulatorRollouts
from train.trainer import WorldVLATrainer
from train.windows import WindowOptions

logger = logging.getLogger("worldvla.train")

RUN_OPTIONS = (ModelArguments, DataArguments, DemonstrationArguments, WorldVLATrainingArguments)


def build_datasets(
    episodes: Episodes, arguments: DataArguments, processor: WorldVLAProcessor, seed: int
) -> dict[str, SampleDataset]:
    """Cut the samples of every split.

    Args:
        episodes (`Episodes`): the data set.
        arguments (`DataArguments`): which windows.
        processor (`WorldVLAProcessor`): lays the samples out.
        seed (`int`): see `Windows`.

    Returns:
        `dict[str, SampleDataset]`: by split.
    """
    options = WindowOptions(**{f.name: getattr(arguments, f.name) for f in fields(WindowOptions)})
    return {
        name: SampleDataset(split, processor, options, episodes.card["dataset_name"], seed)
        for name, split in episodes.open_splits().items()
    }


def make_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: WorldVLATrainingArguments,
    episodes: Episodes,
    processor: WorldVLAProcessor,
) -> WorldVLATrainer:
    """Put model, samples and options together; what does not fit is refused before anything is written.

    Args:
        model_arguments (`ModelArguments`): which model.
        data_arguments (`DataArguments`): which samples.
        training_arguments (`WorldVLATrainingArguments`): how it is trained.
        episodes (`Episodes`): the data set.
        processor (`WorldVLAProcessor`): that of the data set.

    Returns:
        `WorldVLATrainer`: ready to train; the output folder belongs to this run.

    Raises:
        FileNotFoundError: if there is no checkpoint where one is named.
        ValueError: if checkpoint, data and options do not fit together, or the output folder is another run's.
    """
    require_wanted_data(data_arguments, episodes, processor)
    if model_arguments.model_name_or_path is not None:
        require_checkpoint(model_arguments.model_name_or_path)
        require_same_data(model_arguments.model_name_or_path, episodes, processor)
    model: Any = build_model(model_arguments, data_arguments, processor)
    if model_arguments.lora_rank:
        model = add_adapters(model, model_arguments)
    samples = build_datasets(episodes, data_arguments, processor, training_arguments.seed)
    require_positions(samples, model.config)
    logger.info("%.1fM parameters, %d training samples", model.num_parameters() / 1e6, len(samples["train"]))
    settings = collect_settings(model_arguments, data_arguments, training_arguments, episodes.card)
    claim_folder(settings, Path(training_arguments.output_dir), training_arguments.process_index == 0)
    trainer = WorldVLATrainer(
        model=model,
        args=training_arguments,
        train_dataset=samples["train"],
        eval_dataset={name: split for name, split in samples.items() if name != "train"} or None,
        data_collator=choose_collator(data_arguments, model.config),
        bin_values=action_bin_values(processor, episodes.card["dataset_name"]),
        clipped_by_split=episodes.card.get("clipped_by_split"),
    )
    require_sharding(trainer.is_fsdp_enabled)
    if training_arguments.rollout_every:
        plan = RolloutPlan.for_training(training_arguments, episodes.card, processor)
        every = training_arguments.rollout_every
        trainer.add_callback(SimulatorRollouts(trainer, processor, episodes.card, plan, every))
    return trainer


def main(argv: list[str]) -> dict[str, Any]:
    """Command line entry: train, evaluate on the held-out splits, save.

    Args:
        argv (`list[str]`): `[recipe.yaml] [--flags]`.

    Returns:
        `dict`: metrics of the last evaluation, empty without held-out episodes.

    Raises:
        SystemExit: with `EXIT_STOPPED`, when SIGTERM or SIGINT ended training and its checkpoint is written.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model_arguments, data_arguments, demonstrations, training_arguments = parse_arguments(RUN_OPTIONS, argv)
    set_seed(training_arguments.seed)
    # Worker processes of the data loader cannot share an accelerator with the training.
    device = "cpu" if training_arguments.dataloader_num_workers else training_arguments.device
    episodes, processor = open_data(data_arguments, demonstrations, device)
    trainer = make_trainer(model_arguments, data_arguments, training_arguments, episodes, processor)
    trainer.train(resume_from_checkpoint=True)
    trainer.exit_if_stopped()
    with trainer.averaged_weights():
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
        options = {"model": model_arguments, "data": data_arguments}
        if demonstrations.demonstrations:
            options["demonstrations"] = demonstrations
        save_everything(trainer, processor, episodes.card, options, metrics | {"step": trainer.state.global_step})
    return metrics


if __name__ == "__main__":
    main(sys.argv[1:])
