"""Encoding by several processes and workers, and what it keeps of a data set's columns."""

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from codeclade.data.codes import Codes
from codeclade.data.columns import Columns
from codeclade.data.images import load_images

SCRIPT = Path(__file__).parent / "encode_processes.py"
SPEC = importlib.util.spec_from_file_location("encode_processes", SCRIPT)
encode_processes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(encode_processes)


def picture(seed: int) -> PILImage.Image:
    draw = np.random.default_rng(seed)
    return PILImage.fromarray(draw.integers(0, 256, (16, 18, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 20 images."""
    folder = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("blue", "red")):
        (folder / name).mkdir()
        for i in range(20):
            picture(100 * label + i).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """What one process makes of them, by name of the file."""
    out = tmp_path_factory.mktemp("alone")
    encode_processes.encode_photos(str(photos), str(out))
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_makes_the_same_codes(photos, alone, tmp_path, count):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(count), str(SCRIPT), str(photos), str(tmp_path)]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(alone) == 6 + 1 + 2 * 2  # 38 and 2 images: shards, headers and previews
    assert contents(tmp_path) == alone


def test_workers_make_the_same_codes(photos, alone, tmp_path):
    encode_processes.encode_photos(str(photos), str(tmp_path), workers=2)
    found = contents(tmp_path)
    for name in found.keys() | alone.keys():
        if not name.endswith("codes.json"):  # holds the recipe
            assert found[name] == alone[name], name


def table(folder: Path, labels: list, validation: list) -> str:
    """Parquet files with columns of other names, images as bytes."""
    for split, column in (("train", labels), ("validation", validation)):
        features = Features(
            {
                "photo": Image(),
                "breed": Value("string" if isinstance(labels[0], str) else "int64"),
                "text": Value("string"),
            }
        )
        rows = {
            "photo": [{"bytes": png(i), "path": None} for i in range(len(column))],
            "breed": column,
            "text": [f"{split} {i}" for i in range(len(column))],
        }
        Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "validation", "names", "numbers"),
    [
        (["pug", "cat", "pug"], ["pug", "eft"], ["cat", "eft", "pug"], ([2, 0, 2], [2, 1])),
        ([10, 9, 10], [10], ["9", "10"], ([1, 0, 1], [1])),
    ],
    ids=["names", "numbers"],
)
def test_classes_are_numbered_over_all_splits(tmp_path, labels, validation, names, numbers):
    source = table(tmp_path, labels, validation)
    columns = Columns("photo", "breed", "text")
    for split, expected in zip(("train", "validation"), numbers, strict=True):
        images = load_images(source, split, 16, columns=columns)
        assert images.class_names == names
        assert images.labels.tolist() == expected
        assert images.captions([0]) == [f"{split} 0"]
    assert load_images(source, "train", 16, columns=Columns("photo")).captions([0]) is None


def test_captions_are_kept_beside_the_codes(tmp_path):
    (tmp_path / "photos").mkdir()
    source = table(tmp_path / "photos", ["a"] * 9, ["a"] * 2)
    given = {"image_column": "photo", "label_column": "breed"}
    out = str(tmp_path / "codes")
    encode_processes.encode_photos(source, out, caption_column="text", **given)
    codes = Codes(tmp_path / "codes" / "train")
    assert codes.captions(0) == [f"train {i}" for i in range(7)]
    assert codes.captions(1) == ["train 7", "train 8"]
    (tmp_path / "codes" / "train" / "captions-00001.json").write_text("[]")
    with pytest.raises(ValueError, match="has not one caption an image"):
        codes.captions(1)
    encode_processes.encode_photos(source, str(tmp_path / "bare"), **given)
    with pytest.raises(ValueError, match="has no captions; encode with caption_column=NAME"):
        Codes(tmp_path / "bare" / "train").captions(0)


def test_tars_of_webdataset_are_read_by_their_endings(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for i in range(40):
            caption, label = f"picture {i}".encode(), str(i % 3).encode()
            for ending, content in (("png", png(i)), ("cls", label), ("txt", caption)):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    columns = Columns("png", "cls", "txt")
    images = load_images(str(tmp_path), "train", 16, columns=columns)
    assert images.class_names == ["0", "1", "2"] and len(images) == 38
    for index in (0, 5):
        (caption,) = images.captions([index])
        number = int(caption.split()[1])
        assert images.labels[index] == number % 3
        expected = torch.from_numpy(np.asarray(picture(number))[:, 1:17].transpose(2, 0, 1).copy())
        assert torch.equal(images[index, None][0], expected)


@pytest.mark.parametrize("columns", [Columns("foto"), Columns("", "foto"), Columns(caption="foto")])
def test_a_column_that_is_not_there_is_named(tmp_path, columns):
    source = table(tmp_path, ["a"], ["a"])
    with pytest.raises(ValueError, match="has no column 'foto'; it has photo, breed, text"):
        load_images(source, "train", 16, columns=columns)


def test_a_caption_that_is_no_text_is_named(tmp_path):
    rows = {"image": [{"bytes": png(0), "path": None}] * 2, "text": [["one", "two"], []]}
    kinds = {"image": Image(), "text": [Value("string")]}
    Dataset.from_dict(rows, Features(kinds)).to_parquet(tmp_path / "validation.parquet")
    Dataset.from_dict(rows, Features(kinds)).to_parquet(tmp_path / "train.parquet")
    images = load_images(str(tmp_path), "train", 16, columns=Columns(caption="text"))
    assert images.captions([0]) == ["one"]
    with pytest.raises(ValueError, match=r"image 1 has \[\] in its column 'text', not a text"):
        images.captions([0, 1])


def test_a_negative_number_of_workers_is_refused(photos):
    with pytest.raises(ValueError, match="workers is -1; it must be 0 or more"):
        encode_processes.EncodeRecipe(data=str(photos), image_size=16, workers=-1)
