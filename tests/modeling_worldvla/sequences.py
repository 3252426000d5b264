"""Small configurations and made-up token sequences for the tests of the model."""

import torch

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    "initializer_range": 0.3,
    "action_dim": 3,
    "chunk_size": 4,
}
TOKENS = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "boi_token_id": 3,
    "eoi_token_id": 4,
    "eol_token_id": 5,
    "sep_token_id": 6,
    "boa_token_id": 7,
    "eoa_token_id": 8,
    "grid_token_id_start": 9,
    "action_token_id_start": 30,
    "num_action_tokens": 20,
    "image_token_id_start": 60,
    "num_image_tokens": 40,
}


def tiny_config(**changes):
    return WorldVLAConfig(**{**SIZES, **TOKENS, **changes})


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return WorldVLAForCausalLM(tiny_config(**changes)).eval()


class Writer:
    """Writes made-up blocks of tokens for `tiny_config`."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def _draw(self, low, high, count):
        return torch.randint(low, high, (count,), generator=self.generator).tolist()

    def text(self, count):
        return self._draw(110, 190, count)

    def image(self, height, width):
        rows = [self._draw(60, 100, width) + [5] for _ in range(height)]
        return [3, 9 + height // 2, 9 + width // 2] + sum(rows, []) + [4]

    def action(self):
        return [7, *self._draw(30, 50, 3), 8]

    def policy(self, text=5, actions=0):
        prompt = [0, *self.text(text), *self.image(2, 4), *self.image(2, 2), 6]
        answer = sum((self.action() for _ in range(actions)), [])
        return prompt, answer + [6]

    def world_model(self, text=5, steps=1, height=2, width=2):
        history = sum((self.image(height, width) + self.action() for _ in range(steps)), [])
        return [0, *self.text(text), *history, 6], self.image(height, width) + [6]


def pad_left(rows):
    """Pad lists of ids to one tensor; returns ids and attention mask."""
    length = max(len(row) for row in rows)
    ids = [[TOKENS["pad_token_id"]] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def training_batch(seed=0):
    """Two policy and two world-model samples, padded on the left: ids, mask, labels."""
    writer = Writer(seed)
    samples = [writer.policy(4, 2), writer.world_model(7, 2), writer.policy(6, 3), writer.world_model(3)]
    ids, mask = pad_left([prompt + answer for prompt, answer in samples])
    labels = ids.clone()
    for row, (_, answer) in enumerate(samples):
        labels[row, : -len(answer)] = -100
    return ids, mask, labels
