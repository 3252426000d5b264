"""One folder holds a whole processor: settings, text tokenizer, VQ-GAN, and the code that reads them."""

import inspect
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .vqgan_worldvla import VQ_MODEL_FOLDER, load_vq_model, require_vq_model

_CONFIG_FILE = "processor_config.json"
_TOKENIZER_FILE = "tokenizer.json"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

_Processor = TypeVar("_Processor", bound="ProcessorFolder")


class ProcessorFolder(ProcessorMixin):
    """Save and load for `WorldVLAProcessor`: what transformers does, and the VQ-GAN in its sub-folder."""

    image_tokenizer: Any

    def _require_actions(self) -> Any:
        """The action tokenizer, or an error that says how to get one."""
        raise NotImplementedError

    def _require_images(self) -> Any:
        """The image tokenizer, or an error that says how to get one."""
        raise NotImplementedError

    def _attach_vq_model(self, vq_model: Any) -> None:
        """Use a VQ-GAN, or a function that loads one."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write everything into one folder: settings, text tokenizer, VQ-GAN, and the code that reads them.

        Args:
            save_directory (`str` or `os.PathLike`): the folder, made if it is missing.
            push_to_hub (`bool`): upload it as well, as `repo_id` or under the folder's name.
            **kwargs: passed on to `push_to_hub`.

        Returns:
            `list[str]`: the settings file.

        Raises:
            ValueError: if the VQ-GAN or the action limits are missing: nobody could use such a folder.
        """
        self._require_actions()
        vq_model = self._require_images().vq_model
        files = super().save_pretrained(os.fspath(save_directory), push_to_hub=False)
        vars(self).pop("auto_map", None)  # it was set for the file
        target = Path(save_directory, VQ_MODEL_FOLDER)
        target.mkdir(exist_ok=True)
        # Into a folder beside it first: the old weights may be mapped into memory, and must not be cut short.
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=".vq_model-") as temporary:
            vq_model.save_pretrained(temporary, safe_serialization=True)
            for file in sorted(Path(temporary).iterdir()):
                os.replace(file, target / file.name)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return files

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload processor",
        commit_description: str | None = None,
    ) -> CommitInfo:
        """Upload settings, text tokenizer, VQ-GAN and code, beside the model where it lies there.

        The card of the repository stays as it is: the model writes it.

        Args:
            repo_id (`str`): repository on the Hub, made if it is missing.
            private (`bool`, *optional*): of a new repository; by default as the account has it.
            token (`str` or `bool`, *optional*): of the Hub; by default the stored one.
            revision (`str`, *optional*): branch, made if it is missing.
            create_pr (`bool`): open a pull request instead.
            commit_message (`str`): first line of the commit's message.
            commit_description (`str`, *optional*): the rest of it.

        Returns:
            `CommitInfo`: where it is now.

        Raises:
            ValueError: if the VQ-GAN or the action limits are missing.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[_Processor], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> _Processor:
        """Load what `save_pretrained` wrote. The VQ-GAN's weights are read when first needed.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub id.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, or settings to override.

        Returns:
            the processor.

        Raises:
            OSError: if a part is missing; names the file and says what to do.
        """
        source = os.fspath(pretrained_model_name_or_path)
        if not os.path.isdir(source) and (os.path.isabs(source) or source.startswith(".") or source.count("/") > 1):
            raise OSError(f"Expected a folder that holds a processor, or a Hub id, got `{source}`: no such folder.")
        processor = super().from_pretrained(source, **kwargs)
        options = _hub_options(kwargs)
        if processor.image_tokenizer is None:
            require_vq_model(source, **options)
            processor._attach_vq_model(partial(load_vq_model, source, **options))
        return processor

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read the settings, and refuse a checkpoint that lacks some.

        Args:
            pretrained_model_name_or_path (`str`): folder or Hub id.
            **kwargs: as in `from_pretrained`.

        Returns:
            `tuple`: the settings, and the arguments that were not used.

        Raises:
            OSError: if there are no settings or no action limits.
        """
        settings, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        where = f"The checkpoint `{pretrained_model_name_or_path}`"
        if "vocabulary" not in settings:
            raise OSError(
                f"{where} has no processor: {_CONFIG_FILE} is missing or holds no `vocabulary`. Save it there with "
                "`WorldVLAProcessor.save_pretrained`."
            )
        if not (settings.get("action_limits") or kwargs.get("action_limits")):
            raise OSError(
                f"{where} has no action limits: `action_limits` is missing in {_CONFIG_FILE}. Without them tokens are "
                "no commands. Save it with `WorldVLAProcessor.save_pretrained`, or pass "
                '`action_limits={"name": {"low": [...], "high": [...]}}`, the limits it was trained with.'
            )
        return settings, unused

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        """Load the text tokenizer, without the settings that are meant for the processor."""
        source, options = pretrained_model_name_or_path, _hub_options(kwargs)
        if cached_file(source, _TOKENIZER_FILE, _raise_exceptions_for_missing_entries=False, **options) is None:
            raise OSError(
                f"The checkpoint `{source}` lacks its text tokenizer: {_TOKENIZER_FILE} not found. Save the "
                "checkpoint with `WorldVLAProcessor.save_pretrained`, or copy the file it was trained with there."
            )
        ours = inspect.signature(cls.__init__).parameters
        return super()._get_arguments_from_pretrained(
            source, *args, **{name: value for name, value in kwargs.items() if name not in ours}
        )


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that say where and how to find files."""
    return {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
