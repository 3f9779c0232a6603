"""Photographs: how they are cropped and where they come from."""

import numpy as np
import pytest
import torch
from PIL import Image

from codeclade.data.images import LabeledImages, load_images, plain_batches

CLASSES = ("apple", "boat", "cloud")


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def labeled(count: int = 4, crop: float = 1.5, size: int = 8, **shape) -> LabeledImages:
    rows = [{"image": picture(i, **shape)} for i in range(count)]
    return LabeledImages(rows, torch.arange(count) % 2, ["a", "b"], size, crop)


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Builder of an image folder: `counts` images a class in every split (None: no split level)."""

    def build(counts: dict[str | None, int]):
        folder = tmp_path_factory.mktemp("photos")
        for split, count in counts.items():
            for label, name in enumerate(CLASSES):
                place = folder / (split or ".") / name
                place.mkdir(parents=True)
                for i in range(count):
                    gray = 60 * label + i
                    Image.new("RGB", (12, 10), (gray, gray, gray)).save(place / f"{i}.png")
        return str(folder)

    return build


def test_views_are_a_function_of_the_seed():
    images = labeled()
    view, label = images[1, 7]
    assert view.shape == (3, 8, 8)
    assert view.dtype == torch.uint8
    assert label == 1
    assert torch.equal(images[1, 7][0], view)
    assert len({images[1, seed][0].numpy().tobytes() for seed in range(20)}) > 10


def test_an_image_is_decoded_once_for_all_of_its_views():
    class Rows(list):
        opened = 0

        def __getitem__(self, index):
            Rows.opened += 1
            return super().__getitem__(index)

    images = labeled()
    images.rows = Rows(images.rows)
    views = images.views(2, [None, 5, 6])
    assert Rows.opened == 1
    assert torch.equal(views, torch.stack([images[2, seed][0] for seed in (None, 5, 6)]))


def test_without_a_seed_the_crop_is_central_and_unflipped():
    images = labeled(width=24, height=20, size=20)
    expected = np.asarray(picture(2))[:, 2:22].transpose(2, 0, 1)
    np.testing.assert_array_equal(images[2, None][0], expected)


def test_without_crop_a_square_image_is_only_flipped():
    images = labeled(crop=1.0, width=8, height=8)
    original = torch.from_numpy(np.asarray(picture(0, 8, 8)).transpose(2, 0, 1).copy())
    views = [images[0, seed][0] for seed in range(60)]
    flipped = [torch.equal(view, original.flip(2)) for view in views]
    assert all(f or torch.equal(v, original) for f, v in zip(flipped, views, strict=True))
    assert 15 < sum(flipped) < 45


def test_random_crops_reach_every_corner():
    images = labeled(count=1, crop=1.0, width=10, height=8)
    array = np.asarray(picture(0, 10, 8)).transpose(2, 0, 1)
    windows = {array[:, :, left : left + 8].tobytes(): left for left in range(3)}
    windows |= {array[:, :, left : left + 8][:, :, ::-1].tobytes(): left for left in range(3)}
    seen = {windows[images[0, seed][0].numpy().tobytes()] for seed in range(60)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (8, 9), (3, 3), (64, 64)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_images_of_any_shape_give_the_asked_size(shape, seed):
    images = labeled(count=1, width=shape[0], height=shape[1])
    assert images[0, seed][0].shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode_become_rgb(mode):
    rows = [{"image": picture(0).convert(mode)}]
    images = LabeledImages(rows, torch.zeros(1, dtype=torch.int64), ["a"], 8, 1.0)
    assert images[0, None][0].shape == (3, 8, 8)


def test_plain_batches_give_all_items_in_order():
    images = labeled(count=7)
    batches = list(plain_batches(images, 3))
    assert [len(batch) for batch, _ in batches] == [3, 3, 1]
    stacked = torch.cat([batch for batch, _ in batches])
    assert torch.equal(stacked, torch.stack([images[i, None][0] for i in range(7)]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_image_folder_with_splits(photo_folder):
    source = photo_folder({"train": 4, "validation": 2})
    train, validation = (load_images(source, split, 8) for split in ("train", "validation"))
    assert len(train) == 12
    assert len(validation) == 6
    assert train.class_names == list(CLASSES)
    for images in (train, validation):
        for i in range(len(images)):
            view, label = images[i, None]
            assert view.shape == (3, 8, 8)
            assert view.float().mean().item() // 60 == label  # the gray tells the class


def test_without_a_validation_split_a_fixed_share_is_held_out(photo_folder):
    source = photo_folder({None: 20})

    def grays(split: str) -> list[int]:
        images = load_images(source, split, 8)
        return [images[i, None][0][0, 0, 0].item() for i in range(len(images))]

    train, validation = grays("train"), grays("validation")
    assert len(validation) == 3  # 5 % of 60
    assert sorted(train + validation) == sorted(60 * c + i for c in range(3) for i in range(20))
    assert grays("validation") == validation


def test_a_subset_of_classes_is_numbered_in_the_given_order(photo_folder):
    source = photo_folder({"train": 3, "validation": 1})
    images = load_images(source, "train", 8, ["cloud", "apple"])
    assert images.class_names == ["cloud", "apple"]
    assert len(images) == 6
    for i in range(6):
        view, label = images[i, None]
        assert view.float().mean().item() // 60 == (2, 0)[label]


def test_classes_can_be_renamed(photo_folder):
    source = photo_folder({"train": 2, "validation": 1})
    images = load_images(source, "train", 8, {"boat": "sailing boat", "apple": "red apple"})
    assert images.class_names == ["sailing boat", "red apple"]
    assert sorted(images.labels.tolist()) == [0, 0, 1, 1]


def test_an_unknown_class_is_named(photo_folder):
    source = photo_folder({"train": 2, "validation": 1})
    with pytest.raises(ValueError, match="has no class 'dog'; it has apple, boat, cloud"):
        load_images(source, "train", 8, ["apple", "dog"])


def test_images_without_classes_have_one_label(tmp_path):
    for i in range(24):
        picture(i).save(tmp_path / f"{i}.png")
    images = load_images(str(tmp_path), "train", 8)
    assert images.class_names == ["image"]
    assert not images.labels.any()
    assert len(images) == 22


def test_a_table_without_images_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("text,number\n" + "hello,1\n" * 40)
    with pytest.raises(ValueError, match=r"has no 'image' column; it has \['text', 'number'\]"):
        load_images(str(tmp_path), "train", 8)


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        load_images(str(tmp_path), "train", 8)
