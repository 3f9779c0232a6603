"""Data sets that are streamed, and splits by name; parquet files here stand for a Hub."""

import io
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from codeclade.data.columns import Columns
from codeclade.data.images import load_images, view
from codeclade.data.splits import Splits
from codeclade.data.streaming import RandomViews, open_stream, seed_of

NAMES = ("apple", "boat", "cloud")


def encoded(gray: int) -> dict:
    """A PNG of one gray value, which tells the image."""
    file = io.BytesIO()
    PILImage.fromarray(np.full((9, 8, 3), gray, np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(
    folder, split: str, grays: list[int], number: int = 0, named: bool = True, damaged=None
) -> None:
    label = ClassLabel(names=list(NAMES)) if named else Value("int64")
    features = Features({"image": Image(), "label": label, "text": Value("string")})
    rows = {
        "image": [encoded(gray) for gray in grays],
        "label": [gray % 3 for gray in grays],
        "text": [f"gray {gray}" for gray in grays],
    }
    if damaged is not None:
        rows["image"][damaged] = {"bytes": b"no", "path": "x.png"}
    Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-{number:05d}.parquet")


@pytest.fixture
def source(tmp_path):
    """Four files of ten training images, and one of seven held out."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(4):
        write(folder, "train", list(range(10 * number, 10 * number + 10)), number)
    write(folder, "test", list(range(100, 107)))
    return str(folder)


def opened(source: str, split: str = "train", **settings):
    return open_stream(source, split, splits=Splits("", "test"), **settings)


def grays(pairs) -> list[int]:
    return [int(pixels[0, 0, 0]) for pixels, _ in pairs]


def views(stream, seed=0, share=(0, 1), passed=0, buffer=5) -> RandomViews:
    return RandomViews(stream, partial(view, size=8, crop=1.0), seed, share, passed, buffer)


def test_a_stream_has_the_rows_and_classes_of_the_source(source):
    stream = opened(source)
    assert stream.class_names == list(NAMES)
    found = [(np.asarray(stream.photograph(row))[0, 0, 0], label) for row, label in stream.rows()]
    assert found == [(gray, gray % 3) for gray in range(40)]
    some = opened(source, classes={"cloud": "sky", "apple": "fruit"})
    assert some.class_names == ["sky", "fruit"]
    assert [label for _, label in some.rows()] == [
        [1, 0][g % 3 == 2] for g in range(40) if g % 3 != 1
    ]
    held_out = opened(source, "validation").first(5, 8)
    assert len(held_out) == 5 and held_out[2, None][0][0, 0, 0] == 102
    assert held_out.labels.tolist() == [g % 3 for g in range(100, 105)]


def test_an_epoch_has_every_image_once_in_an_order_of_the_seed(source):
    first = grays(islice(views(opened(source)), 80))
    assert sorted(first[:40]) == sorted(first[40:]) == list(range(40))
    assert first[:40] != first[40:] != list(range(40)) and first[:40] != sorted(first[:40])
    assert grays(islice(views(opened(source)), 80)) == first
    assert grays(islice(views(opened(source), seed=1), 40)) != first[:40]


@pytest.mark.parametrize("count", [2, 3], ids=["shards", "rows"])
def test_processes_share_an_epoch(source, count):
    shares = [
        grays(islice(views(opened(source), share=(rank, count)), 40 // count))
        for rank in range(count)
    ]
    together = [gray for share in shares for gray in share]
    assert len(set(together)) == len(together)


def test_a_run_that_goes_on_passes_over_what_it_had(source):
    whole = [pixels for pixels, _ in islice(views(opened(source)), 60)]
    for passed in (7, 45):
        rest = [pixels for pixels, _ in islice(views(opened(source), passed=passed), 60 - passed)]
        assert all(torch.equal(a, b) for a, b in zip(whole[passed:], rest, strict=True))


def test_damaged_images_are_refused_or_skipped(tmp_path):
    write(tmp_path, "train", [1, 2, 3], damaged=1)
    write(tmp_path, "test", [4])
    with pytest.raises(ValueError, match=r"x\.png is no image that can be read"):
        list(islice(views(opened(str(tmp_path))), 3))
    skipping = views(opened(str(tmp_path), damaged="skip"), buffer=1)
    assert sorted(grays(islice(skipping, 2))) == [1, 3]


def test_a_seed_is_of_the_image_alone(source):
    seeds = [seed_of(row, 0) for row, _ in opened(source).rows()]
    assert len(set(seeds)) == 40 and all(0 <= seed < 2**56 for seed in seeds)
    share = [seed_of(row, 0) for row, _ in opened(source).rows(1, 2)]
    assert len(share) == 20 and set(share) < set(seeds)
    assert seed_of(next(opened(source).rows())[0], 1) != seeds[0]


def test_what_cannot_be_streamed_is_said(source, tmp_path):
    with pytest.raises(ValueError, match="has no validation split; it has train, test"):
        open_stream(source, "train", splits=Splits("train"))
    (tmp_path / "plain").mkdir()
    for split in ("train", "test"):
        write(tmp_path / "plain", split, [1, 2], named=False)
    with pytest.raises(ValueError, match="have no names in its column 'label'"):
        opened(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="has no column 'words'; it has image, label, text"):
        opened(source, columns=Columns(caption="words"))
    with pytest.raises(ValueError, match="has no class 'dog'"):
        opened(source, classes=["dog"])


def test_splits_have_the_names_of_the_source(source):
    images = load_images(source, "train", 8, splits=Splits("test", "train"))
    assert len(images) == 7
    assert len(load_images(source, "validation", 8, splits=Splits("test", "train"))) == 40
    assert len(load_images(source, "train", 8)) == 38, "a twentieth is held out of train"
    words = r"has no split 'dev'; it has train, test\. Name one with validation_split=\."
    with pytest.raises(ValueError, match=words):
        load_images(source, "train", 8, splits=Splits("", "dev"))
    with pytest.raises(ValueError, match=r"has no split 'all'; .* with split=\."):
        load_images(source, "train", 8, splits=Splits("all"))
    with pytest.raises(ValueError, match="are both 'test'"):
        load_images(source, "train", 8, splits=Splits("test", "test"))
