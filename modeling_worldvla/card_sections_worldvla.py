"""The sections of a model card: what the model is, how one runs it, what it was trained on, under which licence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .card_results_worldvla import markdown_lines

NOT_RECORDED = "Not recorded in the files of this checkpoint."
LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
_SNIPPET = """```python
import numpy as np
from transformers import AutoModelForCausalLM, AutoProcessor

checkpoint = "{checkpoint}"{comment}
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).eval()

# Your frames, upright RGB, {order}: NumPy, PIL or torch.
frames = [np.zeros(({height}, {width}, 3), np.uint8)] * {frames}

# Policy: what to do now?
inputs = processor(images=frames, text="{task}"{dataset}, return_tensors="pt")
chunk = model.predict_action_chunk(**inputs)  # action token ids (1, {chunk_size}, {action_dim})
actions = processor.decode_actions(chunk{dataset})  # commands in the data set's units

# World model: what will the camera see if I do that?
inputs = processor(
    images={last}, actions=actions[0, :1], role="world_model"{dataset}, return_tensors="pt"
)
tokens = model.predict_next_frame(**inputs)  # image token ids (1, h, w)
picture = processor.decode_images(tokens)[0]  # PIL.Image
```"""
_DECODER = """This folder holds the decoder without its head: it gives hidden states, and can neither act nor imagine.
```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{checkpoint}", trust_remote_code=True).eval()
```"""


def describe_use() -> str:
    """What the checkpoint is, what it is for and what it is not for."""
    return (
        "A WorldVLA model ([arXiv 2506.21539](https://arxiv.org/abs/2506.21539)): one autoregressive transformer over "
        "one vocabulary of text, image and action tokens. As a **policy** it turns an instruction and camera frames "
        "into a chunk of robot actions; as a **world model** it turns a frame and an action into the next frame.\n\n"
        "**Intended use**: research on robot learning, in simulation or on a robot that somebody watches. It knows "
        "the robot, camera, action space and tasks of its training data and nothing else; another robot needs other "
        "action limits and more training. **Not for** moving a robot near people without an independent safety "
        "system: nothing here checks force, speed or reach. Imagined frames may look right and be wrong."
    )


def describe_model(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
    """Sizes, as far as the files say.

    Args:
        folder (`Path`): the checkpoint; its weights are counted.
        config (`Mapping`): `config.json`.
        processor (`Mapping`): `processor_config.json`, empty without one.

    Returns:
        `str`: a Markdown table.
    """
    count = None if "quantization_config" in config else count_parameters(folder)
    size = processor.get("image_size")
    limits = processor.get("action_limits") or {}
    rows = [
        ["parameters", "not recorded" if count is None else f"{count / 1e6:,.1f}M, {config.get('dtype')}"],
        ["layers x width", f"{config['num_hidden_layers']} x {config['hidden_size']}"],
        ["vocabulary", f"{config['vocab_size']} entries, {config['num_image_tokens']} of them image tokens"],
        ["positions", config["max_position_embeddings"]],
        ["roles", "policy, world model"],
        ["frames in a policy prompt (M)", config["n_obs_steps"]],
        ["actions in a chunk (K)", f"{config['chunk_size']}, {config['action_dim']} numbers each"],
        ["frame-action pairs in a world-model prompt", config["world_model_history"]],
        ["attention", "action mask" if config["use_action_attention_mask"] else "causal"],
        ["image size", f"{size[0]} x {size[1]} pixels" if size else "the processor's, which lies elsewhere"],
        ["action limits", ", ".join(limits) or "the processor's, which lies elsewhere"],
    ]
    return markdown_lines(["what", "value"], rows)


def how_to_run(
    config: Mapping[str, Any], processor: Mapping[str, Any], data: Mapping[str, Any], checkpoint: str
) -> str:
    """The snippet that loads, acts and imagines, and the commands that measure.

    Args:
        config (`Mapping`): `config.json`.
        processor (`Mapping`): `processor_config.json`, empty without one.
        data (`Mapping`): `data_card.json`, empty without one.
        checkpoint (`str`): Hub id, or `.`.

    Returns:
        `str`: Markdown.
    """
    if "WorldVLAModel" in (config.get("architectures") or ()):
        return _DECODER.format(checkpoint=checkpoint)
    height, width = processor.get("image_size") or (256, 256)
    names = list(processor.get("action_limits") or {})
    trained_on = str(data.get("dataset_name"))
    # One data set is found without its name; of several, the reader is shown where to choose.
    name = f', dataset_name="{names[0]}"' if len(names) > 1 else ""
    cameras = list(data.get("cameras") or [data.get("camera", "camera")])
    oldest = "oldest first" if len(cameras) == 1 else f"oldest moment first, of each {', then '.join(cameras)}"
    snippet = _SNIPPET.format(
        checkpoint=checkpoint,
        comment="  # this folder, or its name on the Hub" if checkpoint == "." else "",
        height=height,
        width=width,
        frames=config["n_obs_steps"] * len(cameras),
        order=oldest,
        last="frames[-1:]" if len(cameras) == 1 else f"[frames[-{len(cameras)}]]",
        task="pick up the alphabet soup and place it in the basket",
        dataset=name,
        chunk_size=config["chunk_size"],
        action_dim=config["action_dim"],
    )
    suite = trained_on if trained_on in LIBERO_SUITES else "libero_object"
    commands = [
        f"python evaluation/run.py     --checkpoint {checkpoint} --suite {suite} --output_dir results/",
        f"python evaluation/imagine.py --checkpoint {checkpoint} --demonstrations demos/ --output imagined.mp4",
    ]
    return (
        "Needs `torch`, `transformers`, `diffusers`, `safetensors` and `pillow`; nothing else of ours has to be "
        "installed, the code lies beside the weights.\n\n"
        f"{snippet}\n\n"
        "Success in the LIBERO simulator, and imagined frames against recorded ones; from a checkout of the worldvla "
        "project:\n\n"
        "```bash\n" + "\n".join(commands) + "\n```"
    )


def describe_data(data: Mapping[str, Any]) -> str:
    """What `data_card.json` says about the training data."""
    if not data:
        return NOT_RECORDED
    sources, splits = data["sources"], data["splits"]
    rows = [
        ["data set", data["dataset_name"]],
        ["camera", data["camera"]],
        ["files", f"{len(sources)}: {', '.join(_stem(source['file']) for source in sources[:10])}"],
        ["episodes", ", ".join(f"{name} {count}" for name, count in splits.items())],
        ["steps, all splits", data["steps"]],
        ["image tokens a frame", f"{data['grid'][0]} x {data['grid'][1]}"],
        ["action values outside of the limits, clipped", data["clipped_action_values"]],
    ]
    if len(sources) > 10:
        rows[2][1] += f" and {len(sources) - 10} more"
    return markdown_lines(["what", "value"], rows)


def describe_training(log: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """How long was trained, from which weights on, and the scores on held-out episodes.

    Args:
        log (`Sequence[Mapping]`): `training_log.json`; its end counts.
        options (`Mapping`): `training_args.json`.

    Returns:
        `str`: Markdown. Of an absolute path only the last part is told: a card is public.
    """
    if not log:
        return NOT_RECORDED
    last: dict[str, Any] = {}
    for entry in log:
        last |= entry
    epochs = f", {last['epoch']:.2f} epochs" if "epoch" in last else ""
    begun = (options.get("model") or {}).get("model_name_or_path")
    on_from = f", on from the weights `{Path(begun).name if Path(begun).is_absolute() else begun}`" if begun else ""
    lines = [f"{last.get('step', 'An unknown number of')} optimizer steps{epochs}{on_from}."]
    scores = {
        name.removeprefix("eval_"): value
        for name, value in last.items()
        if name.startswith("eval_") and isinstance(value, float) and not name.endswith(("runtime", "per_second"))
    }
    if scores:
        lines.append(
            "Scores on the held-out splits at the end (losses in nats per token; teacher-forced, so no success "
            "rates; one evaluation each, no interval):"
        )
        lines.append(markdown_lines(["score", "value"], [[name, f"{value:.4f}"] for name, value in scores.items()]))
    else:
        lines.append("No held-out split was evaluated.")
    return "\n\n".join(lines)


def describe_licence(config: Mapping[str, Any]) -> str:
    """Under which licence code and weights are, and what is not ours to give."""
    code = "The code in this folder is under the Apache License 2.0."
    base = config.get("derived_from")
    if base is None:
        return f"{code} So are the weights, unless their authors say otherwise above."
    return (
        f"{code} **The weights are not ours to license**: they derive from [{base}](https://huggingface.co/{base}), "
        "and text tokenizer and VQ-GAN from Meta's Chameleon. Check the licences there, Chameleon's included, before "
        "you use or share them; what they ask for (notices, limits of use) holds for this folder too."
    )


def count_parameters(folder: Path) -> int | None:
    """Count the numbers in a checkpoint's safetensors files, from their headers.

    Args:
        folder (`Path`): the checkpoint.

    Returns:
        `int`: None where there are no such files.
    """
    from safetensors import safe_open

    total = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                total += size
    return total or None


def _stem(file: str) -> str:
    """The name of a file of demonstrations, without folder and ending."""
    return Path(file).name.removesuffix(".hdf5")


__all__ = [
    "count_parameters",
    "describe_data",
    "describe_licence",
    "describe_model",
    "describe_training",
    "describe_use",
    "how_to_run",
]
