"""Image folders listed by ourselves: what `datasets` gives for the same folder, in less time."""

import os

import datasets
import pytest
from huggingface_hub import constants
from PIL import Image

from codeclade.data.folders import check_there, class_folders, open_source
from codeclade.data.streaming import open_stream

pytest_plugins = "fake_hub.fixtures"

PLAIN = {"": ["cat/2.png", "cat/10.png", "cat-2/1.PNG", "dog/a b.jpg", "ape/x.webp"]}
SPLIT = {
    "train": ["cat/0.png", "cat/1.png", "dog/0.png"],
    "val": ["cat/0.png"],
    "test": ["dog/7.png", "ape/0.bmp"],
}
OTHER_FORMS = {
    "one class": ["cat/0.png", "cat/1.png"],
    "a split in a file's name": ["cat/0.png", "dog/test_1.png"],
    "a class called like a split": ["train/cat/0.png", "train/val/0.png"],
    "a vehicle": ["train/0.png", "boat/0.png"],
    "two depths": ["cat/0.png", "dog/small/0.png"],
    "two names of a split": ["train/a/0.png", "val/a/0.png", "valid/b/0.png"],
    "no classes": ["0.png", "1.png"],
}


def folder_of(place, files, more=()):
    for number, name in enumerate(files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        ending = "PNG" if name.lower().endswith("png") else None
        Image.new("RGB", (4, 4), (number, 0, 0)).save(place / name, ending)
    for name in more:
        (place / name).write_text("file_name,text\n")
    return place


def plain(parts):
    """Everything that a split holds, its order included."""
    return {
        name: (
            rows.features,
            [(row["image"]["path"], row["label"]) for row in rows.cast_column("image", UNREAD)],
            [image.getpixel((0, 0)) for image in rows["image"]],
        )
        for name, rows in parts.items()
    }


UNREAD = datasets.Image(decode=False)


@pytest.mark.parametrize("layout", [PLAIN, SPLIT], ids=["classes", "splits"])
def test_rows_are_those_of_load_dataset(tmp_path, layout):
    files = [os.path.join(split, name) for split, names in layout.items() for name in names]
    folder = folder_of(tmp_path / "photos", files)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "notes.txt").write_text("hidden files are nobody's images")
    found = class_folders(folder)
    theirs = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert found is not None and list(found) == list(theirs)
    ours, expected = plain(found), plain(theirs)
    for split in expected:  # jpg is not exact, but both read the same file
        assert ours[split][1:] == expected[split][1:]
        assert ours[split][0]["label"] == expected[split][0]["label"]
    assert not any(rows.cache_files for rows in found.values())  # nothing is copied


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_are_left_to_load_dataset(tmp_path, form):
    assert class_folders(folder_of(tmp_path, OTHER_FORMS[form])) is None


def test_a_folder_with_a_table_is_left_to_load_dataset(tmp_path):
    folder = folder_of(tmp_path, ["cat/0.png", "dog/0.png"], ["cat/metadata.csv"])
    assert class_folders(folder) is None


@pytest.mark.parametrize("name", ["photos/", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"there is no folder {name} of images, and it is no Hub"):
        open_source(name)


@pytest.mark.parametrize("name", ["nowhere", "tester/nowhere"])
@pytest.mark.parametrize("read", [open_source, lambda name: open_stream(name, "train", 8)])
@pytest.mark.parametrize("connected", [True, False])
def test_a_name_that_is_nowhere_is_asked_for_once(hub, waits, monkeypatch, name, read, connected):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint if connected else "http://127.0.0.1:1")
    words = f"there is no folder {name}, and no dataset {name} of the Hub that could be read; check"
    with pytest.raises(ValueError, match=words):
        read(name)
    assert len(hub.requests()) == connected and not waits


def test_a_dataset_that_was_read_before_is_not_asked_for(tmp_path, monkeypatch, loopback_only):
    (tmp_path / "tester___photos").mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    check_there("tester/photos")
