"""Pixels and 8-bit images, and sheets of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from codeclade.data.pixels import to_image, to_pixels, to_uint8
from codeclade.data.sheets import contact_sheet, image_grid


def test_pixels_run_from_minus_one_to_one():
    pixels = to_pixels(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert pixels.dtype == torch.float32
    assert pixels.tolist() == [[-1.0, 1.0]]


def test_every_byte_survives_the_way_there_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_pixels(values)), values)
    assert torch.equal(to_uint8(to_pixels(values).to(torch.float64)), values)


def test_pixels_are_rounded_and_clamped():
    pixels = torch.tensor([-3.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 9])
    assert to_uint8(pixels).tolist() == [0, 0, 0, 1, 255, 255]


def test_an_image_keeps_rows_columns_and_colors():
    image = torch.zeros(3, 2, 4, dtype=torch.uint8)
    image[:, 1, 2] = torch.tensor([10, 20, 30])
    for given in (image, to_pixels(image)):
        picture = to_image(given)
        assert picture.size == (4, 2)
        assert picture.getpixel((2, 1)) == (10, 20, 30)


def test_a_grid_has_the_rows_it_was_given():
    first = torch.full((2, 3, 4, 5), 200, dtype=torch.uint8)
    second = torch.ones(1, 3, 4, 5)
    array = np.asarray(image_grid([first, second]))
    assert array.shape == (8, 10, 3)
    assert (array[:4] == 200).all() and (array[4:, :5] == 255).all() and (array[4:, 5:] == 0).all()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_contact_sheet_shows_every_image_sharp(scale):
    images = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(1, 4)]
    sheet = contact_sheet([("first", images[:2]), ("second", images[2:])], scale)
    colors = {color: count for count, color in sheet.getcolors(10_000)}
    assert all(colors[(40 * i, 0, 0)] == (8 * scale) ** 2 for i in range(1, 4))
