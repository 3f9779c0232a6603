"""What a local folder is and which files its Hub repository gets.

Repositories are hybrid: weights and configs, the code of every own component as one file beside
them, and an index that names this code. So they load with codeclade, without any trust flag, and
without it by diffusers' `trust_remote_code=True`.

Only files with a known place are sent; what else lies in a folder stays there.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..components.loading import check_weights, check_whole, installed_index
from ..components.weight_files import read_header, read_json
from ..data.records import CodesRecord, EvaluationRecord, Provenance, TrainingRecord, check_field
from .component_files import MODULES, file_name, single_file
from .metadata import read_record, recipe_without_local_paths
from .metadata import without_local_paths as cleaned

PIPELINES = ["CodecladePipeline", "CodecladeTextPipeline"]
MODEL_TYPES = {"codeclade": "CodecladeTransformer", "codeclade_refiner": "Refiner"}
CONFIG_CLASSES = {  # of the models that are transformers'; the others are diffusers'
    "CodecladeTransformer": "CodecladeConfig",
    "Refiner": "RefinerConfig",
}
PART_ORDER = {"vq_model": 1, "cluster_map": 2, "transformer": 3, "refiner": 4}

BESIDE_WEIGHTS = (Provenance.FILE, TrainingRecord.FILE, EvaluationRecord.FILE)
AT_THE_ROOT = ("README.md", "recipe.yaml", *BESIDE_WEIGHTS)
SEARCH = ("search.json", "search.png")  # of `evaluate --search`: the points and their curve
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)[\w.-]*\.safetensors(\.index[\w.-]*\.json)?")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
# Configs describe parts; the card reads these fields.
CONFIG_FIELDS = {
    "VQModel": {"block_out_channels": list, "codebook_size": int, "codebook_dim": int},
    "ClusterMap": {"codebook_size": int, "num_clusters": int, "method": str},
    "CodecladeTransformer": {
        "scheme": str, "vocab_size": int, "grid_size": int, "hidden_size": int,
        "num_hidden_layers": int, "num_attention_heads": int,
    },
    "Refiner": {
        "codebook_size": int, "num_clusters": int, "hidden_size": int, "num_hidden_layers": int,
    },
}  # fmt: skip


@dataclass
class Part:
    """One component of a pipeline, or the only one of a repository."""

    class_name: str
    config: dict[str, Any]
    parameters: int
    folder: Path
    training: TrainingRecord | None = None  # where the component was trained by itself


@dataclass
class Repository:
    """A checked folder.

    `kind` is "pipeline", "model" (one component) or "codes"; `files` are contents or local paths by
    path in the repository; `codes` are the headers of code shards by split; `left_out` names what
    stays.
    """

    folder: Path
    kind: str
    class_name: str
    parts: dict[str, Part] = field(default_factory=dict)
    files: dict[str, Path | bytes] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    training: TrainingRecord | None = None
    evaluation: list[EvaluationRecord] = field(default_factory=list)
    codes: dict[str, CodesRecord] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    index: dict[str, Any] = field(default_factory=dict)

    @property
    def repo_type(self) -> str:
        return "dataset" if self.kind == "codes" else "model"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by path in the repository."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(self.files.items())
        }


def read_repository(folder: str | Path) -> Repository:
    """What a folder becomes as a repository, its card left open.

    Raises:
        ValueError: a folder that is none of pipeline, component or code shards, that holds symbolic
            links, or a file in it without the fields it needs.
        OSError: weights or shards that are missing or cut short.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to push.")
    # A link may lead to files outside that nobody means to publish.
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link; push a folder of plain files.")
    # What has an index is a pipeline, whatever else lies beside it.
    if (folder / "model_index.json").is_file():
        repository = _read_pipeline(folder)
    elif (folder / "config.json").is_file():
        repository = _read_component(folder)
    elif any((folder / where / "codes.json").is_file() for where in ("", "train", "validation")):
        repository = _read_codes(folder)
    else:
        names = ("model_index.json", "config.json")
        inside = next((p.parent for name in names for p in folder.glob(f"*/{name}")), None)
        hint = f"; did you mean {inside}?" if inside else "."
        raise ValueError(
            f"{folder} is no pipeline, component or code shards (no model_index.json, config.json "
            f"or codes.json in it){hint}"
        )
    # What no rule took stays here and is named, so that a misplaced file is noticed; hidden files
    # are no one's intention and are not even named.
    _add_files_at_the_root(repository)
    there = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    visible = {p.as_posix() for p in there if not any(x.startswith(".") for x in p.parts)}
    repository.left_out = sorted(visible - set(repository.files))
    return repository


def _read_pipeline(folder: Path) -> Repository:
    # The index is checked before anything it names: it may come from anywhere.
    path = folder / "model_index.json"
    index = cleaned(read_json(path))
    known = installed_index(index)
    class_name = known.get("_class_name")
    if class_name not in PIPELINES:
        raise ValueError(f"{folder} holds a {class_name}, not a codeclade pipeline.")
    labels = index.get("id2label") or {}
    if not isinstance(labels, dict) or not all(
        key.isdecimal() and isinstance(name, str) for key, name in labels.items()
    ):
        raise ValueError(f"{path}: id2label must map class numbers to names.")
    # Every part brings its weights, config and code, and the index names that code.
    repository = Repository(folder, "pipeline", class_name, index=index)
    index["_class_name"] = ["pipeline", class_name]
    repository.files["pipeline.py"] = single_file(class_name).encode()
    for name, value in sorted(known.items(), key=lambda item: PART_ORDER.get(item[0], 0)):
        # Sampling defaults stand in the index too, and are no components.
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            continue
        library, part_class = value
        fine = part_class in MODULES if library == "codeclade" else True
        if library not in ("codeclade", "diffusers", "transformers") or not fine:
            raise ValueError(f"{path}: {name} is a {part_class} of {library}, which nobody knows.")
        # The name is a folder's, and one like `../x` would read files outside.
        if not name.isidentifier():
            raise ValueError(f"{path}: {name!r} is no name of a component.")
        _add_part(repository, name, part_class, library == "codeclade")
    repository.files["model_index.json"] = _as_json(index)
    return repository


def _add_part(repository: Repository, name: str, class_name: str, own: bool) -> None:
    """Add one component of a pipeline: its weights, config or tokenizer files, and its code."""
    folder = repository.folder / name
    # A text tokenizer has no weights whose length could be checked; its config stands for it.
    if not own and "Tokenizer" in class_name:
        if not (folder / "tokenizer_config.json").is_file():
            raise OSError(f"{folder} is missing: model_index.json names it as a {class_name}.")
    else:
        check_weights(folder)
        repository.parts[name] = _part(class_name, folder)
        config = repository.parts[name].config
        found = {"auto_map": auto_map(class_name)} if own else {}
        repository.files[f"{name}/config.json"] = _as_json(config | found)
    for path in sorted(folder.iterdir()):
        if WEIGHTS.fullmatch(path.name) or (not own and path.name in TOKENIZER):
            repository.files[f"{name}/{path.name}"] = path
        elif path.name in BESIDE_WEIGHTS:  # of a component trained or converted by itself
            record, content = read_record(path)
            repository.files[f"{name}/{path.name}"] = _as_json(content)
            if isinstance(record, TrainingRecord) and name in repository.parts:
                repository.parts[name].training = record
    # The index names the file beside the weights, which is what diffusers looks for; codeclade
    # itself takes its installed class instead and runs nothing from the repository.
    if own:
        code = file_name(class_name)
        repository.index[name] = [code.removesuffix(".py"), class_name]
        repository.files[f"{name}/{code}"] = single_file(class_name).encode()
        # transformers looks for the code of a subfolder's model in the repository's root alone.
        if class_name in CONFIG_CLASSES:
            repository.files[code] = repository.files[f"{name}/{code}"]


def _read_component(folder: Path) -> Repository:
    config = read_json(folder / "config.json")
    class_name = config.get("_class_name") or MODEL_TYPES.get(config.get("model_type"))
    if class_name not in MODULES or class_name.endswith("Pipeline"):
        raise ValueError(f"{folder}/config.json describes no codeclade component ({class_name}).")
    check_weights(folder)
    # The class travels as one file, to which the config points.
    repository = Repository(folder, "model", class_name)
    part = repository.parts["model"] = _part(class_name, folder)
    repository.files[file_name(class_name)] = single_file(class_name).encode()
    repository.files["config.json"] = _as_json(part.config | {"auto_map": auto_map(class_name)})
    for path in folder.iterdir():
        if WEIGHTS.fullmatch(path.name):
            repository.files[path.name] = path
    return repository


def auto_map(class_name: str) -> dict[str, str]:
    """Where AutoModel and AutoConfig find a component's code, for its config.json."""
    module = file_name(class_name).removesuffix(".py")
    classes = {"AutoModel": f"{module}.{class_name}"}
    # Classes of diffusers have no config class.
    if class_name in CONFIG_CLASSES:
        classes["AutoConfig"] = f"{module}.{CONFIG_CLASSES[class_name]}"
    return classes


def _read_codes(folder: Path) -> Repository:
    """Code shards: every split with the shards that its codes.json lists."""
    repository = Repository(folder, "codes", "Codes")
    for split in ("", "train", "validation"):
        path = folder / split / "codes.json"
        if not path.is_file():
            continue
        repository.codes[split], content = read_record(path)
        prefix = f"{split}/" if split else ""
        repository.files[f"{prefix}codes.json"] = _as_json(content)
        for name in map(str, repository.codes[split].shards):
            shard = path.parent / name
            # The names come from the file: one with a folder in it would send what lies elsewhere.
            if Path(name).name != name or not shard.is_file():
                raise OSError(f"{shard} is missing: {path} lists it.")
            check_whole(shard)
            repository.files[prefix + name] = shard
        if (path.parent / "preview.png").is_file():
            repository.files[f"{prefix}preview.png"] = path.parent / "preview.png"
    return repository


def _add_files_at_the_root(repository: Repository) -> None:
    """Add card, recipe, records, the sample sheet, a search, and pictures that the card shows."""
    folder, files = repository.folder, repository.files
    for name in AT_THE_ROOT:
        path = folder / name
        if not path.is_file():
            continue
        files[name] = path
        if name in BESIDE_WEIGHTS:
            record, content = read_record(path)
            setattr(repository, path.stem, record)
            files[name] = _as_json(content)
        if name == "recipe.yaml":
            files[name] = recipe_without_local_paths(path.read_text()).encode()
    # The points of a search say how the sampling defaults were found. The values of single images
    # (evaluation-images.npz) are for `compare` on this machine and stay here.
    points, _ = SEARCH
    if repository.kind == "pipeline" and (folder / points).is_file():
        files[points] = _as_json(cleaned(read_json(folder / points, list)))
    own = ("samples.png", *(SEARCH if points in files else ()))
    # Pictures that no card shows may be anything, and are not sent unasked.
    shown = (folder / "README.md").read_text() if "README.md" in files else ""
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES):
        if path.name in own or f"({path.name})" in shown:
            files[path.name] = path


def _part(class_name: str, folder: Path) -> Part:
    path = folder / "config.json"
    config = cleaned(read_json(path))
    for name, kind in CONFIG_FIELDS.get(class_name, {}).items():
        check_field(path, config, name, kind)
    parameters, dtype = stored_weights(folder)
    if "dtype" in config and dtype:  # the last saved variant's, which is not always the plain one's
        config["dtype"] = dtype
    return Part(class_name, config, parameters, folder)


def variant_of(folder: Path) -> str | None:
    """Variant of a component's weights ("bf16", ...); None where plain weights are there."""
    names = [path.name.removesuffix(".safetensors") for path in folder.glob("*.safetensors")]
    found = sorted({name.split(".", 1)[1].split("-")[0] for name in names if "." in name})
    plain = any("." not in name for name in names)
    return None if plain or not found else found[0]


def stored_weights(folder: Path) -> tuple[int, str | None]:
    """Numbers in a component's weight files, one variant counted, and torch's name of their dtype.

    The dtype is that of most floating-point numbers.
    """
    # A variant is the same numbers in another precision, and would count them twice.
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if "." not in file.name.removesuffix(".safetensors")]
    counts: dict[str, int] = {}
    for file in plain or files:
        for tensor in read_header(file).values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    floats = {kind: n for kind, n in counts.items() if kind in names}
    return sum(counts.values()), names[max(floats, key=floats.get)] if floats else None


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
