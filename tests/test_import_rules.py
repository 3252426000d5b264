"""Who may import whom, read from the syntax trees: nothing is imported here."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("modeling_worldvla", "tokenization", "train", "evaluation")


def imports_of(path):
    """(level, module) of every import statement; `from . import x` gives (1, "")."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def files_of(package):
    files = sorted((ROOT / package).glob("*.py"))
    assert files, f"{package} is empty"
    return files


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("modeling_worldvla", set()),
        ("tokenization", set()),
        ("train", {"modeling_worldvla", "tokenization", "train"}),
        ("evaluation", {"modeling_worldvla", "tokenization", "evaluation"}),
    ],
)
def test_packages_import_only_what_the_design_allows(package, allowed):
    wrong = [
        f"{path.name}: {module}"
        for path in files_of(package)
        for level, module in imports_of(path)
        if level == 0 and module.split(".")[0] in OURS and module.split(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["modeling_worldvla", "tokenization"])
def test_files_that_travel_to_the_hub_import_flat(package):
    wrong = [
        f"{path.name}: level {level} {module!r}"
        for path in files_of(package)
        for level, module in imports_of(path)
        if level and (level > 1 or not module or "." in module)
    ]
    assert not wrong


def test_what_travels_needs_nothing_that_stays():
    """Files whose names end in `_worldvla` travel with a checkpoint; the others stay in the checkout."""
    wrong = [
        f"{path.name}: {module}"
        for package in OURS[:2]
        for path in files_of(package)
        if path.stem.endswith("_worldvla")
        for level, module in imports_of(path)
        if level and not module.endswith("_worldvla")
    ]
    assert not wrong


def test_file_names_are_unique_across_the_folders_that_travel():
    names = [path.name for package in OURS[:2] for path in files_of(package) if path.name != "__init__.py"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("package", ["train", "evaluation"])
def test_no_script_shadows_a_library(package):
    libraries = set(sys.stdlib_module_names) | {"datasets", "libero", "diffusers", "tokenizers", "accelerate"}
    assert not {path.stem for path in files_of(package)} & libraries


def test_files_keep_their_budget():
    lengths = {p: len(p.read_text("utf-8").splitlines()) for package in OURS for p in files_of(package)}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 400} == {}
