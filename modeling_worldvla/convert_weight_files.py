"""Writing safetensors from memory-mapped weights, a small piece at a time.

`safetensors.torch.save_file` copies all tensors of a file before it writes; for shards of 10 GB that doubles the
memory. The format is a length, a JSON header and the bytes: https://github.com/huggingface/safetensors#format.
"""

import json
from pathlib import Path

import torch

PIECE = 2**20  # elements read, looked at and written at once
_ALIGNMENT = 8
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> int:
    """Write one safetensors file.

    Args:
        path (`Path`): the file.
        weights (`dict[str, torch.Tensor]`): float32, float16 or bfloat16, on the CPU; may be memory-mapped.

    Returns:
        `int`: bytes of all weights, without the header.

    Raises:
        ValueError: at the first weight that holds NaN or infinities; the file is not whole then.
        OSError: if the disk is full; the file is not whole then.
    """
    # Wide ones first: then each begins at a multiple of its width.
    names = sorted(weights, key=lambda name: -weights[name].element_size())
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        weight, start = weights[name], end
        end += weight.numel() * weight.element_size()
        header[name] = {"dtype": _NAMES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in weights[name].reshape(-1).split(PIECE):
                if not piece.isfinite().all():
                    raise ValueError(
                        f"The weight `{name}` holds NaN or infinities. The file is damaged, or the training that "
                        "wrote it diverged. Download it again, or take another checkpoint."
                    )
                file.write(piece.view(torch.uint8).numpy())
    return end
