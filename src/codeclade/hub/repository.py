"""What a local folder is and which files its Hub repository gets.

Repositories are hybrid: weights and configs, the code of every own component as one file beside
them, and an index that names this code. So they load with codeclade, without any trust flag, and
without it by diffusers' `trust_remote_code=True`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..components.loading import check_weight_files, check_whole, installed_index
from .component_files import MODULES, file_name, single_file

MODEL_TYPES = {"codeclade": "CodecladeTransformer", "codeclade_refiner": "Refiner"}
CONFIG_CLASSES = {"CodecladeTransformer": "CodecladeConfig", "Refiner": "RefinerConfig"}
PART_ORDER = {"vq_model": 1, "cluster_map": 2, "transformer": 3, "refiner": 4}
SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".yaml", ".md", ".png", ".jpg", ".webp")
LOCAL_KEYS = ("_name_or_path",)  # where a folder was loaded from: nobody else's business


@dataclass
class Part:
    """One component of a pipeline, or the only one of a repository."""

    class_name: str
    config: dict[str, Any]
    parameters: int


@dataclass
class Repository:
    """A checked folder.

    `kind` is "pipeline", "model" (one component) or "codes"; `files` are contents or local paths by
    path in the repository; `left_out` names what is not sent.
    """

    folder: Path
    kind: str
    class_name: str
    parts: dict[str, Part] = field(default_factory=dict)
    files: dict[str, Path | bytes] = field(default_factory=dict)
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
        ValueError: a folder that is none of pipeline, component or code shards, or that holds
            symbolic links.
        OSError: weights that are missing or cut short.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to push.")
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link; push a folder of plain files.")
    if (folder / "model_index.json").is_file():
        repository = _read_pipeline(folder)
    elif (folder / "config.json").is_file():
        repository = _read_component(folder)
    elif any((folder / where / "codes.json").is_file() for where in ("", "train", "validation")):
        repository = Repository(folder, "codes", "Codes")
    else:
        inside = next((p.parent for p in folder.glob("*/model_index.json")), None)
        hint = f"; did you mean {inside}?" if inside else "."
        raise ValueError(
            f"{folder} is no pipeline, component or code shards (no model_index.json, config.json "
            f"or codes.json in it){hint}"
        )
    return _with_files(repository)


def _read_pipeline(folder: Path) -> Repository:
    check_weight_files(folder)
    index = _without_local_keys(folder / "model_index.json")
    known = installed_index(index)
    if known.get("_class_name") not in MODULES:
        raise ValueError(f"{folder} holds a {known.get('_class_name')}, not a codeclade pipeline.")
    repository = Repository(folder, "pipeline", known["_class_name"], index=index)
    index["_class_name"] = ["pipeline", repository.class_name]
    repository.files["pipeline.py"] = single_file(repository.class_name).encode()
    for name, value in sorted(known.items(), key=lambda item: PART_ORDER.get(item[0], 0)):
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            continue
        library, class_name = value
        config = folder / name / "config.json"
        if config.is_file():
            repository.parts[name] = _part(class_name, folder / name)
        if library == "codeclade":
            code = file_name(class_name)
            index[name] = [code.removesuffix(".py"), class_name]
            repository.files[f"{name}/{code}"] = single_file(class_name).encode()
    repository.files["model_index.json"] = _as_json(index)
    return repository


def _read_component(folder: Path) -> Repository:
    config = json.loads((folder / "config.json").read_text())
    class_name = config.get("_class_name") or MODEL_TYPES.get(config.get("model_type"))
    if class_name not in MODULES:
        raise ValueError(f"{folder}/config.json describes no codeclade component ({class_name}).")
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise OSError(f"{folder} holds no weights; a .safetensors file must be there.")
    for path in weights:
        check_whole(path)
    repository = Repository(folder, "model", class_name)
    repository.parts["model"] = _part(class_name, folder)
    code = file_name(class_name)
    module = code.removesuffix(".py")
    auto_map = {"AutoModel": f"{module}.{class_name}"}
    if class_name in CONFIG_CLASSES:
        auto_map["AutoConfig"] = f"{module}.{CONFIG_CLASSES[class_name]}"
    config = _without_local_keys(folder / "config.json") | {"auto_map": auto_map}
    repository.files = {code: single_file(class_name).encode(), "config.json": _as_json(config)}
    return repository


def _with_files(repository: Repository) -> Repository:
    """Add every file of the folder that belongs in a repository."""
    for path in sorted(p for p in repository.folder.rglob("*") if p.is_file()):
        name = path.relative_to(repository.folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if path.suffix.lower() not in SUFFIXES or name.endswith(".partial.json"):
            repository.left_out += [name] if name not in repository.files else []
        elif path.name in ("config.json", "codes.json", "training.json"):
            repository.files.setdefault(name, _as_json(_without_local_keys(path)))
        else:
            repository.files.setdefault(name, path)
    return repository


def _part(class_name: str, folder: Path) -> Part:
    config = json.loads((folder / "config.json").read_text())
    return Part(class_name, config, count_parameters(folder))


def count_parameters(folder: Path) -> int:
    """Numbers stored in a component's weight files, read from their headers; one variant only."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if "." not in file.name.removesuffix(".safetensors")]
    total = 0
    for file in plain or files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
    return total


def _without_local_keys(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    data = (content.get("recipe") or {}).get("data")
    if data and data.startswith(("/", "~", ".")):  # somebody's home folder, not a dataset's name
        content["recipe"]["data"] = Path(data).name
    return {key: value for key, value in content.items() if key not in LOCAL_KEYS}


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
