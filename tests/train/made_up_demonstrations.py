"""Demonstrations of a square that wanders over a grey table, in LIBERO's own layout, with masks where wanted."""

import json

import h5py
import numpy as np

import tokenization

SIZE, STEPS = 32, 6
NAMES = ("background", "robot", "gripper", "square_1")
TINY_VQ_MODEL = {**tokenization.VQ_MODEL_PRESETS["tiny-128"], "block_out_channels": (8,) * 5, "num_vq_embeddings": 16}


def write_demonstrations(path, episodes=3, size=SIZE, cameras=("agentview",), masks=False, stride=1):
    """Write a file; with a stride n, pictures and masks of every n-th step alone."""
    generator = np.random.default_rng(0)
    keys = {"agentview": "agentview", "wrist": "eye_in_hand"}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "move the square"})
        data.attrs["macros_image_convention"] = "opengl"
        for number in range(episodes):
            group = data.create_group(f"demo_{number}")
            group["actions"] = generator.uniform(-1, 1, (STEPS, 7))
            group["states"] = generator.normal(size=(STEPS, 5))
            group["rewards"] = group["dones"] = np.zeros(STEPS, np.uint8)
            group["obs/ee_states"] = generator.normal(size=(STEPS, 6))
            group["obs/gripper_states"] = generator.normal(size=(STEPS, 2))
            for offset, camera in enumerate(cameras):
                frames, mask = draw_square(number + 2 * offset, size)
                group[f"obs/{keys[camera]}_rgb"] = frames[::stride]
                if masks:
                    group[f"obs/{keys[camera]}_segmentation"] = mask[::stride]
            if masks:
                group.attrs["segmentation_names"] = json.dumps(NAMES)
                group.attrs["objects_of_interest"] = json.dumps(["square_1"])
            if stride > 1:
                group.attrs["picture_stride"] = stride
    return str(path)


def draw_square(number, size):
    """Pictures `(T, size, size, 3)` and masks `(T, size, size)` of one episode."""
    frames, masks = np.full((STEPS, size, size, 3), 120, np.uint8), np.zeros((STEPS, size, size), np.uint8)
    for step in range(STEPS):
        where = (step, slice(4 * step, 4 * step + 8), slice(3 * number, 3 * number + 8))
        frames[where] = (250, 40, 30)
        masks[where] = NAMES.index("square_1")
        frames[step, -4:, :4], masks[step, -4:, :4] = 30, NAMES.index("gripper")
    return frames, masks
