"""The tests that transformers puts its own processors through, run against ours.

They are part of transformers' source distribution, not of the installed package. Unpack one of the installed version
and name its folder in TRANSFORMERS_SOURCE; they also need the package `parameterized`.
"""

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path

import pytest

from tokenization import LIBERO_ACTION_LIMITS, VocabularyLayout, WorldVLAProcessor, train_text_tokenizer

from .conftest import make_vq_model

SOURCE = "TRANSFORMERS_SOURCE"

# Tests that cannot pass: why, and what they say. docs/fidelity.md has it at length.
DO_NOT_APPLY = {
    "test_init_arguments_not_in_class_attributes": (
        "`vq_model` is an argument and, because it is loaded lazily, a property",
        "has arguments ['vq_model'] that are also class attributes",
    ),
    "test_save_load_pretrained_additional_features": (
        "it adds two tokens, but the vocabulary is the model's and closed",
        "The text tokenizer has 65538 entries, the vocabulary layout 65536",
    ),
}
# Tests that must have run: the rest needs an image processor, videos, sound or a chat template.
APPLY = {
    "test_call_arguments_default_none",
    "test_call_arguments_not_in_attributes",
    "test_call_arguments_not_in_processor_kwargs",
    "test_chat_template_save_loading",
    "test_chat_template_saving_rejects_path_traversal",
    "test_flat_kwarg_applied_when_modality_dict_lacks_it",
    "test_init_arguments_not_in_processor_kwargs",
    "test_model_input_names",
    "test_no_redundant_default_kwargs",
    "test_processor_from_and_save_pretrained",
    "test_processor_from_and_save_pretrained_as_nested_dict",
    "test_processor_from_pretrained_vs_from_components",
    "test_processor_to_json_string",
    "test_subprocessor_defaults_0_text",
    "test_tokenizer_decode_defaults",
    "test_valid_processor_kwargs_set",
}


@pytest.fixture
def common_tests(monkeypatch):
    """The module of transformers that holds the tests."""
    source = os.environ.get(SOURCE)
    if not source:
        pytest.skip(f"needs transformers' source distribution; set {SOURCE} to its folder")
    path = Path(source, "tests", "test_processing_common.py")
    if not path.is_file():
        pytest.fail(f"{SOURCE} must name an unpacked source distribution of transformers, got {source!r}")
    pytest.importorskip("parameterized", reason="transformers' tests need the package `parameterized`")
    # It names files to download, for tests that do not concern us; the helper is not in the distribution.
    downloads = types.ModuleType("fetch_hub_objects_for_ci")
    downloads.url_to_local_path = lambda url: url
    monkeypatch.setitem(sys.modules, downloads.__name__, downloads)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("test_processing_common", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_test_case(module):
    class WorldVLAProcessorTest(module.ProcessorTesterMixin, unittest.TestCase):
        processor_class = WorldVLAProcessor

        @classmethod
        def _setup_tokenizer(cls):
            return train_text_tokenizer(["-"], VocabularyLayout.official(), min_frequency=10**6)

        @staticmethod
        def prepare_processor_dict():
            return {"action_limits": {"a": LIBERO_ACTION_LIMITS}, "binning": "official", "world_model_prompt": "paper"}

        @classmethod
        def _setup_from_components(cls):
            vq_model = make_vq_model(num_vq_embeddings=8192)  # without one, nothing is saved
            return WorldVLAProcessor(cls._setup_tokenizer(), vq_model=vq_model, **cls.prepare_processor_dict())

    return WorldVLAProcessorTest


@pytest.mark.slow
def test_transformers_own_processor_tests(common_tests):
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(make_test_case(common_tests))
    names = {name_of(test) for test in tests}
    result = unittest.TestResult()
    tests.run(result)
    failed = {name_of(test): text for test, text in result.failures + result.errors}
    skipped = {name_of(test) for test, _ in result.skipped}
    assert set(failed) == set(DO_NOT_APPLY) & names, "\n".join(
        failed[name] for name in set(failed) - set(DO_NOT_APPLY)
    )
    for name, text in failed.items():
        assert DO_NOT_APPLY[name][1] in text
    assert names - skipped - set(failed) >= APPLY & names
    assert len(APPLY & names) >= 10  # older versions have fewer


def name_of(test):
    return test.id().rsplit(".", 1)[-1]
