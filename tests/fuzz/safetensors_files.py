"""Mutated .safetensors: headers that say what the file does not hold."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from fuzz.published import Case, Published


def stored(files: Published, weights: dict) -> tuple[dict, bytes]:
    path = files.new(".safetensors")
    save_file(weights, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(files: Published, header, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = files.new(".safetensors")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def headers(files: Published) -> Iterator[Case]:
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
        header, data = stored(files, files.gpt)
        header[name] = header[name] | change
        yield f"header {what}", files.llamagen(with_header(files, header, data)), False
    for field in ("dtype", "shape", "data_offsets"):
        header, data = stored(files, files.gpt)
        del header[name][field]
        yield f"header without {field}", files.llamagen(with_header(files, header, data)), False
    header, data = stored(files, files.gpt)
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
        path = with_header(files, content, data)
        yield f"header {what}", files.llamagen(path), False
        yield f"codebook header {what}", files.cluster(path), False
    for length in (0, 1, 7, len(text) - 1, len(text) + 1, 2**31, 2**62, 2**64 - 1):
        path = with_header(files, text, data, length)
        yield f"header length {length}", files.llamagen(path), False
    yield "bytes after the end", files.llamagen(with_header(files, header, data + b"1234")), False
    yield "data missing", files.llamagen(with_header(files, header, data[:-4])), False
    yield "no data", files.llamagen(with_header(files, header, b"")), False
    content = (files.folder / "gpt.safetensors").read_bytes()
    for share in (0, 1, 4, 7, 8, 9, 100, 1000, len(content) // 2, len(content) - 1):
        path = files.new(".safetensors")
        path.write_bytes(content[:share])
        yield f"first {share} bytes", files.llamagen(path), False
