"""Code shards as they are read: items, counts, first views, and how little memory they take."""

import json
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from codeclade.data.codes import Codes, codes_folder

SIZES = (5, 7, 1)  # images a shard


def write_shards(folder: Path, shards: list[torch.Tensor], codebook=32, details=None) -> Path:
    names = [f"codes-{i:05d}.safetensors" for i in range(len(shards))]
    for name, ids in zip(names, shards, strict=True):
        labels = torch.arange(len(ids), dtype=torch.int32) % 4
        save_file({"ids": ids, "labels": labels}, folder / name)
    header = {
        "split": "train",
        "codebook_size": codebook,
        "detail_codebook_size": details,
        "shards": names,
        "recipe": {"data": "photos"},
    }
    (folder / "codes.json").write_text(json.dumps(header))
    return folder


def draw(*shape: int, most: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(most, shape, generator=generator).to(torch.uint16)


@pytest.fixture
def shards():
    return [draw(size, 3, 16, seed=size) for size in SIZES]


def test_items_are_found_in_their_shard(tmp_path, shards):
    codes, whole = Codes(write_shards(tmp_path, shards)), torch.cat(shards).long()
    assert len(codes) == 13 and codes.source == "photos"
    assert torch.equal(codes.ids.long(), whole)
    for index in range(13):
        ids, label = codes[index, None]
        assert ids.dtype == torch.int64 and torch.equal(ids, whole[index, 0])
        assert label == torch.cat([torch.arange(size) % 4 for size in SIZES])[index]
    views = {tuple(codes[6, seed][0].tolist()) for seed in range(40)}
    assert views == {tuple(view.tolist()) for view in whole[6]}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_first_views_are_all_images_in_order(tmp_path, shards, batch_size):
    codes = Codes(write_shards(tmp_path, shards))
    batches = list(codes.first_views(batch_size))
    assert max(len(ids) for ids, _ in batches) <= batch_size
    assert torch.equal(torch.cat([ids for ids, _ in batches]), torch.cat(shards)[:, 0].long())
    assert torch.equal(torch.cat([labels for _, labels in batches]), codes.labels)


def test_counts_are_those_of_all_views(tmp_path, shards, monkeypatch):
    monkeypatch.setattr("codeclade.data.codes.COUNTED", 50)  # many parts
    (counts,) = Codes(write_shards(tmp_path, shards)).counts()
    assert torch.equal(counts, torch.cat(shards).long().flatten().bincount(minlength=32))


def test_counts_of_pairs_are_one_a_codebook(tmp_path):
    ids = torch.stack([draw(6, 2, 16), draw(6, 2, 16, most=9, seed=1)], dim=-1)
    codes = Codes(write_shards(tmp_path, [ids[:4], ids[4:]], details=9))
    semantic, details = codes.counts()
    assert torch.equal(semantic, ids[..., 0].long().flatten().bincount(minlength=32))
    assert torch.equal(details, ids[..., 1].long().flatten().bincount(minlength=9))
    assert codes[3, None][0].shape == (16, 2)


def test_an_id_that_the_codebook_does_not_have_is_named(tmp_path, shards):
    shards[1][2, 1, 3] = 40
    with pytest.raises(ValueError, match="holds id 40, but the codebook has 32 codes"):
        Codes(write_shards(tmp_path, shards)).counts()


def test_another_process_gets_the_folder_not_the_ids(tmp_path):
    codes = Codes(write_shards(tmp_path, [draw(100, 10, 256)]))
    sent = pickle.dumps(codes)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[7, 3][0], codes[7, 3][0])


def anonymous_memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_shards_are_mapped_and_counted_in_parts(tmp_path):
    """64 MiB of shards: a copy of them, or their ids as int64 (256 MiB), would be seen."""
    write_shards(tmp_path, [draw(2048, 8, 1024, seed=i) for i in range(2)])
    before, most, done = anonymous_memory(), 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.001):
            most = max(most, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    codes = Codes(tmp_path)
    (counts,) = codes.counts()
    after = anonymous_memory()
    done.set()
    watcher.join()
    assert counts.sum() == 2 * 2048 * 8 * 1024
    assert after - before < 40 * 2**20
    assert most - before < 90 * 2**20  # two parts of 32 MiB as int64, one of them about to go


def test_a_source_that_is_no_folder_and_no_hub_id_is_refused(tmp_path):
    assert codes_folder(tmp_path) == tmp_path
    for wrong in ("/nowhere/at/all", "a/b/c", "user/--name"):
        with pytest.raises(ValueError, match="there is no folder"):
            codes_folder(wrong)
