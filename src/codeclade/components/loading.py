"""Strict loading: whole weight files, and every weight in its place, or one clear sentence."""

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

from .weight_files import read_header

# How indexes name this package's classes: by module, or by code that came with a repository.
OWN_CODE = re.compile(r"codeclade(\.|$)|(diffusers_modules\.[\w.]*\.)?modeling_codeclade_\w+$")


class StrictLoading:
    """Mixin before diffusers' or transformers' model class: incomplete weights are an error.

    The model class comes next in line; alone, this one inherits nothing to load with, so its
    `super()` is cast.
    """

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in the parent class, but strict: a missing or unexpected weight is no mere warning.

        Raises:
            ValueError: naming the weights.
        """
        # Parts that stay in float32 are loaded one by one, for which diffusers wants the way that
        # saves memory; the weights are the same.
        if kwargs.get("low_cpu_mem_usage") is False and getattr(cls, "_keep_in_fp32_modules", None):
            del kwargs["low_cpu_mem_usage"]
        # Both libraries only warn of missing weights and go on with random ones.
        library = cast(Any, super())
        model, report = library.from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                names = ", ".join(sorted(str(key) for key in report[problem])[:5])
                raise ValueError(f"the checkpoint has {problem.replace('_', ' ')}: {names}.")
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in the parent class; `safe_serialization=False` is refused.

        Raises:
            ValueError: a pickle was asked for.
        """
        refuse_pickle(kwargs)
        return cast(Any, super()).save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs):
        """diffusers reads config.json here; `auto_map` is for AutoModel, so it needs no warning."""
        config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return cast(Any, super()).extract_init_dict(config_dict, **kwargs)


def refuse_pickle(arguments: dict[str, Any]) -> None:
    """Raise a ValueError where arguments of `save_pretrained` ask for a pickle."""
    if not arguments.get("safe_serialization", True):
        raise ValueError(
            "safe_serialization=False would write a pickle, which can execute code and is not "
            "loaded here; weights are saved as safetensors."
        )


def keep_code(pipeline: Any, folder: Path) -> None:
    """Copy code that came with a repository into a saved pipeline, and name it in the index.

    diffusers saves weights and configs alone, and an index that names modules of its own cache.
    """
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        if not type(part).__module__.startswith("diffusers_modules."):
            continue
        file = Path(inspect.getfile(type(part)))
        where = folder if part is pipeline else folder / name
        shutil.copyfile(file, where / file.name)
        index[name] = [file.stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def installed_index(index: dict[str, Any]) -> dict[str, Any]:
    """A model_index.json whose own code files are replaced by the installed codeclade.

    Repositories say `["modeling_codeclade_vq_model", "VQModel"]` and carry that file, so that they
    load without codeclade; with it there is nothing to trust and one class of each name.
    """
    # A list as `_class_name` means code from the repository; a plain name is ours, see register.
    index = dict(index)
    name = index.get("_class_name")
    if isinstance(name, list) and name:
        index["_class_name"] = name[-1]
    for name, value in index.items():
        own = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        if own and OWN_CODE.match(value[0]):
            index[name] = ["codeclade", value[1]]
    return index


def check_weight_files(folder: Path, given: tuple[str, ...] = ()) -> None:
    """Make sure every model component of a local pipeline folder has whole weight files.

    Components that are `given` are not loaded, so they may be missing.

    Raises:
        OSError: naming the component without weights, or the truncated file.
    """
    index = installed_index(json.loads((folder / "model_index.json").read_text()))
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and value[0] and value[1]):
            continue  # a setting, or an optional component that is not there
        if name in given or name == "tokenizer":  # a text tokenizer has no weights
            continue
        check_weights(folder / name)


def check_weights(part: Path) -> None:
    """Raise an OSError unless a component's folder has a config and all of its weights, whole."""
    if not (part / "config.json").is_file():
        raise OSError(
            f"{part} is missing: model_index.json names it, so config.json must be there."
        )
    # Lengths first: a download that broke off is the commonest fault, and safetensors' own message
    # names neither the file nor what to do.
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise OSError(f"{part} holds no weights; a .safetensors file must be there.")
    for file in files:
        check_whole(file)
    for index in part.glob("*.safetensors.index*.json"):
        listed = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(listed - {file.name for file in files})
        if missing:
            raise OSError(f"{part / missing[0]} is missing: {index.name} lists it.")


def check_whole(file: Path) -> None:
    """Raise an OSError unless a .safetensors file holds weights and is as long as it says."""
    if not read_header(file):
        raise OSError(f"{file} holds no weights.")
