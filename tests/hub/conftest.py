"""A stand-in for the Hub: takes what would be uploaded, and gives it back as a cache that works without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import modeling_worldvla.hub_worldvla

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Takes our packages off the path, and fails if one can still be imported.
CLEAN = """
import importlib.util, os, sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path = [path for path in sys.path if path not in ("", ROOT)]
if any(importlib.util.find_spec(name) for name in ("modeling_worldvla", "tokenization", "train", "evaluation")):
    sys.exit("our packages can be imported here, so this shows nothing")
"""


class Hub:
    """One repository in memory; what `HfApi` would send ends here."""

    def __init__(self, folder):
        self.folder, self.files, self.commits, self.created, self.branches = folder, {}, [], [], []
        self.reachable = True

    def create_repo(self, repo_id, **options):
        self.created.append((repo_id, options))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"someone/{repo_id}")

    def create_commit(self, repo_id, operations, **options):
        new = {operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations}
        self.commits.append((repo_id, new, {name: value for name, value in options.items() if value is not None}))
        self.files |= new
        return SimpleNamespace(oid=COMMIT)

    def upload_folder(self, repo_id, folder_path, ignore_patterns=None, **options):
        paths = [path for path in sorted(Path(folder_path).rglob("*")) if path.is_file()]
        names = [path.relative_to(folder_path).as_posix() for path in paths]
        kept = list(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        operations = [SimpleNamespace(path_in_repo=name, path_or_fileobj=Path(folder_path, name)) for name in kept]
        return self.create_commit(repo_id, operations, **options)

    def download(self, repo_id, file, revision=None, token=None):
        if not self.reachable:
            raise LocalEntryNotFoundError("no network")
        if file not in self.files:
            raise EntryNotFoundError(file)
        path = self.folder / "downloaded" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[file])
        return str(path)

    @property
    def card(self):
        return self.files["README.md"].decode()

    def cache(self, repo_id, home):
        """Write what was uploaded as a download of `repo_id` into the cache under `home`."""
        repository = home / "hub" / f"models--{repo_id.replace('/', '--')}"
        for name, content in self.files.items():
            path = repository / "snapshots" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return home


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *given, **options: hub.create_repo(*given, **options))
    monkeypatch.setattr(HfApi, "create_branch", lambda self, repo_id, branch, **_: hub.branches.append(branch))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, *given, **options: hub.create_commit(*given, **options))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: hub.upload_folder(**options))
    monkeypatch.setattr(modeling_worldvla.hub_worldvla, "hf_hub_download", hub.download)
    return hub


@pytest.fixture
def run_clean(tmp_path):
    """Run code in a process that has nothing of ours, with a cache of its own; returns what it printed."""

    def run(code, *arguments, home=None, cwd=None):
        home = home or tmp_path / "home"
        home.mkdir(exist_ok=True)
        hidden = {"PYTHONPATH", "HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, "-c", f"ROOT = {str(ROOT)!r}\n{CLEAN}\n{code}", *map(str, arguments)],
            cwd=cwd or home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def snippets(text, language="python"):
    """The code blocks of a Markdown text."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    """A folder that holds a tiny model and its processor."""
    folder = tmp_path / "checkpoint"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
