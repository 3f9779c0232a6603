"""Mutated files for `codeclade convert` and `codeclade cluster`: what the world could send.

Every mutation is (name, arguments, accepted): `accepted` says whether a good result may come of it;
all others must be refused. Random choices come from one seeded generator.
"""

import argparse
import collections
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from builders import build_transformer, build_vq
from codeclade.checkpoints.iar2 import FAMILY as IAR2
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

Case = tuple[str, list[str], bool]
CODES, CLUSTERS = 64, 24
VQ = {
    "block_out_channels": (32, 32),
    "latent_channels": 32,
    "norm_num_groups": 32,
    "codebook_dim": 8,
}


class Conversions:
    """Whole published files at tiny size in a folder, and mutated ones beside them."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random = folder, random.Random(seed)
        self.count = 0
        vq = build_vq(codebook_size=CODES, **VQ)
        self.vq = LLAMAGEN.tokenizer.published_weights(vq)
        gpt = build_transformer(vocab_size=CODES, num_classes=10)
        self.gpt = LLAMAGEN.generator.published_weights(gpt)
        clusters = build_transformer(vocab_size=CLUSTERS, num_classes=10, scheme="cluster")
        self.clusters = LLAMAGEN.generator.published_weights(clusters)
        self.index = torch.arange(CODES) % CLUSTERS
        pairs = {"codebook_size": 16, "detail_codebook_size": 40}
        self.vq2 = IAR2.tokenizer.published_weights(build_vq(**VQ, **pairs))
        for name in ("vq", "gpt", "clusters", "vq2"):
            torch.save({"model": getattr(self, name)}, folder / f"{name}.pt")
            save_file(getattr(self, name), folder / f"{name}.safetensors")
        torch.save(self.index, folder / "index.pt")

    def all(self) -> Iterator[Case]:
        for group in (
            self.headers, self.archives, self.pickles, self.weights, self.mappings, self.outputs,
            self.arrays, self.folders, self.flipped_bytes,
        ):  # fmt: skip
            yield from group()

    # --- commands

    def new(self, ending: str) -> Path:
        self.count += 1
        return self.folder / f"m{self.count}{ending}"

    def llamagen(self, gpt=None, vq=None, *more) -> list[str]:
        paths = {"--vq": vq or self.folder / "vq.pt", "--gpt": gpt or self.folder / "gpt.pt"}
        given = [str(part) for pair in paths.items() for part in pair]
        return ["convert", "llamagen", *given, "--image-size", "8", "--heads", "2", *more]

    def dcpe(self, index) -> list[str]:
        paths = ["--vq", self.folder / "vq.pt", "--gpt", self.folder / "clusters.pt"]
        paths += ["--idx-to-cluster", index, "--image-size", "8", "--heads", "2"]
        return ["convert", "dcpe", *map(str, paths)]

    def iar(self, mapping) -> list[str]:
        paths = ["--vq", self.folder / "vq.pt", "--gpt", self.folder / "gpt.pt"]
        return ["convert", "iar", *map(str, [*paths, "--mapping", mapping]), "--heads", "2"]

    def cluster(self, source, *more) -> list[str]:
        return ["cluster", str(source), "--clusters", "4", *more]

    # --- .safetensors

    def stored(self, weights: dict) -> tuple[dict, bytes]:
        path = self.new(".safetensors")
        save_file(weights, path)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(self, header, data: bytes, length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = self.new(".safetensors")
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    def headers(self) -> Iterator[Case]:
        """Every field of a header, for the converter and, as a codebook, for clustering."""
        name = "norm.weight"
        entry_changes = {
            "dtype unknown": {"dtype": "F1"},
            "dtype lower": {"dtype": "f32"},
            "dtype integer": {"dtype": "I32"},
            "dtype unsigned": {"dtype": "U32"},
            "dtype number": {"dtype": 32},
            "dtype null": {"dtype": None},
            "dtype list": {"dtype": ["F32"]},
            "dtype wide": {"dtype": "F64"},
            "dtype narrow": {"dtype": "F16"},
            "dtype float8": {"dtype": "F8_E4M3"},
            "shape negative": {"shape": [-32]},
            "shape huge": {"shape": [2**40]},
            "shape overflow": {"shape": [2**62, 4]},
            "shape product overflow": {"shape": [2**32, 2**32]},
            "shape zero": {"shape": [0]},
            "shape float": {"shape": [32.0]},
            "shape text": {"shape": "32"},
            "shape nested": {"shape": [[32]]},
            "shape null": {"shape": None},
            "shape true": {"shape": [True]},
            "shape many": {"shape": [1] * 5000},
            "shape other": {"shape": [31]},
            "shape matrix": {"shape": [32, 1]},
            "shape digits": {"shape": [10**400]},
            "offsets reversed": {"data_offsets": [128, 0]},
            "offsets negative": {"data_offsets": [-128, 0]},
            "offsets huge": {"data_offsets": [2**60, 2**60 + 128]},
            "offsets one": {"data_offsets": [0]},
            "offsets three": {"data_offsets": [0, 1, 128]},
            "offsets text": {"data_offsets": ["0", "128"]},
            "offsets float": {"data_offsets": [0.0, 128.0]},
            "offsets null": {"data_offsets": None},
            "offsets overlap": {"data_offsets": [4, 132]},
            "extra field": {"strides": [1]},
        }
        for what, change in entry_changes.items():
            header, data = self.stored(self.gpt)
            header[name] = header[name] | change
            yield f"header {what}", self.llamagen(self.with_header(header, data)), False
        for field in ("dtype", "shape", "data_offsets"):
            header, data = self.stored(self.gpt)
            del header[name][field]
            yield f"header without {field}", self.llamagen(self.with_header(header, data)), False
        header, data = self.stored(self.gpt)
        text = json.dumps(header).encode()
        whole = {
            "entry list": header | {name: [1, 2]},
            "entry null": header | {name: None},
            "list": [1, 2, 3],
            "null": b"null",
            "number": b"17",
            "text": b'"weights"',
            "empty object": {},
            "metadata list": {"__metadata__": [1]},
            "not JSON": b"{" * 50,
            "not UTF-8": b"\xff\xfe" + text,
            "deep list": b"[" * 100_000 + b"]" * 100_000,
            "deep object": b'{"a":' * 90_000 + b"1" + b"}" * 90_000,
            "deep entry": header | {name: json.loads("[" * 60 + "]" * 60)},
            "same name twice": text[:-1] + b"," + json.dumps({name: header[name]}).encode()[1:],
            "NaN": b'{"a": NaN}',
            "zeros": b"\0" * 500,
        }
        for what, content in whole.items():
            path = self.with_header(content, data)
            yield f"header {what}", self.llamagen(path), False
            yield f"codebook header {what}", self.cluster(path), False
        for length in (0, 1, 7, len(text) - 1, len(text) + 1, 2**31, 2**62, 2**64 - 1):
            path = self.with_header(text, data, length)
            yield f"header length {length}", self.llamagen(path), False
        yield "bytes after the end", self.llamagen(self.with_header(header, data + b"1234")), False
        yield "data missing", self.llamagen(self.with_header(header, data[:-4])), False
        yield "no data", self.llamagen(self.with_header(header, b"")), False
        content = (self.folder / "gpt.safetensors").read_bytes()
        for share in (0, 1, 4, 7, 8, 9, 100, 1000, len(content) // 2, len(content) - 1):
            path = self.new(".safetensors")
            path.write_bytes(content[:share])
            yield f"first {share} bytes", self.llamagen(path), False

    # --- .pt

    def torch_file(self, content, **options) -> Path:
        path = self.new(".pt")
        torch.save(content, path, **options)
        return path

    def rewritten(self, change) -> Path:
        """The generator's archive with its records changed: {name: bytes}."""
        with zipfile.ZipFile(self.folder / "gpt.pt") as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        change(records)
        path = self.new(".pt")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in records.items():
                archive.writestr(name, content)
        return path

    def archives(self) -> Iterator[Case]:
        """Sizes that are not there, in both formats; broken zip archives."""
        for legacy in (False, True):
            options = {"_use_new_zipfile_serialization": not legacy}
            kind = "legacy" if legacy else "zip"
            one = torch.ones(1)
            for key, shape in (
                ("norm.weight", (2**40,)),
                ("tok_embeddings.weight", (2**40, 32)),
                ("tok_embeddings.weight", (64, 2**36)),
                ("layers.0.feed_forward.w1.weight", (2**33, 32)),
                ("cls_embedding.embedding_table.weight", (2**35, 32)),
                ("output.weight", (64, 32)),
            ):
                weights = self.gpt | {key: one.expand(shape)}
                path = self.torch_file({"model": weights}, **options)
                yield f"{kind} {key} expanded to {shape}", self.llamagen(path), False
            same = torch.randn(64, 32)
            many = {f"layers.{i}.attention.wo.weight": same for i in range(3000)}
            path = self.torch_file(self.gpt | many, **options)
            yield f"{kind} 3000 names of one storage", self.llamagen(path), False
            for key, shape in (("quantize.embedding.weight", (2**36, 8)), ("x", (2**40,))):
                path = self.torch_file(self.vq | {key: one.expand(shape)}, **options)
                yield f"{kind} tokenizer {key} {shape}", self.llamagen(vq=path), False
                yield f"{kind} codebook {key} {shape}", self.cluster(path), key == "x" and None
        whole = (self.folder / "gpt.pt").read_bytes()
        for cut in (0, 1, 3, 4, 30, 200, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
            path = self.new(".pt")
            path.write_bytes(whole[:cut])
            yield f"zip first {cut} bytes", self.llamagen(path), False
        path = self.torch_file({"model": self.gpt}, _use_new_zipfile_serialization=False)
        old = path.read_bytes()
        for cut in (1, 14, 20, 40, 500, 2000, len(old) // 2, len(old) - 1):
            path = self.new(".pt")
            path.write_bytes(old[:cut])
            yield f"legacy first {cut} bytes", self.llamagen(path), False

        def drop(end):
            return lambda records: [
                records.pop(name) for name in list(records) if name.endswith(end)
            ]

        def shorten(records):
            name = next(name for name in records if name.endswith("data/0"))
            records[name] = records[name][:-4]

        def garble(records):
            name = next(name for name in records if name.endswith("data.pkl"))
            records[name] = b"\x80\x02" + os.urandom(0) + b"garbage" * 20

        def grow(records):
            name = next(name for name in records if name.endswith("data.pkl"))
            records[name] = b"\x80\x02" + b"N0" * 3_000_000 + b"."

        def long_loop(records):
            name = next(name for name in records if name.endswith("data.pkl"))
            records[name] = b"\x80\x02]" + b"Na" * 1_500_000 + b"."

        for what, change in (
            ("without data/0", drop("data/0")),
            ("without data.pkl", drop("data.pkl")),
            ("storage too short", shorten),
            ("garbled pickle", garble),
            ("pickle of 6 MB", grow),
            ("pickle of 3 MB", long_loop),
            ("second pickle", lambda r: r.update({"other/data.pkl": b"\x80\x02N."})),
            ("script", lambda r: r.update({"gpt/constants.pkl": b"\x80\x02N.", "gpt/code/a": b""})),
        ):
            yield f"zip {what}", self.llamagen(self.rewritten(change)), what == "script" and None
        path = self.new(".pt")
        with (
            zipfile.ZipFile(self.folder / "gpt.pt") as source,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name in source.namelist():
                archive.writestr(name, source.read(name))
        yield "zip compressed", self.llamagen(path), False
        bomb = self.new(".pt")
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("gpt/data.pkl", b"\0" * 2**28)
        yield "zip bomb", self.llamagen(bomb), False
        for what, content in (
            ("text", b"hello world"),
            ("tar", b"gpt\0" * 200),
            ("html", b"<!DOCTYPE html><html>404</html>"),
            ("git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            ("zip of nothing", b"PK\x05\x06" + b"\0" * 18),
            ("zeros", b"\0" * 4096),
        ):
            path = self.new(".pt")
            path.write_bytes(content)
            yield f".pt of {what}", self.llamagen(path), False
            yield f"codebook .pt of {what}", self.cluster(path), False

    def pickled(self, code: bytes) -> Path:
        """The generator's archive with another pickle."""

        def change(records):
            name = next(name for name in records if name.endswith("data.pkl"))
            records[name] = code

        return self.rewritten(change)

    def pickles(self) -> Iterator[Case]:
        """Objects and instructions that no weights need, written by hand where Python would not."""
        target = self.folder / "executed"

        class Trap:
            def __reduce__(self):
                return Path.write_text, (target, "executed")

        class Evaluated:
            def __reduce__(self):
                return eval, ("1 + 1",)

        objects = {
            "trap": Trap(),
            "eval": Evaluated(),
            "range": range(5),
            "complex": 1j,
            "set": {1, 2},
            "bytes": b"abc",
            "path": Path("x"),
            "array": np.zeros(3),
            "number of NumPy": np.float64(3),
            "generator": torch.Generator,
            "module": torch.nn.Linear(2, 2),
            "namespace": argparse.Namespace(a=1),
            "defaultdict": collections.defaultdict(list),
            "ordered": collections.OrderedDict(a=1),
        }
        harmless = ("namespace", "ordered", "bytes", "set", "complex")
        for what, value in objects.items():
            may = None if what in harmless else False
            path = self.torch_file({"model": self.gpt, "extra": value})
            yield f"object {what}", self.llamagen(path), may
            path = self.torch_file({"model": self.gpt | {"extra": value}})
            yield f"object {what} among weights", self.llamagen(path), may
            path = self.new(".pt")
            try:
                path.write_bytes(pickle.dumps({"model": {}, "x": value}, protocol=2))
            except (pickle.PicklingError, AttributeError):  # local classes
                continue
            yield f"plain pickle of {what}", self.llamagen(path), False
        call = b"\x80\x02c%s\n%s\n%s\x85R."
        for what, code in {
            "os.system": b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",
            "posix.system": b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.",
            "bytearray of 2^40": call % (b"builtins", b"bytearray", b"\x8a\x06\0\0\0\0\0\x01"),
            "list of a range": call % (b"builtins", b"list", b"N"),
            "torch.load": call % (b"torch", b"load", b"X\x01\0\0\0a"),
            "torch.ones of 2^40": call % (b"torch", b"ones", b"\x8a\x06\0\0\0\0\0\x01"),
            "torch.Tensor of 2^40": call % (b"torch", b"Tensor", b"\x8a\x06\0\0\0\0\0\x01"),
            "Size of 2^40": call % (b"torch", b"Size", b"\x8a\x06\0\0\0\0\0\x01"),
            "storage of 2^40": call % (b"torch", b"FloatStorage", b"\x8a\x06\0\0\0\0\0\x01"),
            "unknown module": call % (b"nowhere", b"nothing", b"N"),
            "memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
            "memo that is empty": b"\x80\x02j\x05\0\0\0.",
            "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
            "byte array of 2^40": b"\x80\x05\x96\0\0\0\0\0\x01\0\0.",
            "deep tuple": b"\x80\x02N" + b"\x85" * 300_000 + b".",
            "deep tuple as a key": b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.",
            "deep list": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
            "list in itself": b"\x80\x02]q\0h\0a.",
            "empty": b"",
            "stop alone": b".",
            "empty stack": b"\x80\x02R.",
            "marks": b"\x80\x02" + b"(" * 300_000 + b".",
            "extension": b"\x80\x02\x82\x01.",
            "instance": b"\x80\x02(cos\nsystem\no.",
            "integer of 200 digits": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
            "not ended": b"\x80\x02}",
            "None": b"\x80\x02N.",
            "persistent text": b"\x80\x02X\x01\0\0\0aQ.",
            "persistent other": b"\x80\x02X\x05\0\0\0otherX\x01\0\0\0a\x86Q.",
        }.items():
            yield f"pickle {what}", self.llamagen(self.pickled(code)), False
            yield f"mapping pickle {what}", self.dcpe(self.pickled(code)), False

    def weights(self) -> Iterator[Case]:
        """Whole files whose weights are no generator's or tokenizer's."""
        for key in sorted(self.gpt)[:: max(1, len(self.gpt) // 8)]:
            for what, bad in (("NaN", torch.nan), ("infinity", torch.inf), ("-inf", -torch.inf)):
                changed = self.gpt[key].clone()
                changed.view(-1)[self.random.randrange(changed.numel())] = bad
                path = self.torch_file({"model": self.gpt | {key: changed}})
                yield f"{what} in {key}", self.llamagen(path), False
        for key in ("encoder.conv_in.weight", "quantize.embedding.weight", "decoder.conv_out.bias"):
            changed = self.vq[key].clone()
            changed.view(-1)[0] = torch.nan
            path = self.torch_file(self.vq | {key: changed})
            yield f"NaN in {key}", self.llamagen(vq=path), False
        overflow = {key: (value * 1e30).half() for key, value in self.gpt.items()}
        yield "float16 overflow", self.llamagen(self.torch_file(overflow)), False
        for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64):
            for key in ("norm.weight", "tok_embeddings.weight"):
                path = self.torch_file(self.gpt | {key: self.gpt[key].to(dtype)})
                yield f"{dtype} {key}", self.llamagen(path), False
        shapes = ((), (0,), (0, 32), (32, 0), (1,) * 20, (2, 3, 4), (1, 1), (65, 32), (64, 33))
        for key in ("tok_embeddings.weight", "norm.weight", "layers.0.feed_forward.w1.weight"):
            for shape in shapes:
                path = self.torch_file(self.gpt | {key: torch.ones(shape)})
                yield f"{key} of shape {shape}", self.llamagen(path), False
        for key in ("quantize.embedding.weight", "quant_conv.weight", "encoder.conv_in.weight"):
            for shape in ((), (0, 8), (8,), (31, 32, 1, 1), (64, 9, 1)):
                path = self.torch_file(self.vq | {key: torch.ones(shape)})
                yield f"{key} of shape {shape}", self.llamagen(vq=path), False
        key = "encoder.conv_blocks.0.res.0.conv1.weight"
        for channels in (1, 31, 33, 2**16):
            path = self.torch_file(self.vq | {key: torch.zeros(channels, 1, 1, 1)})
            yield f"tokenizer of {channels} channels", self.llamagen(vq=path), False
        for what, keys in {
            "layer 999999999": ["layers.999999999.attention.wqkv.weight"],
            "layer of 5000 digits": [f"layers.{'9' * 5000}.attention.wqkv.weight"],
            "layer -1": ["layers.-1.attention.wqkv.weight"],
            "layer 00": ["layers.00.attention.wqkv.weight"],
            "layer of other digits": ["layers.\u0663.attention.wqkv.weight"],
            "no name": [""],
            "name of 100,000 letters": ["a" * 100_000],
            "names of a thousand": [f"other.{i}.weight" for i in range(1000)],
            "name twice": ["module.norm.weight"],
            "name in lines": ["a\nb\nc"],
            "format": ["layers.{}.{0}.weight"],
            "blocks 77": ["encoder.conv_blocks.77.res.0.conv1.weight"],
            "number": [17],
            "tuple": [("a", 1)],
            "none": [None],
        }.items():
            path = self.torch_file(self.gpt | dict.fromkeys(keys, torch.ones(3)))
            yield f"generator with {what}", self.llamagen(path), False
            path = self.torch_file(self.vq | dict.fromkeys(keys, torch.ones(3)))
            yield f"tokenizer with {what}", self.llamagen(vq=path), False
        for what, content in {
            "a list": [self.gpt],
            "a tensor": torch.ones(3),
            "text": "weights",
            "nothing": {},
            "numbers": {"a": 1, "b": 2.0},
            "lists": {"model": [torch.ones(2)]},
            "ema of numbers": {"ema": {"a": 1}, "model": {"b": 2}},
            "the tokenizer": self.vq,
            "IAR2's tokenizer": self.vq2,
            "clusters": self.clusters,
        }.items():
            yield f"generator of {what}", self.llamagen(self.torch_file(content)), False
        for heads in ("0", "-1", "3", "1000000007"):
            arguments = self.llamagen()
            arguments[arguments.index("--heads") + 1] = heads
            yield f"{heads} heads", arguments, False
        for size in ("0", "-8", "7", "1000000000000", "99999999999999999999"):
            arguments = self.llamagen()
            arguments[arguments.index("--image-size") + 1] = size
            yield f"image size {size}", arguments, False

    def mappings(self) -> Iterator[Case]:
        """Cluster indices and permutations."""
        for what, content in {
            "float": self.index.float(),
            "bool": self.index.bool(),
            "complex": self.index.to(torch.complex64),
            "matrix": self.index.view(8, 8),
            "scalar": torch.tensor(3),
            "empty": self.index[:0],
            "short": self.index[:-1],
            "long": torch.cat([self.index, self.index]),
            "negative": self.index - 1,
            "huge": self.index + 2**60,
            "a cluster left out": self.index.clamp_max(5) * 2,
            "all one": torch.zeros(CODES, dtype=torch.int64),
            "expanded": torch.zeros(1, dtype=torch.int64).expand(2**40),
            "a list": self.index.tolist(),
            "text": "0 1 2",
            "two": {"a": self.index, "b": self.index},
            "a trap": {"a": eval},
        }.items():
            path = self.torch_file(content)
            yield f"index {what}", self.dcpe(path), False
            yield f"permutation {what}", self.iar(path), False

    def outputs(self) -> Iterator[Case]:
        """Places where nothing may be written; the runner gives all other cases a new one."""
        (self.folder / "elsewhere").mkdir()
        (self.folder / "elsewhere" / "kept.txt").write_text("years of work")
        (self.folder / "to-folder").symlink_to(self.folder / "elsewhere")
        (self.folder / "to-nothing").symlink_to(self.folder / "gone")
        (self.folder / "to-file").symlink_to(self.folder / "gpt.pt")
        (self.folder / "to-itself").symlink_to(self.folder / "to-itself")
        (self.folder / "empty-target").mkdir()
        (self.folder / "to-empty").symlink_to(self.folder / "empty-target")
        rows = self.new(".npy")
        np.save(rows, np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))
        for out in (
            "to-folder", "to-nothing", "to-file", "to-itself", "to-empty", "gpt.pt", "elsewhere",
        ):  # fmt: skip
            for more in ([], ["--overwrite"]):
                arguments = self.llamagen(None, None, "--out", str(self.folder / out), *more)
                yield f"convert to {out} {more}", arguments, False
            yield f"cluster to {out}", self.cluster(rows, "--out", str(self.folder / out)), False
        for what, text in (
            ("list", "[]"),
            ("deep", "[" * 100_000),
            ("cut", '{"_class_name"'),
            ("bytes", "\0\0"),
        ):
            out = self.folder / f"map-{what}"
            out.mkdir()
            (out / "config.json").write_text(text)
            yield f"cluster over a {what}", self.cluster(rows, "--out", str(out)), False

    def arrays(self) -> Iterator[Case]:
        """.npy files."""
        rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
        bad = {
            "objects": np.array([[object()] * 3] * 5, dtype=object),
            "trap": np.array([eval], dtype=object),
            "NaN": np.where(rows > 1, np.nan, rows),
            "infinity": np.where(rows > 1, np.inf, rows),
            "float16 overflow": np.where(rows > 1, np.inf, rows).astype(np.float16),
            "too large for float32": rows.astype(np.float64) * 1e300,
            "three dimensions": rows.reshape(3, 4, 3),
            "one dimension": rows[0],
            "no dimension": np.float32(3),
            "no rows": rows[:0],
            "no columns": rows[:, :0],
            "integers": rows.astype(np.int64),
            "bool": rows > 0,
            "complex": rows.astype(np.complex64),
            "text": rows.astype(str),
            "dates": rows.astype("datetime64[s]"),
            "fields": np.zeros(5, dtype=[("a", "f4"), ("b", "f4")]),
            "long double": rows.astype(np.longdouble),
            "fewer rows than clusters": rows[:3],
        }
        for what, array in bad.items():
            path = self.new(".npy")
            np.save(path, array, allow_pickle=True)
            may_be_read = what in ("long double", "integers")
            yield f"array {what}", self.cluster(path), None if may_be_read else False
        for what, array in {
            "big endian": rows.astype(">f4"),
            "by columns": np.asfortranarray(rows),
            "float16": rows.astype(np.float16),
            "float64": rows.astype(np.float64),
        }.items():
            path = self.new(".npy")
            np.save(path, array)
            yield f"array {what}", self.cluster(path), True
        stream = io.BytesIO()
        np.save(stream, rows)
        whole = stream.getvalue()
        for cut in (0, 1, 6, 8, 10, 64, 127, 128, 130, len(whole) - 1):
            path = self.new(".npy")
            path.write_bytes(whole[:cut])
            yield f"array first {cut} bytes", self.cluster(path), False
        for what, text in {
            "2^40 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (2**40, 3)}",
            "a trillion rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (10**12, 3)}",
            "1099511627776 rows": "{'descr': '<f4', 'fortran_order': False, "
            "'shape': (1099511627776, 3)}",
            "2^63 rows": "{'descr': '<f4', 'fortran_order': False, "
            "'shape': (9223372036854775808,)}",
            "negative rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3)}",
            "deep": "(" * 5000 + ")" * 5000,
            "code": "__import__('os').system('id')",
            "no shape": "{'descr': '<f4', 'fortran_order': False}",
            "list": "[1, 2]",
            "object descr": "{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}",
            "unknown descr": "{'descr': 'zz', 'fortran_order': False, 'shape': (3, 3)}",
        }.items():
            text = text.encode().ljust(118) + b"\n"
            path = self.new(".npy")
            path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + whole[128:])
            yield f"array header {what}", self.cluster(path), False
        path = self.new(".npy")
        with path.open("wb") as file:
            np.savez(file, a=rows, b=rows)
        yield "array archive", self.cluster(path), False

    def folders(self) -> Iterator[Case]:
        """Folders of models: indexes of shards, configs, model_index.json."""
        rows = torch.randn(12, 3)
        key = "quantize.embedding.weight"
        for what, text in {
            "up": json.dumps({"weight_map": {key: "../vq.safetensors"}}),
            "absolute": json.dumps({"weight_map": {key: str(self.folder / "vq.safetensors")}}),
            "missing": json.dumps({"weight_map": {key: "gone.safetensors"}}),
            "number": json.dumps({"weight_map": {key: 3}}),
            "list": json.dumps({"weight_map": [key]}),
            "no map": "{}",
            "bare list": "[]",
            "deep": '{"weight_map": ' * 50_000,
            "cut": '{"weight_map": {"',
            "name of 100,000 letters": json.dumps({"weight_map": {key: "a" * 100_000}}),
            "bytes": "\ufffd" * 100,
        }.items():
            folder = self.new("")
            folder.mkdir()
            (folder / "model.safetensors.index.json").write_text(text)
            save_file({key: rows}, folder / "other.safetensors")
            yield f"index {what}", self.cluster(folder), False
        for what, text in {
            "a list": "[]",
            "deep": "[" * 100_000,
            "cut": '{"_class_name":',
            "empty": "",
            "17 MB": '{"a": "' + "b" * 17_000_000 + '"}',
            "twice": '{"_class_name": "CodecladePipeline", "_class_name": "X"}',
        }.items():
            folder = self.new("")
            folder.mkdir()
            (folder / "model_index.json").write_text(text)
            yield f"back from {what}", ["convert", "to-llamagen", str(folder)], False

    def flipped_bytes(self) -> Iterator[Case]:
        """Random bytes of headers and pickles changed: refused, or as good as before."""
        for kind, number in (("safetensors", 60), ("pt", 60)):
            whole = (self.folder / f"gpt.{kind}").read_bytes()
            start, end = 0, int.from_bytes(whole[:8], "little") + 8
            if kind == "pt":
                start = whole.index(b"\x80\x02")
                end = whole.index(b"PK", start)
            for _ in range(number):
                changed = bytearray(whole)
                for _ in range(self.random.choice((1, 1, 2, 8))):
                    changed[self.random.randrange(start, end)] = self.random.randrange(256)
                path = self.new(f".{kind}")
                path.write_bytes(changed)
                yield f"flipped {path.name}", self.llamagen(path), None
