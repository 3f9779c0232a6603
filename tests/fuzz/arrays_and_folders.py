"""Arrays, folders of models, places to write to, and files with flipped bytes."""

import io
import json
import struct
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.torch import save_file

from fuzz.published import Case, Published


def outputs(files: Published) -> Iterator[Case]:
    """Places where nothing may be written; the runner gives all other cases a new one."""
    (files.folder / "elsewhere").mkdir()
    (files.folder / "elsewhere" / "kept.txt").write_text("years of work")
    (files.folder / "to-folder").symlink_to(files.folder / "elsewhere")
    (files.folder / "to-nothing").symlink_to(files.folder / "gone")
    (files.folder / "to-file").symlink_to(files.folder / "gpt.pt")
    (files.folder / "to-itself").symlink_to(files.folder / "to-itself")
    (files.folder / "empty-target").mkdir()
    (files.folder / "to-empty").symlink_to(files.folder / "empty-target")
    rows = files.new(".npy")
    np.save(rows, np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))
    for out in (
        "to-folder", "to-nothing", "to-file", "to-itself", "to-empty", "gpt.pt", "elsewhere",
    ):  # fmt: skip
        for more in ([], ["--overwrite"]):
            arguments = files.llamagen(None, None, "--out", str(files.folder / out), *more)
            yield f"convert to {out} {more}", arguments, False
        yield f"cluster to {out}", files.cluster(rows, "--out", str(files.folder / out)), False
    for what, text in (
        ("list", "[]"),
        ("deep", "[" * 100_000),
        ("cut", '{"_class_name"'),
        ("bytes", "\0\0"),
    ):
        out = files.folder / f"map-{what}"
        out.mkdir()
        (out / "config.json").write_text(text)
        yield f"cluster over a {what}", files.cluster(rows, "--out", str(out)), False


def arrays(files: Published) -> Iterator[Case]:
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
        path = files.new(".npy")
        np.save(path, array, allow_pickle=True)
        may_be_read = what in ("long double", "integers")
        yield f"array {what}", files.cluster(path), None if may_be_read else False
    for what, array in {
        "big endian": rows.astype(">f4"),
        "by columns": np.asfortranarray(rows),
        "float16": rows.astype(np.float16),
        "float64": rows.astype(np.float64),
    }.items():
        path = files.new(".npy")
        np.save(path, array)
        yield f"array {what}", files.cluster(path), True
    stream = io.BytesIO()
    np.save(stream, rows)
    whole = stream.getvalue()
    for cut in (0, 1, 6, 8, 10, 64, 127, 128, 130, len(whole) - 1):
        path = files.new(".npy")
        path.write_bytes(whole[:cut])
        yield f"array first {cut} bytes", files.cluster(path), False
    for what, text in {
        "2^40 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (2**40, 3)}",
        "a trillion rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (10**12, 3)}",
        "1099511627776 rows": "{'descr': '<f4', 'fortran_order': False, "
        "'shape': (1099511627776, 3)}",
        "2^63 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "negative rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3)}",
        "deep": "(" * 5000 + ")" * 5000,
        "code": "__import__('os').system('id')",
        "no shape": "{'descr': '<f4', 'fortran_order': False}",
        "list": "[1, 2]",
        "object descr": "{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}",
        "unknown descr": "{'descr': 'zz', 'fortran_order': False, 'shape': (3, 3)}",
    }.items():
        text = text.encode().ljust(118) + b"\n"
        path = files.new(".npy")
        path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + whole[128:])
        yield f"array header {what}", files.cluster(path), False
    path = files.new(".npy")
    with path.open("wb") as file:
        np.savez(file, a=rows, b=rows)
    yield "array archive", files.cluster(path), False


def folders(files: Published) -> Iterator[Case]:
    """Folders of models: indexes of shards, configs, model_index.json."""
    rows = torch.randn(12, 3)
    key = "quantize.embedding.weight"
    for what, text in {
        "up": json.dumps({"weight_map": {key: "../vq.safetensors"}}),
        "absolute": json.dumps({"weight_map": {key: str(files.folder / "vq.safetensors")}}),
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
        folder = files.new("")
        folder.mkdir()
        (folder / "model.safetensors.index.json").write_text(text)
        save_file({key: rows}, folder / "other.safetensors")
        yield f"index {what}", files.cluster(folder), False
    for what, text in {
        "a list": "[]",
        "deep": "[" * 100_000,
        "cut": '{"_class_name":',
        "empty": "",
        "17 MB": '{"a": "' + "b" * 17_000_000 + '"}',
        "twice": '{"_class_name": "CodecladePipeline", "_class_name": "X"}',
    }.items():
        folder = files.new("")
        folder.mkdir()
        (folder / "model_index.json").write_text(text)
        yield f"back from {what}", ["convert", "to-llamagen", str(folder)], False


def flipped_bytes(files: Published) -> Iterator[Case]:
    """Random bytes of headers and pickles changed: refused, or as good as before."""
    for kind, number in (("safetensors", 60), ("pt", 60)):
        whole = (files.folder / f"gpt.{kind}").read_bytes()
        start, end = 0, int.from_bytes(whole[:8], "little") + 8
        if kind == "pt":
            start = whole.index(b"\x80\x02")
            end = whole.index(b"PK", start)
        for _ in range(number):
            changed = bytearray(whole)
            for _ in range(files.random.choice((1, 1, 2, 8))):
                changed[files.random.randrange(start, end)] = files.random.randrange(256)
            path = files.new(f".{kind}")
            path.write_bytes(changed)
            yield f"flipped {path.name}", files.llamagen(path), None
