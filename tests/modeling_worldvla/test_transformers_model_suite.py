"""transformers' own tests of models, run on ours.

They are in the source distribution of transformers (`pip download --no-binary :all: --no-deps transformers==...`), not
in its installed package. Unpack one of the installed version and name its folder in TRANSFORMERS_SOURCE; they need the
package `parameterized` too. The source distribution leaves out the tests of `generate`, of exporters and of several
processes; what they are about is tested in our own words, in test_generate.py and beside it.
"""

import importlib
import os
import unittest
from pathlib import Path

import pytest
import torch
from transformers import testing_utils
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from modeling_worldvla import WorldVLAForCausalLM, WorldVLAModel

from .sequences import SIZES, Writer, tiny_config

SOURCE = "TRANSFORMERS_SOURCE"
PACKAGE = "transformers_own_tests"
# Modules that the tests import, but the source distribution does not hold, and the classes they name.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
# Markers on them, which pytest wants to be told of.
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_training_test",
    "torch_compile_test",
)

# Tests that cannot pass: why, and what they say. docs/fidelity.md has it at length.
NEEDS_IDS = ("the action rule is read from token ids", "got `inputs_embeds` without `action_block_ids`")
TOO_LONG = ("it feeds more tokens than there are positions", "A sequence may have at most 400 tokens")
DO_NOT_APPLY = {
    "test_causal_lm_loss_honors_shift_labels": ("a part of a row does not tell its role", "The role of a sample"),
    "test_model_forward_default_config_values": (
        "token ids are those of a vocabulary: leaving one out takes that of the official one",
        "`sep_token_id` must lie inside the vocabulary of 200 entries, got 8710",
    ),
    "test_model_rope_scaling_from_config_0_linear": TOO_LONG,
    "test_model_rope_scaling_from_config_1_dynamic": TOO_LONG,
    "test_model_rope_scaling_from_config_2_yarn": TOO_LONG,
}
DO_NOT_APPLY_WITH_MASK = {"test_inputs_embeds": NEEDS_IDS, "test_inputs_embeds_matches_input_ids": NEEDS_IDS}
# Tests that ask for attention weights whatever the attention is. They exist with eager attention only.
WANT_WEIGHTS = ("test_capture_outputs_decorator", "test_model_outputs_equivalence")
# How many must have passed, at least: a change of theirs must not empty the suite.
NUM_PASSED = 85


@pytest.fixture
def own_tests(monkeypatch, tmp_path, request):
    """A package of transformers' test modules."""
    source = os.environ.get(SOURCE)
    if not source:
        pytest.skip(f"needs transformers' source distribution; set {SOURCE} to its folder")
    files = list(Path(source, "tests").glob("test_*.py"))
    if not files:
        pytest.fail(f"{SOURCE} must name an unpacked source distribution of transformers, got {source!r}")
    pytest.importorskip("parameterized", reason="transformers' tests need the package `parameterized`")
    folder = tmp_path / PACKAGE
    folder.mkdir()
    for path in files:
        (folder / path.name).symlink_to(path.resolve())
    for module, name in LEFT_OUT.items():
        path = folder / (module.replace(".", "/") + ".py")
        path.parent.mkdir()
        path.write_text(f"class {name}:\n    pass\n")
    for marker in MARKERS:
        request.config.addinivalue_line("markers", f"{marker}: of transformers' own tests")
    monkeypatch.setitem(MODEL_MAPPING_NAMES, "worldvla", WorldVLAModel.__name__)
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "worldvla", WorldVLAForCausalLM.__name__)
    monkeypatch.setattr(testing_utils, "_run_slow_tests", True)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda module: importlib.import_module(f"{PACKAGE}.{module}")


class ModelTester:
    """A tiny configuration and a batch of policy samples, under the names that transformers' tests know."""

    causal_lm_class, base_model_class = WorldVLAForCausalLM, WorldVLAModel
    is_training = True
    batch_size = 4
    hidden_size, num_hidden_layers = SIZES["hidden_size"], SIZES["num_hidden_layers"]
    num_attention_heads = SIZES["num_attention_heads"]

    def __init__(self, **changes):
        self.changes = {"initializer_range": 0.02, **changes}
        writer = Writer()
        self.input_ids = torch.tensor([sum(writer.policy(3, 2), []) for _ in range(self.batch_size)])
        self.seq_length = self.input_ids.shape[1]

    def get_config(self):
        return tiny_config(**self.changes)

    def prepare_config_and_inputs_for_common(self):
        inputs = {"input_ids": self.input_ids, "attention_mask": torch.ones_like(self.input_ids)}
        return self.get_config(), {name: value.clone() for name, value in inputs.items()}


def make_test_case(own_tests, use_mask):
    common, training = own_tests("test_modeling_common"), own_tests("test_training_mixin")
    mixins = common.ModelTesterMixin, training.TrainingTesterMixin, common.GenerationTesterMixin

    class WorldVLAModelTest(*mixins, unittest.TestCase):
        all_model_classes = (WorldVLAModel, WorldVLAForCausalLM)
        test_can_init_all_missing_weights_before_2023 = True  # our files tell no year
        model_tester = None

        def setUp(self):
            wants_weights = self._testMethodName in WANT_WEIGHTS
            attention = {"attn_implementation": "eager"} if wants_weights else {}
            self.model_tester = ModelTester(use_action_attention_mask=use_mask, **attention)

        def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
            """A sample to learn by heart. transformers' own counts from 1 to 19, through all of our markers."""
            tokens = torch.tensor([sum(Writer().policy(3, 6), [])] * batch_size)
            return {"input_ids": tokens, "labels": tokens.clone()}

    return WorldVLAModelTest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("use_mask", [True, False])
def test_transformers_own_model_tests(own_tests, use_mask):
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(make_test_case(own_tests, use_mask))
    names = {name_of(test) for test in tests}
    result = unittest.TestResult()
    tests.run(result)
    failed = {name_of(test): text for test, text in result.failures + result.errors}
    skipped = {name_of(test) for test, _ in result.skipped}
    cannot_pass = {**DO_NOT_APPLY, **(DO_NOT_APPLY_WITH_MASK if use_mask else {})}
    unexpected = [text for name, text in failed.items() if name not in cannot_pass]
    assert not unexpected, "\n".join(unexpected)
    assert set(failed) == set(cannot_pass) & names
    for name, text in failed.items():
        assert cannot_pass[name][1] in text
    assert len(names - skipped - set(failed)) >= NUM_PASSED


def name_of(test):
    return test.id().rsplit(".", 1)[-1].split(" ")[0]  # subtests have the class behind it
