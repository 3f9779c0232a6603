"""What test_encode.py runs on two and three processes: `python encode_processes.py PHOTOS OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import build_vq
from codeclade.training.encode import EncodeRecipe, encode


def encode_photos(photos: str, out: str, **changes) -> None:
    """Two views of every photograph, in shards of seven images."""
    settings = {"views": 2, "shard_size": 7, "batch_size": 4} | changes
    encode(EncodeRecipe(data=photos, image_size=16, **settings), build_vq(), out)


if __name__ == "__main__":
    encode_photos(*sys.argv[1:])
