"""All published families by name, for command lines; a family's own file loads when it is used.

A new family is a file beside this one with a `FAMILY` (see `family.PublishedFamily`), its entry
here, and its paper in papers.py.
"""

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .family import PublishedFamily


@dataclass
class Entry:
    """What the command line says of a family whose adapters are in the module of the same name."""

    help: str
    image_size: int | None = None  # side in pixels of the published models; None: there are several
    files: dict[str, str] = field(default_factory=dict)  # help of its own files, by their flags


FAMILIES = {
    "llamagen": Entry("LlamaGen, class- or text-conditional"),
    "dcpe": Entry(
        "DCPE: a generator over clusters and its cluster index",
        image_size=256,
        files={
            "idx-to-cluster": "cluster of every id",
            "refiner": "refine net; none: uniform members",
        },
    ),
    "iar": Entry(
        "IAR: a generator over a re-ordered codebook",
        image_size=384,
        files={
            "mapping": "old id to new id, where --vq is LlamaGen's tokenizer; none: --vq is "
            "re-ordered",
        },
    ),
    "iar2": Entry("IAR2: a generator over pairs of codes", image_size=384),
}


def load_family(name: str) -> "PublishedFamily":
    """The family registered as `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is unknown; use one of {', '.join(FAMILIES)}.")
    # Imported by name and late: the command line lists families without loading torch.
    return importlib.import_module(f".{name}", __package__).FAMILY
