"""The bundled pipeline's app, served once a module, and a client of it."""

import numpy as np
import pytest
from PIL import Image

from demo.app_client import connect
from demo.server import bundled_app, bundled_backend, served


@pytest.fixture(scope="module")
def pipe():
    """The pipeline as the app computes with it, but not the app's own."""
    return bundled_backend().pipe


@pytest.fixture(scope="module")
def address():
    with served(bundled_app()) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def picture(tmp_path):
    """A file with a picture of smooth colors, wider than high."""
    y, x = np.mgrid[0:96, 0:128] / 128
    array = np.stack([x, y, 1 - x * y], -1) * 255
    path = tmp_path / "picture.png"
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path
