"""Uploading a checkpoint to the Hub, with its model card; what people wrote into the card there is kept."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from .model_card_worldvla import CARD_FILE, build_model_card, handwritten_text, load_card

# What training leaves in a folder that nobody who loads the checkpoint needs.
NOT_UPLOADED = (
    "checkpoint-*/*",
    "training_args.bin",
    "trainer_state.json",
    "*optimizer*",
    "*scheduler*",
    "rng_state*",
    ".*",
    "**/.*",
    "runs/*",
    "rollouts/*",
    "settings.json",
    "_unfinished/*",
)
_CARD_OPTIONS = ("evaluation_files", "datasets")
_HUB_OPTIONS = (
    *("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags"),
    *_CARD_OPTIONS,
)


def upload_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    evaluation_files: Sequence[str | Path] | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Upload a folder that holds a checkpoint, in one commit, after writing its card.

    Args:
        folder (`str` or `Path`): the checkpoint; its README.md is written anew, what people wrote there is kept.
        repo_id (`str`): repository on the Hub, made if it is missing.
        evaluation_files (`Sequence[str | Path]`, *optional*): see `build_model_card`.
        datasets (`Sequence[str]`): Hub ids of the training data, for the card.
        tags (`Sequence[str]` or `str`, *optional*): more tags of the card.
        private (`bool`, *optional*): of a new repository; by default as the account has it.
        token (`str` or `bool`, *optional*): of the Hub; by default the stored one.
        revision (`str`, *optional*): branch, made if it is missing.
        create_pr (`bool`): open a pull request instead.
        commit_message (`str`, *optional*): first line of the commit's message.
        commit_description (`str`, *optional*): the rest of it.

    Returns:
        `CommitInfo`: where it is now.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if a file of results cannot be read, or people wrote different texts into both cards.
        OSError: if the Hub cannot be reached; nothing was uploaded then.
    """
    path, api = Path(folder), HfApi(token=token)
    options = {"evaluation_files": evaluation_files, "datasets": datasets}
    build_model_card(path, repo_id, **options)  # type: ignore[arg-type]  # refuses before a repository is made
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    existing = choose_card(path, read_remote_card(repo_id, revision, token), repo_id)
    card = build_model_card(path, repo_id, existing=existing, **options)  # type: ignore[arg-type]
    data: Any = card.data
    data.tags = list(dict.fromkeys([*data.tags, *_as_list(tags)]))
    card.save(path / CARD_FILE)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=path,
        commit_message=commit_message or "Upload checkpoint",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
        ignore_patterns=list(NOT_UPLOADED),
    )


def read_remote_card(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> ModelCard | None:
    """Read the card of a repository.

    Args:
        repo_id (`str`): repository on the Hub.
        revision (`str`, *optional*): branch.
        token (`str` or `bool`, *optional*): of the Hub.

    Returns:
        `ModelCard`: None if the repository has none.

    Raises:
        OSError: if the Hub cannot be reached: then nobody knows whether there is one.
        ValueError: if its metadata cannot be read.
    """
    try:
        path = hf_hub_download(repo_id, CARD_FILE, revision=revision, token=token)
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"The card of `{repo_id}` could not be read, so nothing was uploaded: it might overwrite what people "
            "wrote there. Try again when the Hub can be reached."
        ) from error
    except EntryNotFoundError:
        return None
    return load_card(path)


def choose_card(folder: Path, remote: ModelCard | None, repo_id: str) -> ModelCard | None:
    """Decide which card goes on: the one that people wrote into, the repository's otherwise.

    Args:
        folder (`Path`): may hold a card.
        remote (`ModelCard`, *optional*): the repository's.
        repo_id (`str`): for the message.

    Returns:
        `ModelCard`: None if there is none at all.

    Raises:
        ValueError: if people wrote different texts into both.
    """
    path = folder / CARD_FILE
    local = load_card(path) if path.is_file() else None
    if local is None or remote is None:
        return remote if local is None else local
    texts = [handwritten_text(card) for card in (local, remote)]
    if texts[0] and texts[1] and texts[0] != texts[1]:
        raise ValueError(
            f"People wrote different texts into `{path}` and into the card of `{repo_id}`. Nothing was uploaded. "
            "Bring the one in the repository up to date by hand, delete the other, and try again."
        )
    return local if texts[0] and not texts[1] else remote


def _as_list(tags: Sequence[str] | str | None) -> list[str]:
    """One tag, several or none."""
    return [tags] if isinstance(tags, str) else list(tags or ())


class WorldVLAHubModel(PreTrainedModel):
    """A model whose `push_to_hub` writes a model card."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write configuration, weights and code into a folder.

        Args:
            save_directory (`str` or `os.PathLike`): the folder, made if it is missing.
            is_main_process (`bool`): of several processes, whether this one writes.
            state_dict (`dict`, *optional*): the weights, where they are gathered from elsewhere.
            push_to_hub (`bool`): upload the folder as well, as `repo_id` or under the folder's name.
            **kwargs: of transformers' `save_pretrained`, and of `upload_checkpoint`.
        """
        options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub and is_main_process:
            repo_id = options.pop("repo_id", None) or Path(save_directory).resolve().name
            upload_checkpoint(Path(save_directory), repo_id, token=kwargs.get("token"), **options)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, max_shard_size: int | str = "50GB", token: str | bool | None = None, **kwargs: Any
    ) -> CommitInfo:
        """Upload configuration, weights, code and model card. Adapters go alone, with the card of transformers.

        Args:
            repo_id (`str`): repository on the Hub, made if it is missing.
            max_shard_size (`int` or `str`): largest file of weights, as in `save_pretrained`.
            token (`str` or `bool`, *optional*): of the Hub; by default the stored one.
            **kwargs: `evaluation_files`, `datasets`, `tags`, `private`, `revision`, `create_pr`, `commit_message`,
                `commit_description`; see `upload_checkpoint`.

        Returns:
            `CommitInfo`: where it is now.

        Raises:
            ValueError: if a file of results cannot be read.
            OSError: if the Hub cannot be reached.
        """
        if getattr(self, "_hf_peft_config_loaded", False):  # an adapter alone: transformers knows how
            return super().push_to_hub(repo_id, token=token, **kwargs)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, token=token)
            kwargs.setdefault("commit_message", "Upload model")
            kwargs["tags"] = [*(getattr(self, "model_tags", None) or ()), *_as_list(kwargs.get("tags"))]
            return upload_checkpoint(folder, repo_id, token=token, **kwargs)


__all__ = ["WorldVLAHubModel", "choose_card", "read_remote_card", "upload_checkpoint"]
