"""transformers' own tests of models, run on ours.

They are in the source distribution of transformers (`pip download --no-binary :all: --no-deps transformers==...`), not in
its installed package. Unpack one of the installed version and name its folder in TRANSFORMERS_SOURCE; they also need the
package `parameterized`. What the source distribution leaves out (tests of `generate` and of exporters) is in
test_generate.py and test_modeling.py in words of our own.
"""

import importlib
import os
import sys
import unittest
from pathlib import Path

import pytest
import torch

from modeling_worldvla import WorldVLAForCausalLM, WorldVLAModel

from .sequences import SIZES, Writer, tiny_config

SOURCE = "TRANSFORMERS_SOURCE"
PACKAGE = "transformers_own_tests"
# Modules that the tests import, but the source distribution does not hold, and the classes they name.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
# Markers on them, which pytest wants to be told of.
MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate", "is_training_test", "torch_compile_test", "torch_export_test")

# Tests that cannot pass: why, and what they say. docs/fidelity.md has it at length.
DO_NOT_APPLY: dict[str, tuple[str, str]] = {}


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
    monkeypatch.syspath_prepend(tmp_path)
    return lambda module: importlib.import_module(f"{PACKAGE}.{module}")


class ModelTester:
    """A tiny configuration and a batch of policy samples, under the names that transformers' tests know."""

    causal_lm_class, base_model_class = WorldVLAForCausalLM, WorldVLAModel
    is_training = True
    batch_size, num_actions = 4, 2
    hidden_size, num_hidden_layers = SIZES["hidden_size"], SIZES["num_hidden_layers"]
    num_attention_heads = SIZES["num_attention_heads"]

    def __init__(self):
        writer = Writer()
        rows = [sum(writer.policy(3, self.num_actions), []) for _ in range(self.batch_size)]
        self.input_ids = torch.tensor(rows)
        self.seq_length = self.input_ids.shape[1]

    def get_config(self):
        return tiny_config(initializer_range=0.02)

    def prepare_config_and_inputs_for_common(self):
        inputs = {"input_ids": self.input_ids, "attention_mask": torch.ones_like(self.input_ids)}
        return self.get_config(), {name: value.clone() for name, value in inputs.items()}


def make_test_case(own_tests):
    common, training = own_tests("test_modeling_common"), own_tests("test_training_mixin")
    mixins = common.ModelTesterMixin, training.TrainingTesterMixin, common.GenerationTesterMixin

    class WorldVLAModelTest(*mixins, unittest.TestCase):
        all_model_classes = (WorldVLAModel, WorldVLAForCausalLM)
        model_tester = None

        def setUp(self):
            self.model_tester = ModelTester()

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class)
            if return_labels and model_class is WorldVLAForCausalLM:
                inputs["labels"] = inputs["input_ids"].clone()
            return inputs

    return WorldVLAModelTest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_transformers_own_model_tests(own_tests):
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(make_test_case(own_tests))
    names = {name_of(test) for test in tests}
    result = unittest.TestResult()
    tests.run(result)
    failed = {name_of(test): text for test, text in result.failures + result.errors}
    skipped = {name_of(test): why for test, why in result.skipped}
    if os.environ.get("DUMP"):
        import json
        Path(os.environ["DUMP"]).write_text(json.dumps({"names": sorted(names), "failed": failed, "skipped": skipped}, indent=1))
    assert set(failed) == set(DO_NOT_APPLY) & names, "\n".join(failed[name] for name in set(failed) - set(DO_NOT_APPLY))
    for name, text in failed.items():
        assert DO_NOT_APPLY[name][1] in text


def name_of(test):
    return test.id().rsplit(".", 1)[-1]
