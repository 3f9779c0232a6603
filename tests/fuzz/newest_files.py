"""Mutations of the weights of such a pipeline, and of what lies where its files should."""

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuzz.batches import Load, rewrite
from fuzz.newest import PARTS, POINTER, TRAP, Newest, with_trap
from fuzz.pipelines import set_field
from fuzz.weights import put, stored, weights_of, with_text


class NewestFiles(Newest):
    def all(self) -> Iterator[Load]:
        for group in (
            self.texts,
            self.numbers,
            self.switches,
            self.index,
            self.labels,
            self.headers,
            self.dtypes,
            self.tensors,
            self.clusters,
            self.places,
            self.neighbors,
            self.shards,
        ):
            yield from group()

    # --- weights

    def headers(self) -> Iterator[Load]:
        """What a header may say beside its tensors, and how it is written."""
        for part in PARTS:
            file = weights_of(self.base, part)
            header, _ = stored(self.base / file)
            names = [name for name in header if name != "__metadata__"]
            first = names[0]
            rest = {name: header[name] for name in names}
            text = json.dumps(header)
            dot = text.replace(f'"{first}"', f'"\\u{ord(first[0]):04x}{first[1:]}"', 1)
            for what, content, refused in (
                ("metadata null", rest | {"__metadata__": None}, None),
                ("metadata tf", rest | {"__metadata__": {"format": "tf"}}, None),
                ("metadata flax", rest | {"__metadata__": {"format": "flax"}}, None),
                ("metadata np", rest | {"__metadata__": {"format": "np"}}, None),
                ("metadata unknown", rest | {"__metadata__": {"format": "x" * 900}}, None),
                ("metadata number", rest | {"__metadata__": {"format": 5}}, None),
                ("metadata object", rest | {"__metadata__": {"format": {"a": "b"}}}, None),
                ("metadata list", rest | {"__metadata__": [["format", "pt"]]}, None),
                ("metadata empty", rest | {"__metadata__": {}}, None),
                ("metadata as a tensor", rest | {"__metadata__": header[first]}, None),
                ("no metadata", rest, None),
                ("metadata of a surrogate", rest | {"__metadata__": {"\ud800": "pt"}}, None),
                ("names in another case", {n.upper(): e for n, e in rest.items()}, True),
                ("a name of a surrogate", rest | {"\ud800": header[first]}, True),
                ("a name twice", f'{text[:-1]}, "{first}": {json.dumps(header[first])}}}', True),
                ("a name twice, escaped", f"{text[:-1]}, {dot[1:]}", True),
                ("an escaped name", dot, None),
                ("spaces", text + " " * 4096, None),
                ("spaces before", " " * 8 + text, None),
                ("NULs", text + "\0" * 8, True),
                ("sixteen million spaces", text + " " * 2**24, None),
                ("UTF-16", text.encode("utf-16"), True),
                ("a mark", b"\xef\xbb\xbf" + text.encode(), None),
                ("turned around", dict(reversed(rest.items())), None),
                ("an empty tensor more", rest | {"more": EMPTY}, True),
                ("shape -0", rest | {first: header[first] | {"shape": [-0.0]}}, True),
                ("shape 2e2", text.replace('"shape": [', '"shape": [1e0, ', 1), None),
                ("shape more", rest | {first: widened(header[first])}, True),
                ("offsets true", rest | {first: header[first] | {"data_offsets": [0, True]}}, True),
            ):
                if not isinstance(content, (str, bytes)):
                    content = json.dumps(content)
                content = content.encode() if isinstance(content, str) else content
                change = partial(with_text, file, content, None)
                yield self.case(f"{part} header {what}", change, refused, part)

    def edit(self, part: str, what: str, change: Callable, refused: bool | None, fields=()) -> Load:
        """All weights of a part replaced by what `change` makes of them; then fields."""

        def write(copy):
            file = copy / weights_of(self.base, part)
            changed = {k: v.contiguous() for k, v in change(dict(load_file(file))).items()}
            file.unlink()
            save_file(changed, file, metadata={"format": "pt"})
            for name, text in fields:
                set_field(part, name, text, copy)

        return self.case(f"{part} {what}", write, refused, part)

    def dtypes(self) -> Iterator[Load]:
        """All weights of a part, or one, in another type; the config may follow."""
        kinds = {
            "float32": torch.float32,
            "float64": torch.float64,
            "float16": torch.float16,
            "float8": torch.float8_e4m3fn,
            "float8 wide": torch.float8_e5m2,
            "complex": torch.complex64,
            "unsigned": torch.uint16,
        }
        for part in ("vq_model", "transformer"):
            for what, kind in kinds.items():
                bad = what in ("complex", "unsigned") or None
                names = sorted(load_file(self.base / weights_of(self.base, part)))
                name = self.random.choice(names)
                yield self.edit(
                    part, f"all {what}", lambda w, k=kind: {n: t.to(k) for n, t in w.items()}, bad
                )
                one = lambda w, k=kind, n=name: w | {n: w[n].to(k)}  # noqa: E731
                yield self.edit(part, f"{name} {what}", one, bad)
            # Every label of a header at once, and the config with it: nothing is left to tell.
            swap = lambda w: {n: t.view(torch.float16) for n, t in w.items()}  # noqa: E731
            yield self.edit(part, "all bytes as float16", swap, None)
            said = [("dtype", '"float16"')]
            yield self.edit(part, "all bytes as float16, config too", swap, None, said)
            signed = lambda w: {n: t.view(torch.int16) for n, t in w.items()}  # noqa: E731
            yield self.edit(part, "all bytes as int16", signed, True)

    def tensors(self) -> Iterator[Load]:
        """Numbers that stay numbers: zeros, far too large, turned, in another order."""
        tables = {
            "vq_model": (
                "quantize.embedding.weight",
                "decoder.conv_out.weight",
                "decoder.conv_norm_out.weight",
                "decoder.conv_in.bias",
                "encoder.conv_in.weight",
                "post_quant_conv.weight",
            ),
            "transformer": (
                "token_embedding.weight",
                "head.weight",
                "norm.weight",
                "prefix.embedding.weight",
                "layers.0.attention.qkv.weight",
                "layers.1.feed_forward.down.weight",
            ),
        }
        for part, names in tables.items():
            for name in names:
                for what, change, refused in (
                    ("zeros", lambda t: t * 0, None),
                    ("minus zeros", lambda t: -(t * 0), None),
                    ("denormal", lambda t: t * 0 + 1e-40, None),
                    ("the largest", lambda t: torch.full_like(t, 3e38), None),
                    ("times 1e30", lambda t: t * 1e30, None),
                    ("times 1e18", lambda t: t * 1e18, None),
                    ("times 1e6", lambda t: t * 1e6, None),
                    ("one huge", lambda t: put(t, -1, 3e38), None),
                    ("turned", lambda t: t.mT.contiguous() if t.ndim == 2 else t.flip(0), None),
                    ("folded", lambda t: t.reshape(-1, 2) if t.ndim == 1 else t.flatten(), True),
                    ("a row more", lambda t: torch.cat([t, t[:1]]), True),
                    ("one axis more", lambda t: t[None], True),
                    ("NaN of another sign", lambda t: put(t, 0, -torch.nan), True),
                ):
                    one = lambda w, n=name, c=change: w | {n: c(w[n])}  # noqa: E731
                    yield self.edit(part, f"{name} {what}", one, refused)
            for name in ("", "../x", "a/b", "config", "forward", "layers", "layers.99.x", "\u202e"):
                more = lambda w, n=name: w | {n: torch.zeros(1)}  # noqa: E731
                yield self.edit(part, f"with {name!r}", more, True)

    def clusters(self) -> Iterator[Load]:
        """The map, whose numbers are whole."""
        for name in ("mapping", "merges", "heights", "sketch"):
            for what, kind in {
                "int32": torch.int32,
                "uint16": torch.uint16,
                "int16": torch.int16,
                "uint8": torch.uint8,
                "float64": torch.float64,
                "float32": torch.float32,
                "bfloat16": torch.bfloat16,
                "float16": torch.float16,
            }.items():
                one = lambda w, n=name, k=kind: w | {n: w[n].to(k)}  # noqa: E731
                yield self.edit("cluster_map", f"{name} as {what}", one, None)
        cut = lambda w: w | {"mapping": labels_of(w, 9)}  # noqa: E731
        for what, change, refused, fields in (
            ("another cut, the config too", cut, None, [("num_clusters", "9")]),
            ("another cut", cut, True, []),
            ("no tree, the config too", treeless, None, [("num_merges", "0")]),
            ("no tree", treeless, True, []),
            ("renumbered", renumbered, None, []),
            ("two codes swapped", swapped, True, []),
            ("heights -0", lambda w: w | {"heights": -(w["heights"] * 0)}, None, []),
            ("heights alike", lambda w: w | {"heights": w["heights"] * 0 + 1}, None, []),
            ("heights denormal", lambda w: w | {"heights": w["heights"] * 1e-42}, None, []),
            ("heights huge", lambda w: w | {"heights": w["heights"] * 3e36}, None, []),
            ("heights turned", lambda w: w | {"heights": w["heights"].flip(0)}, True, []),
            ("merges swapped", lambda w: w | {"merges": w["merges"].flip(1)}, None, []),
            ("merges turned", lambda w: w | {"merges": w["merges"].T}, True, []),
            ("sketch infinite", lambda w: w | {"sketch": w["sketch"] / 0}, True, []),
            ("sketch signs", lambda w: w | {"sketch": -w["sketch"]}, None, []),
        ):
            yield self.edit("cluster_map", what, change, refused, fields)

    # --- files

    def places(self) -> Iterator[Load]:
        """What is no file, or no whole one, where a file belongs."""
        files = ["model_index.json", *(f"{part}/config.json" for part in PARTS)]
        files += [str(weights_of(self.base, part)) for part in PARTS]
        for file in files:
            part = file.split("/")[0] if "/" in file else None
            for what, put_there in {
                "a link to itself": lambda path: path.symlink_to(path.name),
                "a link to nothing": lambda path: path.symlink_to("nothing"),
                "a link to its folder": lambda path: path.symlink_to("."),
                "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
                "a link to null": lambda path: path.symlink_to("/dev/null"),
                "a link to memory": lambda path: path.symlink_to("/proc/self/mem"),
                "a pipe": os.mkfifo,
                "a socket": lambda path: bind(path),
                "a folder": lambda path: (path / "x").mkdir(parents=True),
                "an empty file": lambda path: path.touch(),
                "a sparse file": lambda path: sparse(path, 2**40),
                "a pointer of LFS": lambda path: path.write_text(POINTER),
                "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
                "random bytes": lambda path: path.write_bytes(self.random.randbytes(5000)),
            }.items():

                def change(copy, file=file, put_there=put_there):
                    (copy / file).unlink()
                    put_there(copy / file)

                yield self.case(f"{file} is {what}", change, True, part)
        for part in PARTS:
            for what, place in {
                "a loop": lambda path: path.symlink_to(path.name),
                "up": lambda path: path.symlink_to(".."),
                "a file": lambda path: path.touch(),
                "another part": lambda path: path.symlink_to(
                    "transformer" if path.name != "transformer" else "vq_model"
                ),
            }.items():

                def change(copy, part=part, place=place):
                    (copy / part).rename(copy / "away")
                    place(copy / part)

                yield self.case(f"folder {part} is {what}", change, True)

    def neighbors(self) -> Iterator[Load]:
        """Files that nobody asked for, and that a library may read all the same."""
        bad = pickle.dumps(Trap())
        for file, content in {
            "transformer/adapter_config.json": '{"base_model_name_or_path": "/etc"}',
            "transformer/adapter_config.json ": '{"base_model_name_or_path": ".", "peft_type": 5}',
            "transformer/generation_config.json": '{"max_length": "x", "a": [',
            "transformer/pytorch_model.bin": bad,
            "transformer/model.safetensors.index.json": '{"weight_map": {"a": "b"}}',
            "transformer/model.fp16.safetensors": b"x",
            "transformer/diffusion_pytorch_model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
            "transformer/configuration_codeclade.py": TRAP,
            "transformer/custom_generate/generate.py": TRAP,
            "transformer/tokenizer_config.json": '{"auto_map": {"AutoTokenizer": "trap.T"}}',
            "transformer/quantization_config.json": "{",
            "transformer/quantize_config.json": "[",
            "transformer/tf_model.h5": b"x",
            "transformer/config.4.0.0.json": "{",
            "transformer/config.0.0.1.json": '{"hidden_size": 5}',
            "transformer/config_sentence.json": "{",
            "transformer/model-00001-of-00002.safetensors": b"x",
            "vq_model/diffusion_pytorch_model.bin": bad,
            "vq_model/diffusion_pytorch_model.safetensors.index.json": "{}",
            "vq_model/model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
            "vq_model/scheduler_config.json": "{",
            "cluster_map/config.json.lock": b"",
            "cluster_map/x.safetensors": b"\0" * 8,
            "preprocessor_config.json": '{"image_processor_type": "Trap", "auto_map": 5}',
            "processor_config.json": "[",
            "config.json": '{"model_type": "bert"}',
            "adapter_config.json": '{"base_model_name_or_path": "x"}',
            "model.safetensors": b"x",
            "pipeline.py": TRAP,
            "__init__.py": TRAP,
            "codeclade.py": TRAP,
            "torch.py": TRAP,
            "scheduler/scheduler_config.json": "{",
            "refiner/config.json": "{",
            "\u202e.json": "{",
            "evaluation.json": "[" * 100_000,
            "README.md": b"\xff\xfe",
        }.items():
            change = partial(with_trap, partial(replace_in, file.strip(), content))
            part = file.split("/")[0] if "/" in file else None
            yield self.case(f"beside {file}", change, None, part)

    def shards(self) -> Iterator[Load]:
        """The weights in two files with an index, and what may be wrong with it."""
        for part in ("transformer", "vq_model"):
            for what, lie, refused in (
                ("as they are", lambda m, f: None, False),
                ("an array", lambda m, f: m.__setitem__("weight_map", list(m["weight_map"])), True),
                ("other total", lambda m, f: m["metadata"].update(total_size=-(10**30)), None),
                ("total text", lambda m, f: m["metadata"].update(total_size="x"), None),
                ("a name more", lambda m, f: m["weight_map"].update(more=f[0]), True),
                ("all in one", lambda m, f: set_all(m, f[0]), True),
                ("all in a third", lambda m, f: set_all(m, "x.safetensors"), True),
                ("with a slash", lambda m, f: set_all(m, "./" + f[0]), True),
                ("wide letters", lambda m, f: set_all(m, f[0].replace("o", "\uff4f")), True),
                ("another case", lambda m, f: set_all(m, f[0].upper()), True),
                ("a surrogate", lambda m, f: set_all(m, "\ud800.safetensors"), True),
                ("a URL", lambda m, f: set_all(m, "https://localhost:1/x.safetensors"), True),
                ("the whole file", lambda m, f: set_all(m, "whole.safetensors"), None),
                ("metadata gone", lambda m, f: m.pop("metadata"), None),
                ("metadata null", lambda m, f: m.update(metadata=None), None),
            ):
                change = partial(shard, part, lie)
                yield self.case(f"{part} shards {what}", change, refused, part)
            for what, lie in {
                "a file twice": lambda copy, f: rewrite(f[1], f[0].read_bytes()),
                "swapped": lambda copy, f: swap_files(*f),
                "a link to the other": lambda copy, f: (f[1].unlink(), f[1].symlink_to(f[0].name)),
                "a link to itself": lambda copy, f: (f[1].unlink(), f[1].symlink_to(f[1].name)),
                "a pipe": lambda copy, f: (f[1].unlink(), os.mkfifo(f[1])),
                "a folder": lambda copy, f: (f[1].unlink(), f[1].mkdir()),
                "an empty one": lambda copy, f: rewrite(f[1], b""),
            }.items():

                def change(copy, part=part, lie=lie):
                    lie(copy, shard(part, lambda m, f: None, copy))

                yield self.case(f"{part} shards, {what}", change, True, part)


EMPTY = {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}


class Trap:
    """What a pickle must not build."""

    def __reduce__(self):
        return os.system, ("touch 'code ran'",)


def widened(entry: dict) -> dict:
    return entry | {"shape": [*entry["shape"], 1]}


def labels_of(weights: dict[str, Tensor], clusters: int) -> Tensor:
    from codeclade.components.cluster_checks import tree_labels

    return tree_labels(weights["merges"], len(weights["mapping"]), clusters)


def treeless(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"merges": weights["merges"][:0], "heights": weights["heights"][:0]}


def renumbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"mapping": weights["mapping"].max() - weights["mapping"]}


def swapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two codes of different clusters in each other's place."""
    mapping = weights["mapping"].clone()
    other = int((mapping != mapping[0]).nonzero()[0])
    mapping[0], mapping[other] = int(mapping[other]), int(mapping[0])
    return weights | {"mapping": mapping}


def bind(path: Path) -> None:
    """A socket of the file system; its path may be short only."""
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def sparse(path: Path, size: int) -> None:
    """A file that says it is large and takes no place."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 2**39))
        stream.truncate(size)


def replace_in(path: str, content: bytes | str, copy: Path) -> None:
    (copy / path).parent.mkdir(parents=True, exist_ok=True)
    rewrite(copy / path, content)


def set_all(index: dict, file: str) -> None:
    index["weight_map"] = dict.fromkeys(index["weight_map"], file)


def swap_files(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    rewrite(a, second)
    rewrite(b, first)


def shard(part: str, lie: Callable, copy: Path) -> list[Path]:
    """Put the weights of a part into two files and their index, which `lie` changes."""
    (file,) = (copy / part).glob("*.safetensors")
    weights = dict(load_file(file))
    stem, names = file.name.removesuffix(".safetensors"), sorted(weights)
    file.rename(copy / part / "whole.safetensors")
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    paths, places = [], {}
    for i, half in enumerate(halves):
        path = copy / part / f"{stem}-0000{i + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in half}, path, metadata={"format": "pt"})
        paths.append(path)
        places |= dict.fromkeys(half, path.name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    lie(index, [path.name for path in paths])
    (copy / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return paths
