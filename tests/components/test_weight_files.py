"""The reader of weight files believes nothing that the length of the file does not confirm."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from codeclade.components.weight_files import ITEM_BYTES, read_header, read_json


def write(path, header, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_header_is_what_safetensors_wrote(tmp_path):
    weights = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4, dtype=torch.bfloat16),
        "c": torch.zeros((), dtype=torch.int64),
        "d": torch.zeros(0, 5),
        "e": torch.zeros(3, dtype=torch.bool),
    }
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "w.safetensors")
    assert {name: one.shape for name, one in found.items()} == {
        name: tuple(value.shape) for name, value in weights.items()
    }
    assert {name: one.dtype for name, one in found.items()} == {
        "a": "F32", "b": "BF16", "c": "I64", "d": "F32", "e": "BOOL",
    }  # fmt: skip
    assert all(
        one.end - one.start == weights[name].numel() * ITEM_BYTES[one.dtype]
        for name, one in found.items()
    )


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(dtype="F1")}, "unknown dtype 'F1'"),
        ({"a": entry(dtype=["F32"])}, "unknown dtype"),
        ({"a": entry(shape=[2**40])}, "a of shape .* has 8 bytes"),
        ({"a": entry(shape=[-2])}, "has the shape"),
        ({"a": entry(shape=[2.0])}, "has the shape"),
        ({"a": entry(shape=[True, 2])}, "has the shape"),
        ({"a": entry(offsets=[8, 0])}, "has -8 bytes"),
        ({"a": entry(offsets=[0, 8, 8])}, "has the data_offsets"),
        ({"a": entry(offsets=[4, 12])}, "a leaves a gap before it"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "b overlaps another tensor"),
        ({"a": entry() | {"x": 1}}, "needs dtype, shape and data_offsets"),
        ({"a": [1]}, "needs dtype, shape and data_offsets"),
        ([1], "must be an object"),
        (b"[" * 50_000, "nested too deeply"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
    ],
)
def test_headers_that_lie_are_one_sentence(tmp_path, header, words):
    path = write(tmp_path / "w.safetensors", header, b"\0" * 8)
    with pytest.raises(OSError, match=rf"w\.safetensors is damaged: .*{words}") as caught:
        read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("length", [9, 2**31, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_read(tmp_path, length):
    path = write(tmp_path / "w.safetensors", b"{}", length=length)
    with pytest.raises(OSError, match=rf"is truncated: 10 bytes of {length + 8}"):
        read_header(path)


def test_files_that_are_too_short_or_too_long(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1234")
    with pytest.raises(OSError, match="is truncated: 4 bytes"):
        read_header(path)
    with pytest.raises(OSError, match=r"is truncated: \d+ bytes"):
        read_header(write(path, {"a": entry()}, b"\0" * 7))
    with pytest.raises(OSError, match="1 bytes after the last tensor"):
        read_header(write(path, {"a": entry()}, b"\0" * 9))
    assert read_header(write(path, {"__metadata__": {"a": "b"}})) == {}


def test_json_has_a_size_a_depth_and_a_shape(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, {"b": null}]}')
    assert read_json(path) == {"a": [1, {"b": None}]}
    for text, words in (
        ("[1]", "must hold an object, not list"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "no valid JSON"),
        ('"' + "a" * 2**24 + '"', "16,777,218 bytes; JSON of up to 16,777,216"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words) as caught:
            read_json(path)
        assert len(str(caught.value)) < 300
    path.write_text("[1]")
    assert read_json(path, list) == [1]
