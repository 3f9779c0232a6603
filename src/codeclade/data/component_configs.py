"""The components that a recipe file describes: every config.json, and their parameters counted.

Architecture stands once, in the settings of the training commands; `configs` in the file adds what
no setting says (the classes of ImageNet, the text prefix, what the published weights rely on).
"""

import inspect
from pathlib import Path
from typing import Any

from .atomic import write_json
from .families import Family

VQ_SETTINGS = (
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "codebook_size",
    "codebook_dim",
    "detail_codebook_size",
)
DECODER_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "class_dropout",
)
HEAD_SETTINGS = ("head_layers", "head_window", "head_mlp")  # of scheme semantic_detail
REFINER_SETTINGS = (*DECODER_SETTINGS, "causal", "mask_to_members", "sampling_temperature")
TREES = ("masc", "dcpe")  # methods whose map has all merges
LATER = ("force_upcast", "head_mlp")  # not in 0.1.0: written only where they are given


def component_configs(family: Family, size: str | None = None) -> dict[str, dict[str, Any]]:
    """The content of config.json of every component of a family's pipeline, by component.

    Raises:
        ValueError: a file without the sections or settings that say what the components are, or
            with a field in `configs` that the component does not have.
    """
    # A model follows from how images become tokens and what predicts them; the rest is optional.
    given = {name: family.merged(name, size) for name in family.sections}
    needed = {"tokenizer": ["image_size"], "encode": ["image_size"], "generator": []}
    if "cluster" in given or "refiner" in given:
        needed["cluster"] = ["clusters"]
    for name, keys in needed.items():
        if name not in given:
            raise ValueError(f"{family.path} has no section {name}, so no model follows from it.")
        missing = [key for key in keys if key not in given[name]]
        if missing:
            raise ValueError(f"{name} in {family.path} has no {missing[0]}.")
    # Checked for all components before any is derived: a misspelled field must not vanish unseen.
    extra = _extra(family, size)
    vq_model = _vq_model(given["tokenizer"], extra["vq_model"])
    transformer = _transformer(given, vq_model, extra["transformer"])
    configs = {"vq_model": vq_model, "transformer": transformer}

    # Maps and refiners take their sizes from the two above.
    if "cluster" in given:
        configs["cluster_map"] = _cluster_map(given["cluster"], vq_model, extra["cluster_map"])
    if "refiner" in given:
        prefix = given["refiner"].get("class_prefix", True)
        known = {
            "codebook_size": vq_model["codebook_size"],
            "num_clusters": given["cluster"]["clusters"],
            "grid_size": transformer["grid_size"],
            "num_classes": transformer["num_classes"] if prefix else 0,
            # The class for "no class" exists only where training replaced classes by it.
            "null_class": given["refiner"].get("class_dropout", 0.0) > 0,
        }
        configs["refiner"] = _refiner(given["refiner"], known | extra["refiner"])
    return configs


def write_configs(configs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write every component's config.json into its own folder inside `folder`."""
    for name, content in configs.items():
        (folder / name).mkdir()
        write_json(folder / name / "config.json", content, indent=2)


def build(name: str, config: dict[str, Any]):
    """A component from its config.json, on the meta device: shapes without numbers."""
    import torch

    kinds = _kinds()
    with torch.device("meta"):
        if name in ("vq_model", "cluster_map"):
            return kinds[name].from_config(config)
        return kinds[name](kinds[name].config_class(**config))


def count_parameters(name: str, config: dict[str, Any]) -> int:
    """Parameters of a component, counted without allocating them."""
    return sum(parameter.numel() for parameter in build(name, config).parameters())


def _kinds() -> dict[str, type]:
    # Imported late: torch and transformers take seconds that reading a recipe need not.
    from ..components.cluster_map import ClusterMap
    from ..components.refiner import Refiner
    from ..components.transformer import CodecladeTransformer
    from ..components.vq_model import VQModel

    return {
        "vq_model": VQModel,
        "transformer": CodecladeTransformer,
        "cluster_map": ClusterMap,
        "refiner": Refiner,
    }


def _extra(family: Family, size: str | None) -> dict[str, dict[str, Any]]:
    """Fields of `configs` by component, those of the size over those of the family."""
    own = (family.content["sizes"][family.size(size)] or {}) if family.sizes else {}
    found: dict[str, dict[str, Any]] = {}
    for name, kind in _kinds().items():
        found[name] = {}
        # Fields of one size stand over those of the whole family.
        for level in (family.content, own):
            found[name] |= (level.get("configs") or {}).get(name) or {}
        known = _fields(getattr(kind, "config_class", None) or kind)
        unknown = sorted(set(found[name]) - set(known))
        if unknown:
            raise ValueError(
                f"configs of {family.path}: {name} has no field {unknown[0]!r}; it has "
                f"{', '.join(known)}."
            )
    return found


def _fields(kind: type) -> list[str]:
    """Names of what a constructor takes, those it hands on to our own base classes included."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("codeclade.")]
    parameters = [
        parameter
        for base in own
        if "__init__" in vars(base)
        for parameter in inspect.signature(base.__init__).parameters.values()
    ]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in dict.fromkeys(named) if name != "self"]


def _chosen(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _vq_model(tokenizer: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    fields = _chosen(tokenizer, VQ_SETTINGS) | {"sample_size": tokenizer["image_size"]} | extra
    kind = _kinds()["vq_model"]
    defaults = inspect.signature(kind.__init__).parameters
    # Every field is written out, so that a later default cannot change a model that exists.
    names = [name for name in _fields(kind) if name in fields or name not in LATER]
    whole = {name: fields.get(name, defaults[name].default) for name in names}
    return {"_class_name": "VQModel"} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()
    }


def _cluster_map(
    cluster: dict[str, Any], vq_model: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    method, size = cluster.get("method", "masc"), vq_model["codebook_size"]
    return {
        "_class_name": "ClusterMap",
        "codebook_size": size,
        "num_clusters": cluster["clusters"],
        "codebook_dim": vq_model["codebook_dim"],
        "num_merges": size - 1 if method in TREES else 0,
        "method": f"{method}-normalized" if cluster.get("normalize") else method,
    } | extra


def _transformer(
    given: dict[str, dict[str, Any]], vq_model: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    generator, encode = given["generator"], given["encode"]
    # What a position holds: as many ids, clusters or pairs as the tokenizer and its map have.
    ids, details = vq_model["codebook_size"], vq_model["detail_codebook_size"]
    clusters = given.get("cluster", {}).get("clusters")
    default = "semantic_detail" if details else "cluster" if clusters else "token"
    scheme = generator.get("scheme") or default
    vocabulary = {
        "token": (ids, None),
        "cluster": (clusters, None),
        "cluster_token": (ids, clusters),
        "semantic_detail": (details, ids),
    }
    if scheme not in vocabulary:
        raise ValueError(f"scheme {scheme!r} is unknown; use one of {', '.join(vocabulary)}.")
    vocab_size, coarse = vocabulary[scheme]
    # The grid is the encoded image's: each level of the tokenizer but the first halves the side.
    fields = _chosen(generator, (*DECODER_SETTINGS, *HEAD_SETTINGS)) | {
        "vocab_size": vocab_size,
        "coarse_vocab_size": coarse,
        "scheme": scheme,
        "grid_size": encode["image_size"] // 2 ** (len(vq_model["block_out_channels"]) - 1),
        "num_classes": len(encode.get("classes") or ()),
    }
    # One setting of the recipe stands for all places where a generator drops.
    if "dropout" in generator:
        for name in ("token_dropout", "residual_dropout", "feed_forward_dropout"):
            fields[name] = generator["dropout"]
    return _whole("transformer", fields | extra)


def _refiner(refiner: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    fields = known | _chosen(refiner, (*REFINER_SETTINGS, "token_dropout"))
    if "dropout" in refiner:
        fields |= dict.fromkeys(("residual_dropout", "feed_forward_dropout"), refiner["dropout"])
    return _whole("refiner", fields)


def _whole(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """config.json of a transformers model, every field of its config class written out."""
    kind = _kinds()[name]
    config = kind.config_class(**fields)
    start = {"architectures": [kind.__name__], "model_type": config.model_type}
    names = [name for name in _fields(kind.config_class) if name in fields or name not in LATER]
    return start | {name: getattr(config, name) for name in names}
