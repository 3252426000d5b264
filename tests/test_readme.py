"""Every command line in README and docs is one that its script understands."""

import re
import shlex
from pathlib import Path

import pytest

from evaluation.arguments import ReconstructArguments, RolloutArguments
from evaluation.arguments import parse_arguments as parse_evaluation
from evaluation.compare import CompareArguments
from evaluation.counterfactual import CounterfactualArguments
from evaluation.demo import DemoArguments
from evaluation.demo_train import DemoTrainArguments
from evaluation.fit_progress import FitProgressArguments
from evaluation.imagine_arguments import ImagineArguments
from evaluation.record_demonstrations import RecordingArguments
from evaluation.rerender import RerenderArguments
from evaluation.world_model_arguments import WorldModelArguments
from train.ablation import AblationArguments
from train.argument_parsing import parse_arguments
from train.pretokenize_arguments import PretokenizeArguments
from train.run import RUN_OPTIONS
from train.run_perceptual import PerceptualArguments
from train.vqgan_arguments import VQGANArguments

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "train/run_vqgan.py": [VQGANArguments],
    "train/run_perceptual.py": [PerceptualArguments],
    "train/pretokenize.py": [PretokenizeArguments],
    "train/ablation.py": [AblationArguments],
    "train/run.py": list(RUN_OPTIONS),
    "evaluation/record_demonstrations.py": RecordingArguments,
    "evaluation/rerender.py": RerenderArguments,
    "evaluation/run.py": RolloutArguments,
    "evaluation/compare.py": CompareArguments,
    "evaluation/fit_progress.py": FitProgressArguments,
    "evaluation/imagine.py": ImagineArguments,
    "evaluation/reconstruct.py": ReconstructArguments,
    "evaluation/measure_world_model.py": WorldModelArguments,
    "evaluation/counterfactual.py": CounterfactualArguments,
    "evaluation/demo.py": DemoArguments,
    "evaluation/demo_train.py": DemoTrainArguments,
}
COMMAND = re.compile(r"^(?:python|accelerate launch) +((?:train|evaluation)/\S+\.py(?:.*\\\n)*.*)$", re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [(path.name, command) for path in PAGES for command in COMMAND.findall(path.read_text(encoding="utf-8"))]


def test_there_are_commands():
    assert {command.split()[0] for _, command in COMMANDS} == set(CLASSES)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_documented_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *flags = shlex.split(command.replace("\\\n", " "))
    classes = CLASSES[script]
    if isinstance(classes, list):
        parse_arguments(classes, flags)
    else:
        parse_evaluation(classes, flags)


@pytest.mark.parametrize(("target", "script"), [("demo", "demo.py"), ("demo-train", "demo_train.py")])
def test_make_starts_the_demos(target, script):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target}: setup\n\t(.+)$", makefile, re.MULTILINE).group(1)
    assert recipe.endswith(" $(DEMO_ARGS)")
    program, path, *flags = shlex.split(recipe.removesuffix("$(DEMO_ARGS)"))
    assert (program, path) == ("$(BIN)/python", f"evaluation/{script}")
    arguments = parse_evaluation(CLASSES[path], flags)
    assert arguments.output_dir == f"outputs/{target}"
    assert arguments.output_dir in re.search(r"^clean-demo:\n\trm -rf (.+)$", makefile, re.MULTILINE).group(1).split()
    assert {target, "clean-demo"} <= set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (path.parent / link).exists()]
    assert not missing
