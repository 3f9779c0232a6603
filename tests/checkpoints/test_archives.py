"""Torch archives that claim what they do not hold are refused before torch reads them."""

import argparse
import collections
import zipfile

import pytest
import torch
from torch import nn

from codeclade.checkpoints.archives import Refused, check_archive
from codeclade.checkpoints.containers import load_checkpoint, load_mapping, read_file

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture(params=[{}, LEGACY], ids=["zip", "legacy"])
def saved(request, tmp_path):
    """Save content in one of the two formats; gives the path."""

    def save(content):
        torch.save(content, tmp_path / "c.pt", **request.param)
        return tmp_path / "c.pt"

    return save


def with_pickle(path, code: bytes):
    """The archive with another pickle."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)
    return path


def with_attributes() -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(2))
    parameter.sharded = True
    return parameter


def test_whatever_training_saves_passes(saved):
    shared = torch.randn(4, 6)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-4, name="x", sizes=[1, 2], flag=None),
        "views": {"row": shared[1], "column": shared[:, 2], "turned": shared.t(), "all": shared},
        "kinds": [
            torch.zeros(2, dtype=dtype)
            for dtype in (
                torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.bool,
            )
        ],
        "odd": {"empty": torch.zeros(0, 5), "scalar": torch.tensor(3.0), "size": shared.shape},
        "parameter": nn.Parameter(torch.ones(2)),
        "ordered": collections.OrderedDict(a=torch.ones(1)),
        "step": 10**12, "big": 2**70, "text": "é" * 300, "device": torch.device("cpu"),
        "dtype": torch.float16, "bytes": b"abc", "set": {1, 2}, "complex": 1j,
        "counter": collections.Counter([3, 3]), "attributes": with_attributes(),
        "pair": (1, ("a", None)),
    }  # fmt: skip
    path = saved(content)
    check_archive(path)
    assert set(read_file(path)) == set(content)


def test_newer_number_types_pass(tmp_path):
    torch.save({"a": torch.zeros(3, dtype=torch.uint16)}, tmp_path / "c.pt")
    check_archive(tmp_path / "c.pt")


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (3, 1)])
def test_one_number_is_not_repeated(saved, shape):
    path = saved({"norm.weight": torch.ones(1).expand(shape)})
    with pytest.raises(ValueError, match=rf"a tensor of {shape[0]}.* numbers, for which it has 4"):
        check_archive(path)
    with pytest.raises(ValueError, match=r"c\.pt is truncated or damaged \(a tensor of"):
        load_checkpoint(path)


def test_an_expanded_mapping_is_refused(saved):
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load_mapping(saved(torch.zeros(1, dtype=torch.int64).expand(2**40)))


def test_one_storage_under_many_names_is_refused(saved):
    one = torch.randn(64, 64)
    with pytest.raises(ValueError, match=r"shorter than the [\d,]+ bytes of weights it names"):
        load_checkpoint(saved({f"layers.{i}.weight": one for i in range(300)}))
    tied = load_checkpoint(saved({"a.weight": one, "b.weight": one}))
    assert torch.equal(tied["a.weight"], tied["b.weight"])


def test_a_name_that_stands_twice_is_refused(saved):
    path = saved({"norm.weight": torch.ones(2), "module.norm.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'module\.norm\.weight' twice"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\nX\x02\0\0\0id\x85R.",
        b"cbuiltins\neval\nX\x01\0\0\x001\x85R.",
        b"ctorch\nload\nX\x01\0\0\0a\x85R.",
        b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
        b"}cos\nsystem\nN\x86R.",
        b"\x82\x01.",
    ],
)
def test_objects_are_refused(tmp_path, code):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pt")
    path = with_pickle(tmp_path / "c.pt", b"\x80\x02" + code)
    with pytest.raises(Refused):
        check_archive(path)
    with pytest.raises(ValueError, match="holds Python objects beside tensors; refused"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"N" + b"\x85" * 100_000 + b".", "tuples more than 16 levels deep"),
        (b"X\xff\xff\xff\xffabc.", "does not end"),
        (b"}", "broken pickle"),
        (b"R.", "broken pickle"),
        (b".", "broken pickle"),
        (b"((.", "broken pickle"),
        (b"NN.", "broken pickle"),
        (b"ctorch\nSize\nK\x05\x85R.", "broken pickle"),
        (b"j\x05\0\0\0.", "broken pickle"),
        (b"N0" * 3_000_000 + b".", "a pickle of more than"),
        (b"]" + b"Na" * 1_000_000 + b".", "more than 1,000,000 instructions"),
        (b"]" + b"}}b" * 300 + b".", "attributes of more than 200 objects"),
    ],
)
def test_broken_and_endless_pickles_are_refused(tmp_path, code, words):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=words):
        check_archive(with_pickle(tmp_path / "c.pt", b"\x80\x02" + code))


def test_zip_archives_must_be_as_torch_writes_them(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="compressed records"):
        check_archive(tmp_path / "packed.pt")
    short = {
        name: content[:-4] if "/data/" in name else content for name, content in records.items()
    }
    for name, change, words in (
        ("short", short, "a storage that is not in the file"),
        ("gone", {n: c for n, c in records.items() if "/data/" not in n}, "a storage that is not"),
        ("two", records | {"x/data.pkl": b"N."}, "2 records data.pkl"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as archive:
            for record, content in change.items():
                archive.writestr(record, content)
        with pytest.raises(ValueError, match=words):
            check_archive(tmp_path / f"{name}.pt")


def test_storages_of_the_older_format_must_be_in_the_file(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "c.pt", **LEGACY)
    content = (tmp_path / "c.pt").read_bytes()
    assert content.count(b"M\xe8\x03") >= 1  # 1000 as a short integer
    (tmp_path / "c.pt").write_bytes(content.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"))
    with pytest.raises(ValueError, match="storages that are larger than the file"):
        check_archive(tmp_path / "c.pt")
