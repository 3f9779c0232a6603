"""Mutated files for `codeclade convert` and `codeclade cluster`: what the world could send.

Every mutation is (name, arguments, accepted): `accepted` says whether a good result may come of it;
all others must be refused. Random choices come from one seeded generator.
"""

from collections.abc import Iterator

from fuzz.arrays_and_folders import arrays, flipped_bytes, folders, outputs
from fuzz.other_weights import mappings, weights
from fuzz.published import Case, Published
from fuzz.safetensors_files import headers
from fuzz.torch_files import archives, pickles


def conversions(files: Published) -> Iterator[Case]:
    """Every mutation, its file written beside the whole ones when it is asked for."""
    for group in (
        headers, archives, pickles, weights, mappings, outputs, arrays, folders, flipped_bytes,
    ):  # fmt: skip
        yield from group(files)
