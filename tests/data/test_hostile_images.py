"""Photographs as the world sends them: damaged, of any mode, named in any way, held in any way."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from codeclade.data.images import LabeledImages, as_rgb, load_images


def picture(seed: int = 0, width: int = 12, height: int = 8) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def stored(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """24 good photographs, and three that are damaged in different ways."""
    for i in range(24):
        picture(i).save(tmp_path / f"good{i:02d}.png")
    content = stored(picture(1, 60, 60), "JPEG")
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


def all_of(images: LabeledImages) -> list[torch.Tensor]:
    return [images[i, None][0] for i in range(len(images))]


def test_a_damaged_photograph_is_named(folder):
    images = load_images(str(folder), "all", 8, whole=True)
    with pytest.raises(ValueError, match=r"(half\.jpg|text\.png|empty\.png) is no image") as caught:
        all_of(images)
    assert "damaged_images=skip" in str(caught.value) and len(str(caught.value)) < 300


def test_damaged_photographs_are_skipped_where_that_is_asked_for(folder, capsys):
    images = load_images(str(folder), "all", 8, whole=True, damaged="skip")
    assert len(images) == len(images.labels) == len(all_of(images)) == 24
    named = capsys.readouterr().err
    assert all(f"{name}" in named for name in ("half.jpg", "text.png", "empty.png"))


def test_a_source_of_damaged_photographs_alone_is_refused(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 3 images can be read"):
        load_images(str(tmp_path), "all", 8, whole=True, damaged="skip")


def parquet(path, images: list, labels: list, feature, image: str = "img", label: str = "label"):
    columns = {image: [{"bytes": stored(one), "path": None} for one in images], label: labels}
    features = Features({image: ImageFeature(), label: feature})
    Dataset.from_dict(columns, features=features).to_parquet(path / "train.parquet")


LABELS = {
    "class labels": ([1, 0, 2, 1], ClassLabel(names=["a", "b", "c"]), ["a", "b", "c"]),
    "integers": ([7, 3, 9, 7], Value("int64"), ["3", "7", "9"]),
    "names": (["dog", "cat", "eel", "dog"], Value("string"), ["cat", "dog", "eel"]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("columns", [("img", "label"), ("image", "fine_label"), ("img", "labels")])
def test_columns_as_data_sets_on_the_hub_have_them(tmp_path, kind, columns):
    labels, feature, names = LABELS[kind]
    parquet(tmp_path, [picture(i) for i in range(4)], labels, feature, *columns)
    images = load_images(str(tmp_path), "all", 8, whole=True)
    assert images.class_names == names
    assert images.labels.tolist() == [1, 0, 2, 1]
    assert len(all_of(images)) == 4


@pytest.mark.parametrize("labels", [[0, -1, 1, 0], [0, None, 1, 0]])
def test_a_row_without_a_class_is_refused(tmp_path, labels):
    parquet(tmp_path, [picture(i) for i in range(4)], labels, ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match="images without a class in its column 'label'"):
        load_images(str(tmp_path), "all", 8, whole=True)


def test_a_photograph_without_file_is_named_by_its_row(tmp_path):
    columns = {"image": [{"bytes": stored(picture()), "path": None}, None]}
    Dataset.from_dict(columns, features=Features({"image": ImageFeature()})).to_parquet(
        tmp_path / "train.parquet"
    )
    images = load_images(str(tmp_path), "all", 8, whole=True)
    with pytest.raises(ValueError, match="image 1 of the data set is no image"):
        all_of(images)


def test_sixteen_bits_are_scaled_and_not_cut():
    gray = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = Image.open(io.BytesIO(stored(Image.fromarray(gray))))
    assert image.mode.startswith("I")
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_colors_below_transparent_places_do_not_show():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(as_rgb(image))[0].tolist() == [[255, 255, 255], [10, 20, 30]]
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert np.asarray(as_rgb(palette))[0, 0].tolist() == [255, 255, 255]


def test_photographs_stand_upright():
    image = picture(3, 12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # held with the right side up
    turned = Image.open(io.BytesIO(stored(image, exif=exif.tobytes())))
    upright = np.asarray(as_rgb(turned))
    assert upright.shape == (12, 8, 3)
    assert (upright == np.rot90(np.asarray(image), -1)).all()


def test_print_colors_become_screen_colors():
    image = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    red = np.asarray(as_rgb(image))[0, 0]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    plain = picture()
    assert (np.asarray(as_rgb(plain)) == np.asarray(plain)).all()
