"""Mutated .pt: archives whose records do not fit, and pickles that no weights need."""

import argparse
import collections
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fuzz.published import Case, Published


def rewritten(files: Published, change) -> Path:
    """The generator's archive with its records changed: {name: bytes}."""
    with zipfile.ZipFile(files.folder / "gpt.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    path = files.new(".pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def archives(files: Published) -> Iterator[Case]:
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
            weights = files.gpt | {key: one.expand(shape)}
            path = files.torch_file({"model": weights}, **options)
            yield f"{kind} {key} expanded to {shape}", files.llamagen(path), False
        same = torch.randn(64, 32)
        many = {f"layers.{i}.attention.wo.weight": same for i in range(3000)}
        path = files.torch_file(files.gpt | many, **options)
        yield f"{kind} 3000 names of one storage", files.llamagen(path), False
        for key, shape in (("quantize.embedding.weight", (2**36, 8)), ("x", (2**40,))):
            path = files.torch_file(files.vq | {key: one.expand(shape)}, **options)
            yield f"{kind} tokenizer {key} {shape}", files.llamagen(vq=path), False
            yield f"{kind} codebook {key} {shape}", files.cluster(path), key == "x" and None
    whole = (files.folder / "gpt.pt").read_bytes()
    for cut in (0, 1, 3, 4, 30, 200, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path = files.new(".pt")
        path.write_bytes(whole[:cut])
        yield f"zip first {cut} bytes", files.llamagen(path), False
    path = files.torch_file({"model": files.gpt}, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    for cut in (1, 14, 20, 40, 500, 2000, len(old) // 2, len(old) - 1):
        path = files.new(".pt")
        path.write_bytes(old[:cut])
        yield f"legacy first {cut} bytes", files.llamagen(path), False

    def drop(end):
        return lambda records: [records.pop(name) for name in list(records) if name.endswith(end)]

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
        yield f"zip {what}", files.llamagen(rewritten(files, change)), what == "script" and None
    path = files.new(".pt")
    with (
        zipfile.ZipFile(files.folder / "gpt.pt") as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    yield "zip compressed", files.llamagen(path), False
    bomb = files.new(".pt")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gpt/data.pkl", b"\0" * 2**28)
    yield "zip bomb", files.llamagen(bomb), False
    for what, content in (
        ("text", b"hello world"),
        ("tar", b"gpt\0" * 200),
        ("html", b"<!DOCTYPE html><html>404</html>"),
        ("git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("zip of nothing", b"PK\x05\x06" + b"\0" * 18),
        ("zeros", b"\0" * 4096),
    ):
        path = files.new(".pt")
        path.write_bytes(content)
        yield f".pt of {what}", files.llamagen(path), False
        yield f"codebook .pt of {what}", files.cluster(path), False


def pickled(files: Published, code: bytes) -> Path:
    """The generator's archive with another pickle."""

    def change(records):
        name = next(name for name in records if name.endswith("data.pkl"))
        records[name] = code

    return rewritten(files, change)


def pickles(files: Published) -> Iterator[Case]:
    """Objects and instructions that no weights need, written by hand where Python would not."""
    target = files.folder / "executed"

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
        path = files.torch_file({"model": files.gpt, "extra": value})
        yield f"object {what}", files.llamagen(path), may
        path = files.torch_file({"model": files.gpt | {"extra": value}})
        yield f"object {what} among weights", files.llamagen(path), may
        path = files.new(".pt")
        try:
            path.write_bytes(pickle.dumps({"model": {}, "x": value}, protocol=2))
        except (pickle.PicklingError, AttributeError):  # local classes
            continue
        yield f"plain pickle of {what}", files.llamagen(path), False
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
        yield f"pickle {what}", files.llamagen(pickled(files, code)), False
        yield f"mapping pickle {what}", files.dcpe(pickled(files, code)), False
