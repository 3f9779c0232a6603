"""Strict loading: what a folder holds is checked before anything is built of it.

A folder from anywhere may hold anything. Configs are checked field by field (fields.py), headers of
weights by their lengths (weight_files.py) and then against the config, and the numbers once they
are there (contents.py). Every refusal is one short sentence, a ValueError or an OSError.
"""

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from .contents import check_finite
from .fields import check_fields, check_settings, declared_fields
from .hub_parts import OF_THE_HUB, fetch_part, repository_of, was_fetched
from .progress import without_weights_bar
from .saving import refuse_pickle
from .weight_files import (
    STEMS,
    StoredTensor,
    read_header,
    read_json,
    read_shards,
    shortened,
    shown,
    weight_groups,
)

# How indexes name this package's classes: by module, or by code that came with a repository.
OWN_CODE = re.compile(r"codeclade(\.|$)|(diffusers_modules\.[\w.]*\.)?modeling_codeclade_\w+$")
OWN_PARTS = {
    "vq_model": "VQModel",
    "transformer": "CodecladeTransformer",
    "cluster_map": "ClusterMap",
    "refiner": "Refiner",
}
TEXT_PARTS = ("tokenizer", "text_encoder")
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json", "vocab.txt", "tokenizer.model")
REPEATED = ("num_hidden_layers", "head_layers", "layers_per_block", "num_layers")
NAMED = 3  # weights that a message names


class StrictLoading:
    """Mixin before diffusers' or transformers' model class: damaged folders are an error.

    The model class comes next in line; alone, this one inherits nothing to load with, so its
    `super()` is cast.
    """

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in the parent class, but strict: a missing or unexpected weight is no mere warning.

        A folder, or a part of a Hub repository, is checked before anything is built of it.

        Raises:
            ValueError: naming the weights, or the field of the config that has a value it cannot
                have.
            OSError: naming the file that is missing or damaged.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        kwargs = _checked(cls, source, kwargs)
        # Parts that stay in float32 are loaded one by one, for which diffusers wants the way that
        # saves memory; the weights are the same.
        if kwargs.get("low_cpu_mem_usage") is False and getattr(cls, "_keep_in_fp32_modules", None):
            del kwargs["low_cpu_mem_usage"]
        # Both libraries only warn of missing weights and go on with random ones.
        library = cast(Any, super())
        kwargs = cls.loading_options(source, kwargs)
        with without_weights_bar(source or ""):
            model, report = library.from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                raise ValueError(_of_weights(problem.replace("_", " "), report[problem]))
        check_finite(model)
        model.check_loaded()
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        **kwargs,
    ) -> None:
        """As in the parent class; `safe_serialization=False` is refused.

        The arguments by name are those that pipelines look for in this signature.

        Raises:
            ValueError: a pickle was asked for.
        """
        refuse_pickle(safe_serialization)
        named = {"variant": variant, "max_shard_size": max_shard_size}
        kwargs |= {name: value for name, value in named.items() if value is not None}
        cast(Any, super()).save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def loading_options(cls, source: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name of `from_pretrained` that the library is given.

        Args:
            source: folder or repository.
            options: the arguments by name of the caller.
        """
        return options

    def check_loaded(self) -> None:
        """Raise a ValueError where what was loaded contradicts itself."""

    @classmethod
    def _dict_from_json_file(
        cls, json_file: str | os.PathLike, dduf_entries: None = None
    ) -> dict[str, Any]:
        """diffusers reads config.json here, from a folder and from the Hub alike.

        Until 0.41 it also says which archive to read from, which is never one here.
        """
        return read_json(Path(json_file))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs):
        """diffusers makes arguments of config.json here; `auto_map`, AutoModel's, is none."""
        config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
        check_fields(cls, config_dict, "config.json")
        return cast(Any, super()).extract_init_dict(config_dict, **kwargs)


def _checked(kind: type, source: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name of `from_pretrained`, after the check of the folder that it reads.

    Those of a repository name the commit that was checked.
    """
    # Who gives the weights does not read them from the folder, and who asks for pickled weights
    # has none that could be checked.
    elsewhere = any(options.get(name) is not None for name in ("state_dict", "gguf_file"))
    if elsewhere or options.get("use_safetensors") is False:
        return options
    if not isinstance(source, (str, os.PathLike)):
        return options
    # A config that is given takes the place of the folder's own; diffusers' models have no such.
    configures = getattr(kind, "config_class", None)
    given = options.get("config") if configures is not None else None
    variant = options.get("variant")
    if os.path.isdir(source):
        part = Path(source, options.get("subfolder") or "")
        file = part / "config.json"
        if given is None and os.path.lexists(file) and not file.is_file():
            raise OSError(f"{shown(file)} is no file.")
        if part.is_dir() and (given is not None or file.is_file()):
            check_component(kind, part, variant, given_config(configures, given, options))
        return options
    # From the Hub the very files that were checked are loaded, whatever is pushed in between.
    stem = STEMS[1] if configures is None else STEMS[0]
    found = fetch_part(str(source), stem, options, needs_config=given is None)
    if found is None:
        return options
    check_component(kind, found.folder, variant, given_config(configures, given, options))
    rest = {name: value for name, value in options.items() if name != "force_download"}
    return {**rest, "revision": found.commit}


def given_config(configures: Any, given: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Content of what `from_pretrained` was given as `config`; None where nothing was given.

    Args:
        configures: the model's class of configs.
        given: a config, or the folder, file or repository that holds one.
        options: arguments by name of `from_pretrained`.

    Raises:
        ValueError: a file that is no JSON, or a value that is no config.
        OSError: a repository or folder without config.json.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        file = Path(given)
        file = file / (options.get("subfolder") or "") / "config.json" if file.is_dir() else file
        if file.is_file():
            return read_json(file)
        hub = {name: options[name] for name in ("subfolder", *OF_THE_HUB) if name in options}
        return configures.get_config_dict(given, **hub)[0]
    if not isinstance(given, configures):
        wanted = configures.__name__
        raise ValueError(f"config is a {type(given).__name__}; it must be a {wanted} or a path.")
    return given.to_dict()


def check_component(
    kind: type, part: Path, variant: str | None = None, config: dict[str, Any] | None = None
) -> None:
    """Make sure that the config and the weight files of a folder are whole and fit each other.

    Args:
        kind: model class of the folder.
        variant: of the weights, as in `from_pretrained`.
        config: content that takes the place of config.json; None: the folder's own.

    Raises:
        ValueError: a field with a value that it cannot have, or weights that are not the config's.
        OSError: a weight file that is missing or damaged.
    """
    # The config by itself, then the headers by themselves: neither is believed by the other.
    called = repository_of(part) or part.name
    what = "config" if config is not None else f"{called}/config.json"
    content = read_json(part / "config.json") if config is None else config
    configures = getattr(kind, "config_class", None) or kind
    own = issubclass(kind, StrictLoading)
    if own:
        check_fields(configures, content, what)
        _check_class(kind, content, what)
    groups = weight_groups(part, variant)
    if own and groups and os.path.lexists(part / "adapter_config.json"):
        raise ValueError(
            f"{shortened(called)}: adapter_config.json lies beside a model's own weights; keep an "
            "adapter in a folder of its own."
        )
    if not groups:
        ending = f".{variant}.safetensors" if variant else ".safetensors"
        raise OSError(f"{shown(part)} holds no weights; a {ending} file must be there.")
    # A model of L layers has L tensors at least, so what follows stays as small as the files.
    most = max(map(len, groups))
    for name in REPEATED:
        value = content.get(name, 0)
        if not isinstance(value, int) or value > most:
            raise ValueError(
                f"{what}: {name}={shortened(value, 40)} needs more than {most} weights."
            )
    quantization = content.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        known = (*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes")  # which has two kinds
        if not isinstance(method, str) or method not in known:
            raise ValueError(f"{what}: quantization_config names no known quant_method.")
    # A model without numbers says what every weight must be.
    model = _without_numbers(kind, configures, content, what)
    if own:
        model.check_loaded()
    for stored in groups:
        problem = _misfit(model, stored)
        if quantization is None and problem:
            raise ValueError(f"{shortened(called)}: {problem}")
        if quantization is not None and not problem:
            raise ValueError(f"{what}: quantization_config is given, but no weight is quantized.")
    # A config that is given may name the dtype to load in; the folder's own has the stored one.
    if quantization is None:
        file = part / "config.json"
        _check_precision(read_json(file) if file.is_file() else {}, groups, part)


def _check_class(kind: type, content: dict[str, Any], what: str) -> None:
    """Raise a ValueError where a config says that it is another of this package's classes."""
    classes = {base.__name__ for base in kind.__mro__}
    name = content.get("_class_name", kind.__name__)
    if name in OWN_PARTS.values() and name not in classes:
        raise ValueError(f"{what}: this is a {name}, not a {kind.__name__}.")
    wanted = getattr(getattr(kind, "config_class", None), "model_type", None)
    if wanted is not None and content.get("model_type", wanted) != wanted:
        given = shortened(content["model_type"], 40)
        raise ValueError(f"{what}: model_type={given} must be {wanted!r}.")


def _without_numbers(kind: Any, configures: Any, content: dict[str, Any], what: str) -> Any:
    """A model of a config on the meta device, which allocates nothing."""
    content = {key: value for key, value in content.items() if key != "quantization_config"}
    if configures is kind:
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if name != "self" and parameter.default is parameter.empty and name not in content:
                raise ValueError(f"{what}: {name} is missing.")
    with torch.device("meta"):
        if configures is kind:
            # diffusers answers for an attribute by a field of that name, if there is one.
            fields = declared_fields(kind)
            model = kind.from_config({key: content[key] for key in content if key in fields})
            own = {**vars(model), **model._modules, **model._parameters, **model._buffers}
            for name in content:
                if name in own and name not in fields:
                    raise ValueError(f"{what}: {shortened(name)!r} is no field of {kind.__name__}.")
            return model
        if issubclass(kind, StrictLoading):
            return cast(Any, kind)(configures.from_dict(content))
        # Classes of the libraries say in many ways what they cannot be made of.
        try:
            return kind(configures.from_dict(content))
        except Exception as error:
            raise ValueError(f"{what} makes no {kind.__name__}: {shortened(error)}.") from error


def _misfit(model: nn.Module, stored: dict[str, StoredTensor]) -> str | None:
    """What is wrong with stored weights, for a model without numbers; None where they fit."""
    # Weights that a model has under two names are stored under one of them.
    expected = model.state_dict(keep_vars=True)
    known = {id(tensor) for name, tensor in expected.items() if name in stored}
    missing = [n for n, tensor in expected.items() if n not in stored and id(tensor) not in known]
    if missing:
        return _of_weights("missing keys", missing)
    if extra := [name for name in stored if name not in expected]:
        return _of_weights("unexpected keys", extra)
    for name, tensor in expected.items():
        if name not in stored:
            continue
        shape, dtype = stored[name].shape, stored[name].dtype
        if shape != tuple(tensor.shape):
            return (
                f"the checkpoint has mismatched shapes: {shortened(name, 60)} is "
                f"{shortened(shape, 40)}, but config.json asks for {tuple(tensor.shape)}."
            )
        # Rounded to whole numbers, weights would still load and give pictures of nothing.
        floats = dtype.startswith(("F", "BF")) and dtype != "F8_E8M0"
        if floats != tensor.is_floating_point() or dtype in ("BOOL", "C64"):
            wanted = "floating-point" if tensor.is_floating_point() else "whole"
            return f"{shortened(name)} holds {dtype}, where {wanted} numbers belong."
    return None


def _check_precision(
    content: dict[str, Any], groups: list[dict[str, StoredTensor]], part: Path
) -> None:
    """Raise a ValueError where float16 was taken for bfloat16 or the other way round.

    Both have two bytes, so a wrong name in a header gives other numbers without any error.
    """
    kinds = {tensor.dtype for stored in groups for tensor in stored.values()} & {"F16", "BF16"}
    # Other variants may lie beside these weights, and the config is that of the last one saved. Of
    # a repository the one that is asked for was fetched alone.
    sets = [*part.glob("*.safetensors.index*.json"), *part.glob("*.safetensors")]
    alone = len([path for path in sets if "-of-" not in path.name]) == 1 and not was_fetched(part)
    said = {"float16": "F16", "bfloat16": "BF16"}.get(str(content.get("dtype")))
    mixed = len(kinds) == 2 and len(groups) == 1
    if mixed or (alone and said and kinds and kinds != {said}):
        raise ValueError(
            f"{shortened(part.name)}: weights are stored as {' and '.join(sorted(kinds))}, but "
            f"config.json says {content.get('dtype', 'nothing of two kinds')}."
        )


def _of_weights(problem: str, names: Any) -> str:
    some = ", ".join(shortened(name, 40) for name in sorted(map(str, names))[:NAMED])
    return f"the checkpoint has {problem}: {some}."


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


def check_index(index: Mapping[str, Any]) -> None:
    """Make sure that model_index.json names parts and defaults that a pipeline can have.

    Raises:
        ValueError: naming the entry that is none.
    """
    what = "model_index.json"
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, (list, tuple)) and name else name
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{what}: _class_name={shortened(name, 40)} must name a pipeline.")
    for part in (*OWN_PARTS, *TEXT_PARTS):
        value = index.get(part, [None, None])
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if not pair or not (list(value) == [None, None] or _names_a_class(part, *value)):
            wanted = OWN_PARTS.get(part, "a class of transformers")
            raise ValueError(f"{what}: {part}={shortened(value, 60)} must name {wanted}.")
    check_settings(index, what)


def _names_a_class(part: str, library: Any, name: Any) -> bool:
    """Whether an entry of an index names what this part can be, and nothing else to import."""
    if not isinstance(library, str) or not isinstance(name, str):
        return False
    if part in OWN_PARTS:
        return name == OWN_PARTS[part] and bool(OWN_CODE.match(library))
    import transformers

    return library == "transformers" and isinstance(getattr(transformers, name, None), type)


def check_weight_files(
    folder: Path, given: tuple[str, ...] = (), variant: str | None = None
) -> None:
    """Make sure that a local pipeline folder has an index, and whole files of every part.

    Components that are `given` are not loaded, so they may be missing.

    Raises:
        ValueError: an index or a config that is damaged.
        OSError: naming the component without weights, or the damaged file.
    """
    index = installed_index(read_json(folder / "model_index.json"))
    check_index(index)
    for name in (*OWN_PARTS, *TEXT_PARTS):
        library, kind = index.get(name, [None, None])
        if kind is None or name in given:
            continue
        if name == "tokenizer":  # a text tokenizer has no weights
            check_tokenizer(folder / name)
            continue
        check_weights(folder / name)
        if library == "transformers":
            check_encoder(kind, folder / name, variant)


def check_encoder(name: str, part: Path, variant: str | None) -> None:
    """Check the folder of a text encoder, a class of transformers."""
    import transformers

    kind = getattr(transformers, name)
    if not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(f"model_index.json: text_encoder names {shortened(name)}, no model.")
    check_component(kind, part, variant if weight_groups(part, variant) else None)


def check_tokenizer(part: Path) -> None:
    """Raise a ValueError or an OSError unless a text tokenizer's JSON can be read."""
    files = sorted(part.glob("*.json"))
    if not files:
        raise OSError(f"{shown(part)} holds no tokenizer; its .json files must be there.")
    for file in files:
        content = read_json(file)
        if file.name != "tokenizer.json":
            continue
        # The library's errors for a damaged file are of no kind of their own.
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:
            raise ValueError(f"{shown(file)} is no tokenizer: {shortened(error)}.") from error
        if "added_tokens" not in content:
            raise ValueError(f"{shown(file)} is no tokenizer: added_tokens is missing.")
    if not any((part / name).is_file() for name in VOCABULARIES):
        raise OSError(f"{shown(part)} holds none of {', '.join(VOCABULARIES)}.")


def check_weights(part: Path) -> None:
    """Raise an OSError unless a component's folder has a config and all of its weights, whole."""
    if not (part / "config.json").is_file():
        raise OSError(
            f"{shown(part)} is missing: model_index.json names it, so config.json must be there."
        )
    # Lengths first: a download that broke off is the commonest fault, and safetensors' own message
    # names neither the file nor what to do.
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise OSError(f"{shown(part)} holds no weights; a .safetensors file must be there.")
    for file in files:
        check_whole(file)
    for index in part.glob("*.safetensors.index*.json"):
        read_shards(index)


def check_whole(file: Path) -> None:
    """Raise an OSError unless a .safetensors file holds weights and is as long as it says."""
    if not read_header(file):
        raise OSError(f"{shown(file)} holds no weights.")
