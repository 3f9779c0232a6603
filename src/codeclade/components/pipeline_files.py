"""Loading and saving of pipelines, with the checks of loading.py and saving.py; a mixin."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.utils import logging

from .contents import check_finite
from .loading import check_index, check_weight_files, installed_index
from .saving import keep_code, refuse_pickle
from .weight_files import read_json

logger = logging.get_logger(__name__)


def dtyped(part: Any) -> bool:
    """Whether a part of a pipeline computes in a dtype of its own; a cluster map does not."""
    return isinstance(part, torch.nn.Module) and next(part.parameters(), None) is not None


class PipelineFiles:
    """What pipelines add to diffusers' loading and saving; comes before `DiffusionPipeline`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As in diffusers; a local folder is checked before anything is built of it.

        Raises:
            ValueError: a config with a value that it cannot have, or parts that do not fit.
            OSError: naming the file that is missing or damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            check_weight_files(folder, tuple(kwargs), kwargs.get("variant"))
        pipe = cast(Any, super()).from_pretrained(pretrained_model_name_or_path, **kwargs)
        # The other parts have looked at their own numbers; a text encoder is not of this package.
        encoder = getattr(pipe, "text_encoder", None)
        if isinstance(encoder, torch.nn.Module) and "text_encoder" not in kwargs:
            check_finite(encoder)
        # transformers loads what was saved, diffusers float32; results depend on it, so it is said.
        found = {name: part.dtype for name, part in pipe.components.items() if dtyped(part)}
        if not {"dtype", "torch_dtype"} & set(kwargs) and len(set(found.values())) > 1:
            kinds = ", ".join(f"{name} {str(kind)[6:]}" for name, kind in found.items())
            logger.info(f"parts are loaded as {kinds}; give dtype for the same everywhere.")
        return pipe

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs
    ) -> None:
        """As in diffusers; `safe_serialization=False` is refused.

        Raises:
            ValueError: a pickle was asked for.
        """
        refuse_pickle(safe_serialization)
        cast(Any, super()).save_pretrained(save_directory, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in diffusers, which comes here last; then code that came with a repository."""
        cast(Any, super()).save_config(save_directory, *args, **kwargs)
        if not __name__.startswith("codeclade."):
            keep_code(self, Path(save_directory))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **options) -> dict[str, Any]:
        """diffusers reads model_index.json here; code in the repository gives way to this package.

        `options` is what diffusers gives before 0.42: the entries of a DDUF file.

        Not where this file itself came with a repository: then the package may not be there.
        """
        if any(options.values()):
            index = cast(Any, super())._dict_from_json_file(json_file, **options)
        else:
            index = read_json(Path(json_file))
        return installed_index(index) if __name__.startswith("codeclade.") else index

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs):
        """diffusers takes parts and defaults out of the index here, before it loads any."""
        check_index(config_dict)
        return cast(Any, super()).extract_init_dict(config_dict, **kwargs)
