"""Weight files and the JSON beside them, checked before anything is allocated for what they claim.

A file from anywhere may claim anything: tensors larger than the file, parts that overlap, lists a
million levels deep. What is read here was compared with the length of the file first, and every
refusal is one short sentence.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

STEMS = ("model", "diffusion_pytorch_model")  # how transformers and diffusers name weight files
LARGEST_JSON = 2**24  # bytes; indexes and headers of the largest published models have 0.2 MB
DEEPEST_JSON = 32  # lists and objects inside each other; configs have about 4
LONGEST_PATH = 120  # characters of a path that a message repeats, from its end
LONGEST_NAME = 80  # characters of a name or value from a file that a message repeats
ITEM_BYTES = {  # of safetensors' number types
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class StoredTensor(NamedTuple):
    """One tensor of a .safetensors file, as its header describes it."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # bytes from the end of the header
    end: int


def shortened(text: Any, longest: int = LONGEST_NAME) -> str:
    """Text from a file on one line, cut where it is longer than a message should be."""
    text = " ".join(str(text).split())
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def shown(path: Path) -> str:
    """A path in a message: its end says which file it is."""
    text = str(path)
    return text if len(text) <= LONGEST_PATH else f"...{text[-LONGEST_PATH + 3 :]}"


def read_json(path: Path, kind: type = dict) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: naming the file, where it is no JSON, no `kind` (dict or list), larger than
            16 MiB or deeper than 32 levels.
    """
    # Before reading: a file of gigabytes must not be read to learn that it is no config.
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(
            f"{shown(path)} has {size:,} bytes; JSON of up to {LARGEST_JSON:,} is read."
        )
    content = parse_json(path.read_bytes(), shown(path))
    if not isinstance(content, kind):
        wanted = {dict: "an object", list: "a list"}[kind]
        raise ValueError(f"{shown(path)} must hold {wanted}, not {type(content).__name__}.")
    return content


def parse_json(text: bytes, what: str) -> Any:
    """JSON from bytes of UTF-8; `what` names them in messages.

    Raises:
        ValueError: no JSON, a key that stands twice in an object, or more than 32 levels.
    """
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply; up to {DEEPEST_JSON} levels.") from None
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise ValueError(f"{what} is no valid JSON: {shortened(error)}.") from None
    # Breadth first, without recursion, which is what deep nesting is meant to exhaust.
    level, depth = [content], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"{what} is nested too deeply; up to {DEEPEST_JSON} levels.")
    # Half a pair of escapes is text that nothing can write or show, and other readers refuse.
    if b"\\u" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} is no valid JSON: half a pair of surrogates.") from None
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return content


def _inside(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return list(content.values())
    return content if isinstance(content, list) else []


def is_shard_name(name: Any) -> bool:
    """Whether this is the name of a .safetensors file beside its index.

    A name with a folder in it would read what lies elsewhere.
    """
    plain = isinstance(name, str) and Path(name).name == name and len(name) <= 255
    return plain and name.endswith(".safetensors")


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a .safetensors file by name, without reading any of their numbers.

    Raises:
        OSError: naming the file, where it is shorter or longer than its header says, or the header
            has unknown types, shapes that do not fit their bytes, gaps or overlaps.
    """
    if not file.is_file():  # a pipe would be waited for
        raise OSError(f"{shown(file)} is no file.")
    # The header's length is the file's first claim, and bounds what is read next.
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size or size < 8:
            raise OSError(f"{shown(file)} is truncated: {size} bytes of {8 + length}.")
        if length > LARGEST_JSON:
            raise OSError(f"{shown(file)} is damaged: a header of {length:,} bytes.")
        text = stream.read(length)
    # Every entry for itself, then all of them against the length of the file.
    try:
        header = parse_json(text, "its header")
        if not isinstance(header, dict):
            raise ValueError("its header must be an object")
        entries = dict(header)
        about = entries.pop("__metadata__", None)
        if about is not None and not _is_text(about):
            raise ValueError("its __metadata__ must hold text by name")
        tensors = {name: _stored_tensor(name, entry) for name, entry in entries.items()}
    except ValueError as error:
        raise OSError(f"{shown(file)} is damaged: {str(error).rstrip('.')}.") from None
    # Every byte belongs to exactly one tensor, so what is stored is as large as what is claimed.
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            how = "overlaps another tensor" if tensor.start < position else "leaves a gap before it"
            raise OSError(f"{shown(file)} is damaged: {shortened(name)} {how}.")
        position = tensor.end
    expected = 8 + length + position
    if expected > size:
        raise OSError(f"{shown(file)} is truncated: {size} bytes of {expected}.")
    if expected < size:
        raise OSError(f"{shown(file)} is damaged: {size - expected:,} bytes after the last tensor.")
    return tensors


def _is_text(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(value, str) for value in about.values())


def _stored_tensor(name: str, entry: Any) -> StoredTensor:
    """One entry of a header, its type, shape and place checked against each other."""
    name = shortened(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} needs dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{name} has the unknown dtype {shortened(repr(dtype))}")
    if not _are_sizes(shape):
        raise ValueError(f"{name} has the shape {shortened(repr(shape))}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has the data_offsets {shortened(repr(offsets))}")
    # Type and shape say how many bytes there must be, so nothing else is ever allocated.
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(
            f"{name} of shape {shortened(shape)} and dtype {dtype} has {end - start:,} bytes"
        )
    return StoredTensor(dtype, tuple(shape), start, end)


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of at most 16 whole numbers below 2^48, as shapes and offsets are."""
    return (
        isinstance(values, list)
        and len(values) <= 16
        and all(type(value) is int and 0 <= value < 2**48 for value in values)
    )


def weight_groups(part: Path, variant: str | None = None) -> list[dict[str, StoredTensor]]:
    """Tensors by name of every whole set of weights that a folder has of this variant.

    Raises:
        OSError: naming a file that is missing or damaged.
    """
    dot = f".{variant}" if variant else ""
    groups = [
        read_header(part / f"{stem}{dot}.safetensors")
        for stem in STEMS
        if (part / f"{stem}{dot}.safetensors").is_file()
    ]
    indexes = [part / f"{stem}.safetensors.index{dot}.json" for stem in STEMS]
    return groups + [read_shards(index) for index in indexes if index.is_file()]


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """Tensors by name of all files that an index of shards lists.

    Raises:
        OSError: an index that is damaged, or that names what is not beside it.
    """
    try:
        content = read_json(index)
    except ValueError as error:
        raise OSError(str(error)) from None
    if not isinstance(content.get("metadata"), dict):
        raise OSError(f"{shown(index)} is damaged: metadata must be an object.")
    # The index must be what the format says: weight names to file names.
    listed = content.get("weight_map")
    plain = isinstance(listed, dict) and all(isinstance(file, str) for file in listed.values())
    if not plain or not listed:
        raise OSError(f"{shown(index)} is damaged: weight_map must name the file of every weight.")
    # Every shard must be there and hold exactly the weights that the index says.
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(listed.values())):
        if not is_shard_name(file):
            raise OSError(f"{shown(index)} is damaged: {shortened(file)!r} is no name of a shard.")
        if not (index.parent / file).is_file():
            raise OSError(f"{shown(index.parent / file)} is missing: {index.name} lists it.")
        header = read_header(index.parent / file)
        wanted = {name for name, place in listed.items() if place == file}
        for name in sorted(wanted ^ set(header))[:1]:
            raise OSError(f"{shown(index)} is damaged: {shortened(name)} is not where it says.")
        found |= header
    return found
