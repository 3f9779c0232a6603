"""Training data: which images a step sees, how they are cropped, and where they come from."""

import numpy as np
import pytest
import torch
from PIL import Image

from codeclade.training.data import (
    LabelledImages,
    StepSampler,
    load_images,
    plain_batches,
    step_loader,
    to_pixels,
)

CLASSES = ("apple", "boat", "cloud")


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def labelled(count: int = 4, crop: float = 1.5, size: int = 8, **shape) -> LabelledImages:
    rows = [{"image": picture(i, **shape)} for i in range(count)]
    return LabelledImages(rows, torch.arange(count) % 2, ["a", "b"], size, crop)


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


def test_every_item_is_seen_once_an_epoch_across_batch_borders():
    sampler = StepSampler(size=10, batch_size=4, seed=1, start=0, end=15)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 15
    assert all(len(batch) == 4 for batch in batches)
    order = [index for batch in batches for index, _ in batch]
    epochs = [order[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_batch_may_span_several_epochs():
    (batch,) = StepSampler(size=3, batch_size=9, seed=0, start=0, end=1)
    assert sorted(index for index, _ in batch) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_view_seeds_never_repeat_and_order_depends_on_the_seed():
    runs = [list(StepSampler(10, 4, seed, 0, 30)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    seeds = [seed for batch in runs[0] + runs[2] for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start", [1, 2, 5, 13, 20])
def test_starting_at_a_step_gives_the_batches_from_there(start):
    whole = list(StepSampler(size=10, batch_size=4, seed=3, start=0, end=20))
    assert list(StepSampler(size=10, batch_size=4, seed=3, start=start, end=20)) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_every_global_batch(world_size):
    whole = StepSampler(size=10, batch_size=12, seed=3, start=2, end=9)
    ranks = [StepSampler(10, 12, 3, 2, 9, rank, world_size) for rank in range(world_size)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert all(len(part) == 12 // world_size for part in parts)
        assert sorted(key for part in parts for key in part) == sorted(batch)


def test_views_are_a_function_of_the_seed():
    images = labelled()
    view, label = images[1, 7]
    assert view.shape == (3, 8, 8)
    assert view.dtype == torch.uint8
    assert label == 1
    assert torch.equal(images[1, 7][0], view)
    assert len({images[1, seed][0].numpy().tobytes() for seed in range(20)}) > 10


def test_without_a_seed_the_crop_is_central_and_unflipped():
    images = labelled(width=24, height=20, size=20)
    expected = np.asarray(picture(2))[:, 2:22].transpose(2, 0, 1)
    np.testing.assert_array_equal(images[2, None][0], expected)


def test_without_crop_a_square_image_is_only_flipped():
    images = labelled(crop=1.0, width=8, height=8)
    original = torch.from_numpy(np.asarray(picture(0, 8, 8)).transpose(2, 0, 1).copy())
    views = [images[0, seed][0] for seed in range(60)]
    flipped = [torch.equal(view, original.flip(2)) for view in views]
    assert all(f or torch.equal(v, original) for f, v in zip(flipped, views, strict=True))
    assert 15 < sum(flipped) < 45


def test_random_crops_reach_every_corner():
    images = labelled(count=1, crop=1.0, width=10, height=8)
    array = np.asarray(picture(0, 10, 8)).transpose(2, 0, 1)
    windows = {array[:, :, left : left + 8].tobytes(): left for left in range(3)}
    windows |= {array[:, :, left : left + 8][:, :, ::-1].tobytes(): left for left in range(3)}
    seen = {windows[images[0, seed][0].numpy().tobytes()] for seed in range(60)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (8, 9), (3, 3), (64, 64)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_images_of_any_shape_give_the_asked_size(shape, seed):
    images = labelled(count=1, width=shape[0], height=shape[1])
    assert images[0, seed][0].shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode_become_rgb(mode):
    rows = [{"image": picture(0).convert(mode)}]
    images = LabelledImages(rows, torch.zeros(1, dtype=torch.int64), ["a"], 8, 1.0)
    assert images[0, None][0].shape == (3, 8, 8)


def test_pixels_run_from_minus_one_to_one():
    pixels = to_pixels(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert pixels.dtype == torch.float32
    assert pixels.tolist() == [[-1.0, 1.0]]


def test_plain_batches_give_all_items_in_order():
    images = labelled(count=7)
    batches = list(plain_batches(images, 3))
    assert [len(batch) for batch, _ in batches] == [3, 3, 1]
    stacked = torch.cat([batch for batch, _ in batches])
    assert torch.equal(stacked, torch.stack([images[i, None][0] for i in range(7)]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_the_sampler_whatever_the_workers(workers):
    images = labelled(count=6)
    sampler = StepSampler(size=6, batch_size=4, seed=0, start=2, end=6)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = list(step_loader(images, sampler, workers))
    assert torch.equal(torch.get_rng_state(), state)  # dropout resumes from it
    assert len(batches) == 4
    for keys, (views, labels) in zip(sampler, batches, strict=True):
        assert torch.equal(views, torch.stack([images[key][0] for key in keys]))
        assert labels.tolist() == [index % 2 for index, _ in keys]


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
