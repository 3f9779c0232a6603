"""Mutated weight files of pipeline folders: headers, numbers, labels, trees and shards."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuzz.batches import Load, rewrite
from fuzz.pipelines import Pipelines

ENTRIES = {  # of a header, for the first float tensor of a file
    "dtype unknown": {"dtype": "F1"},
    "dtype lower": {"dtype": "f32"},
    "dtype I32": {"dtype": "I32"},
    "dtype I16": {"dtype": "I16"},
    "dtype number": {"dtype": 32},
    "dtype null": {"dtype": None},
    "dtype list": {"dtype": ["F32"]},
    "dtype F64": {"dtype": "F64"},
    "dtype F8": {"dtype": "F8_E4M3"},
    "dtype BOOL": {"dtype": "BOOL"},
    "dtype C64": {"dtype": "C64"},
    "dtype U32": {"dtype": "U32"},
    "shape negative": {"shape": [-32]},
    "shape huge": {"shape": [2**40]},
    "shape overflow": {"shape": [2**62, 4]},
    "shape product": {"shape": [2**32, 2**32]},
    "shape zero": {"shape": [0]},
    "shape float": {"shape": [32.0]},
    "shape text": {"shape": "32"},
    "shape nested": {"shape": [[32]]},
    "shape null": {"shape": None},
    "shape true": {"shape": [True]},
    "shape many": {"shape": [1] * 5000},
    "shape digits": {"shape": [10**400]},
    "shape none": {"shape": []},
    "offsets reversed": {"data_offsets": [128, 0]},
    "offsets negative": {"data_offsets": [-128, 0]},
    "offsets huge": {"data_offsets": [2**60, 2**60 + 128]},
    "offsets one": {"data_offsets": [0]},
    "offsets three": {"data_offsets": [0, 1, 128]},
    "offsets text": {"data_offsets": ["0", "128"]},
    "offsets float": {"data_offsets": [0.0, 128.0]},
    "offsets null": {"data_offsets": None},
    "offsets overlap": {"data_offsets": [4, 132]},
    "extra": {"strides": [1]},
}


class Weights(Pipelines):
    """Mutations of .safetensors files and of the indexes of shards."""

    def all(self) -> Iterator[Load]:
        for group in (
            self.fields,
            self.more_fields,
            self.index,
            self.documents,
            self.headers,
            self.lengths,
            self.numbers,
            self.kinds,
            self.names,
            self.labels,
            self.trees,
            self.sketches,
            self.shards,
            self.parts,
            self.flipped,
        ):
            yield from group()

    def files(self) -> Iterator[tuple[Path, str, Path]]:
        """One weight file of every part: (folder, part, path in it)."""
        for part in ("vq_model", "transformer", "cluster_map"):
            yield self.bundled, part, weights_of(self.bundled, part)
        yield self.small["refiner"], "refiner", weights_of(self.small["refiner"], "refiner")
        text = self.small["text"]
        yield text, "text_encoder", weights_of(text, "text_encoder")

    def headers(self) -> Iterator[Load]:
        for base, part, file in self.files():
            header, _ = stored(base / file)
            name = next(
                n for n, e in header.items() if n != "__metadata__" and e["dtype"][0] != "I"
            )
            for what, entry in ENTRIES.items():
                change = partial(with_header, file, {name: entry})
                yield self.case(f"{part} header {what}", base, change, True, part)
            for what, text in {
                "list": b"[1, 2, 3]",
                "null": b"null",
                "number": b"17",
                "empty": b"{}",
                "deep": b"[" * 100_000 + b"]" * 100_000,
                "not JSON": b"{" * 50,
                "not UTF-8": b"\xff\xfe{}",
                "entry list": b'{"a": [1]}',
                "NaN": b'{"a": NaN}',
                "metadata": b'{"__metadata__": [1]}',
                "zeros": b"\0" * 500,
            }.items():
                change = partial(with_text, file, text, None)
                yield self.case(f"{part} header {what}", base, change, True, part)
            for length in (0, 1, 7, 2**31, 2**62, 2**64 - 1):
                change = partial(with_text, file, None, length)
                yield self.case(f"{part} header length {length}", base, change, True, part)

    def lengths(self) -> Iterator[Load]:
        for base, part, file in self.files():
            size = (base / file).stat().st_size
            for keep in (0, 1, 7, 8, 9, 100, 1000, size // 2, size - 1, size - 4):

                def cut(copy, file=file, keep=keep):
                    rewrite(copy / file, (copy / file).read_bytes()[:keep])

                yield self.case(f"{part} first {keep} bytes", base, cut, True, part)

            def longer(copy, file=file):
                rewrite(copy / file, (copy / file).read_bytes() + b"1234")

            yield self.case(f"{part} four bytes more", base, longer, True, part)

    # --- numbers

    def tensors(self, base: Path, part: str) -> dict[str, Tensor]:
        return load_file(base / weights_of(base, part))

    def edit(self, name, base, part, tensor, change: Callable[[Tensor], Tensor], refused=True):
        """A tensor of a part replaced by a function of it."""

        def write(copy):
            weights = dict(load_file(base / weights_of(base, part)))
            weights[tensor] = change(weights[tensor]).contiguous()
            file = copy / weights_of(base, part)
            file.unlink()
            save_file(weights, file, metadata={"format": "pt"})

        return self.case(f"{part} {tensor} {name}", base, write, refused, part)

    def numbers(self) -> Iterator[Load]:
        """NaN and infinity, one number of one tensor."""
        folders = [(self.bundled, "transformer"), (self.bundled, "vq_model")]
        folders += [(self.small[s], "transformer") for s in ("cluster_token", "semantic_detail")]
        folders += [
            (self.small["refiner"], "refiner"),
            (self.small["text"], "text_encoder"),
            (self.small["text"], "transformer"),
        ]
        for base, part in folders:
            floats = [n for n, t in self.tensors(base, part).items() if t.is_floating_point()]
            for name in self.random.sample(floats, min(14, len(floats))):
                value = self.random.choice([math.nan, math.inf, -math.inf])
                place = self.random.random()

                def put(tensor, value=value, place=place):
                    flat = tensor.clone().flatten()
                    flat[int(place * len(flat))] = value
                    return flat.view(tensor.shape)

                yield self.edit(f"{value} in {base.name}", base, part, name, put)

    def kinds(self) -> Iterator[Load]:
        """Weights of another type, and of another shape."""
        for base, part, _ in self.files():
            floats = [n for n, t in self.tensors(base, part).items() if t.is_floating_point()]
            for dtype in (
                torch.int8,
                torch.uint8,
                torch.int16,
                torch.int32,
                torch.int64,
                torch.bool,
            ):
                name = self.random.choice(floats)
                yield self.edit(f"as {dtype}", base, part, name, lambda t, d=dtype: t.to(d))
            for what, change in {
                "turned": lambda t: t.flatten() if t.ndim > 1 else t.unsqueeze(0),
                "longer": lambda t: torch.cat([t, t]),
                "empty": lambda t: t[:0],
                "one number": lambda t: t.flatten()[0],
                "a row less": lambda t: t[:-1] if len(t) > 1 else t[:0],
            }.items():
                yield self.edit(what, base, part, self.random.choice(floats), change)
        # The bytes of one half precision under the name of the other.
        for base, part in ((self.bundled, "transformer"), (self.bundled, "vq_model")):
            for name in self.random.sample(sorted(self.tensors(base, part)), 6):
                half = self.tensors(base, part)[name].dtype
                if half in (torch.float16, torch.bfloat16):
                    other = torch.float16 if half == torch.bfloat16 else torch.bfloat16
                    yield self.edit(
                        f"bytes as {other}", base, part, name, lambda t, o=other: t.view(o)
                    )

    def names(self) -> Iterator[Load]:
        """Weights that are missing, renamed, too many, or other weights altogether."""
        for base, part, file in self.files():
            weights = self.tensors(base, part)
            names = sorted(weights)
            some = self.random.sample(names, min(4, len(names)))

            def write(copy, change, file=file):
                changed = change(dict(load_file(copy / file)))
                (copy / file).unlink()
                save_file(changed, copy / file, metadata={"format": "pt"})

            for name in some:
                lost = lambda w, n=name: {k: v for k, v in w.items() if k != n}  # noqa: E731
                yield self.case(
                    f"{part} without {name}", base, partial(write, change=lost), True, part
                )
                other = lambda w, n=name: {k + "x" * (k == n): v for k, v in w.items()}  # noqa: E731
                yield self.case(
                    f"{part} renamed {name}", base, partial(write, change=other), True, part
                )
            more = lambda w: w | {"a" * 3000: torch.zeros(3)}  # noqa: E731
            yield self.case(f"{part} one more", base, partial(write, change=more), True, part)
            none = lambda w: {}  # noqa: E731
            yield self.case(f"{part} no tensors", base, partial(write, change=none), True, part)

            def swapped(copy, file=file, part=part):
                other = self.small["token"] / "vq_model"
                rewrite(copy / file, next(other.glob("*.safetensors")).read_bytes())

            yield self.case(f"{part} of another model", base, swapped, True, part)

    # --- clusters

    def labels(self) -> Iterator[Load]:
        places = [
            (self.bundled, "cluster_map", "mapping"),
            (self.small["cluster"], "cluster_map", "mapping"),
            (self.small["cluster_token"], "transformer", "token_embedding.cluster_of"),
        ]
        for base, part, name in places:
            clusters = int(self.tensors(base, part)[name].max()) + 1
            for what, change in {
                "negative": lambda t: put(t, 3, -1),
                "far negative": lambda t: put(t, 3, -(2**62)),
                "too large": lambda t, k=clusters: put(t, 3, k),
                "far too large": lambda t: put(t, 3, 2**40),
                "a gap": lambda t: torch.where(t == 2, 1, t),
                "no zero": lambda t: t.clamp_min(1),
                "one cluster": lambda t: torch.full_like(t, 1),
                "floats": lambda t: t.float(),
                "bool": lambda t: t.bool(),
                "shorter": lambda t: t[:-1],
                "shifted": lambda t: t + 1,
                "another partition": lambda t: t.roll(1),
                "all zero": lambda t: t * 0,
            }.items():
                # A generator alone may be new, or of any partition; a pipeline has a map as well.
                alone = part == "transformer" and what in ("all zero", "another partition")
                found = self.edit(f"{what} {base.name}", base, part, name, change)
                yield found._replace(load=self.case("", base, put).load) if alone else found

    def trees(self) -> Iterator[Load]:
        for base in (self.bundled, self.small["cluster"], self.small["token"]):
            for what, change in {
                "negative": lambda t: put(t, (2, 0), -1),
                "not made yet": lambda t: put(t, (0, 1), 2 * len(t)),
                "far away": lambda t: put(t, (0, 1), 2**40),
                "itself": lambda t: put(t, (4, 0), len(t) + 1 + 4),
                "twice": lambda t: put(t, (5, 1), int(t[5, 0])),
                "again": lambda t: put(t, (5, 1), int(t[2, 0])),
                "turned around": lambda t: t.flip(0),
                "zeros": lambda t: t * 0,
                "floats": lambda t: t.float(),
                "one less": lambda t: t[:-1],
                "one column": lambda t: t[:, :1],
            }.items():
                yield self.edit(what, base, "cluster_map", "merges", change)
            for what, change in {
                "NaN": lambda t: put(t, 3, math.nan),
                "infinite": lambda t: put(t, 3, math.inf),
                "negative": lambda t: -t,
                "descending": lambda t: t.flip(0),
                "integers": lambda t: t.long(),
                "shorter": lambda t: t[1:],
            }.items():
                yield self.edit(what, base, "cluster_map", "heights", change)

    def sketches(self) -> Iterator[Load]:
        """The codebook and its fingerprint, seen where both are there: in the pipeline."""
        for base in (self.bundled, self.small["cluster"]):
            for part, name, what, change in (
                ("cluster_map", "sketch", "NaN", lambda t: put(t, 0, math.nan)),
                ("cluster_map", "sketch", "zeros", lambda t: t * 0),
                ("cluster_map", "sketch", "huge", lambda t: t * 1e30),
                ("cluster_map", "sketch", "other", lambda t: t.flip(0)),
                ("vq_model", "quantize.embedding.weight", "turned", lambda t: t.flip(0)),
                ("vq_model", "quantize.embedding.weight", "other", lambda t: torch.ones_like(t)),
            ):
                found = self.edit(f"{what} {base.name}", base, part, name, change)
                yield found._replace(load=self.case("", base, put).load)

    # --- files

    def shards(self) -> Iterator[Load]:
        """Indexes that lie about their shards, or lead out of the folder."""
        base = self.small["shards"]
        for part in ("transformer", "vq_model"):
            (index,) = (path.name for path in (base / part).glob("*.index.json"))
            content = json.loads((base / part / index).read_text())
            names = sorted(content["weight_map"])
            files = sorted(set(content["weight_map"].values()))
            moved = {name: content["weight_map"][name] for name in names}
            entries = {
                "up": "../vq_model/config.json",
                "up and down": f"../{part}/{files[0]}",
                "absolute": "/etc/passwd",
                "home": "~/x.safetensors",
                "missing": "x.safetensors",
                "number": 5,
                "null": None,
                "list": [files[0]],
                "empty": "",
                "dot": ".",
                "dots": "..",
                "config": "config.json",
                "long": "x" * 5000 + ".safetensors",
                "zero": "a\0.safetensors",
                "another shard": files[-1],
                "index": index,
                "back": "..\\x.safetensors",
            }
            for what, file in entries.items():
                lie = {"weight_map": moved | {names[0]: file}}
                change = partial(write_json, f"{part}/{index}", lie)
                yield self.case(f"{part} shard {what}", base, change, True, part)
            for what, lie in {
                "no map": {},
                "map list": {"weight_map": [1]},
                "map null": {"weight_map": None},
                "map empty": {"weight_map": {}},
                "map number": {"weight_map": 5},
                "one less": {"weight_map": {n: moved[n] for n in names[1:]}},
                "one more": {"weight_map": moved | {"more": files[0]}},
                "list": [1],
                "metadata": {"weight_map": moved, "metadata": 5},
            }.items():
                refused = None if what == "metadata" else True
                change = partial(write_json, f"{part}/{index}", lie)
                yield self.case(f"{part} index {what}", base, change, refused, part)
            for what, text in {"deep": b"[" * 100_000, "text": b"x", "none": b""}.items():

                def broken(copy, part=part, index=index, text=text):
                    rewrite(copy / part / index, text)

                yield self.case(f"{part} index {what}", base, broken, True, part)
            for file in files:

                def gone(copy, part=part, file=file):
                    (copy / part / file).unlink()

                yield self.case(f"{part}/{file} gone", base, gone, True, part)

                def short(copy, part=part, file=file):
                    rewrite(copy / part / file, (copy / part / file).read_bytes()[:-9])

                yield self.case(f"{part}/{file} cut", base, short, True, part)

    def parts(self) -> Iterator[Load]:
        """Parts of other pipelines, and files that are none."""
        for part in ("vq_model", "transformer", "cluster_map"):

            def empty(copy, part=part):
                for path in (copy / part).iterdir():
                    path.unlink()

            def pickled(copy, part=part):
                file = copy / weights_of(copy, part)
                torch.save(load_file(file), file.with_suffix(".bin"))
                file.unlink()

            def folder(copy, part=part):
                file = copy / weights_of(copy, part)
                file.unlink()
                file.mkdir()

            for change in (empty, pickled, folder):
                yield self.case(f"{part} {change.__name__}", self.bundled, change, True)
            for scheme in ("token", "semantic_detail", "refiner", "cluster_token"):
                source = self.small[scheme] / part
                if not source.is_dir():
                    continue

                def other(copy, part=part, source=source):
                    empty(copy, part)
                    for path in source.iterdir():
                        rewrite(copy / part / path.name, path.read_bytes())

                yield self.case(f"{part} of {scheme}", self.bundled, other, True)


def put(tensor: Tensor, place, value) -> Tensor:
    """A copy with one number replaced."""
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


def weights_of(base: Path, part: str) -> Path:
    """Path of the weights of a part inside its pipeline's folder."""
    (file,) = (base / part).glob("*.safetensors")
    return file.relative_to(base)


def stored(path: Path) -> tuple[dict, bytes]:
    """Header and numbers of a .safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(file: Path, entries: dict, copy: Path) -> None:
    """Change entries of a header."""
    header, data = stored(copy / file)
    for name, entry in entries.items():
        header[name] = header[name] | entry
    text = json.dumps(header).encode()
    rewrite(copy / file, struct.pack("<Q", len(text)) + text + data)


def with_text(file: Path, text: bytes | None, length: int | None, copy: Path) -> None:
    """Another header, or another claim of how long it is."""
    header, data = stored(copy / file)
    text = json.dumps(header).encode() if text is None else text
    rewrite(copy / file, struct.pack("<Q", len(text) if length is None else length) + text + data)


def write_json(path: str, content, copy: Path) -> None:
    rewrite(copy / path, json.dumps(content))
