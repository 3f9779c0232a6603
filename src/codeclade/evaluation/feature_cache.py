"""Features of photographs, kept in the user's cache folder, so that they are made once.

An entry belongs to photographs, what was done to them, and a network. It is found by a sample of
the photographs, and used only if all of them, which a measurement reads anyway, are those it was
made of. A damaged entry, or one of other photographs, is made again. The folder is
`codeclade/features` in the user's cache, or what CODECLADE_FEATURES names; it may be deleted at any
time.

Shapes: B images of S pixels a side, n images kept of a set, D features.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..data.atomic import new_file
from ..data.pixels import to_pixels
from ..metrics.networks import FeatureNetwork, state_fingerprint
from ..metrics.statistics import FeatureStatistics, cache_key
from .feature_sets import GOLDEN, FeatureSet
from .reference import Photographs
from .resize import sized_batches

SAMPLE = 16  # photographs that name an entry
CHUNK = 4096  # images whose sums are taken at once
HALVES = ("one", "other")
# Names in an entry, and of the attributes of a FeatureSet that hold rows and their sums.
KINDS = {"features": ("rows", "statistics"), "spatial": ("spatial_rows", "spatial")}
LAYOUT = 4  # of entries and of what was done to images; those of another one are not found


class PhotographSets:
    """Photographs in two halves, as a network sees them: from the cache, or seen now.

    Of every two neighbors one goes to each half, so that both have as many of every class where the
    photographs are sorted. Which one follows no period: photographs of two classes in turn would
    else become a half of each.

    Args:
        size: side at which they are compared.
        classes: see `FeatureSet`.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        photographs: Photographs,
        size: int,
        classes: list[int] | None = None,
    ):
        self.network, self.classes = network, classes
        self.photographs, self.size = photographs, size
        self.path = features_folder() / f"{self._key()}.safetensors"
        self._start()
        # What the cache says of these photographs, if it is of them; `finish` will know.
        self.claim, self.stored = self._read() or (None, None)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add the next photographs: images (B, 3, size, size) uint8 and labels (B,)."""
        for image in images:
            self.digest.update(image.numpy().tobytes())
        if self.stored is None:
            other = in_other_half(torch.arange(len(images)) + self.seen)
            for half, chosen in zip(self.halves, (~other, other), strict=True):
                if chosen.any():
                    half.add(to_pixels(images[chosen]), labels[chosen])
        self.seen += len(images)

    def finish(self, batch_size: int) -> list[FeatureSet]:
        """Both halves, after all photographs were added."""
        if self.stored is not None:
            if self.claim == self.digest.hexdigest():
                return self.stored
            # The sample was the same and the rest was not: all photographs once more.
            self._start()
            self.stored = None
            for images, labels in sized_batches(self.photographs.images, self.size, batch_size):
                self.add(images, labels)
        self._write()
        return self.halves

    def _start(self) -> None:
        self.halves = [FeatureSet(self.network, self.classes) for _ in HALVES]
        self.digest, self.seen = hashlib.sha256(), 0

    def _key(self) -> str:
        """Name of the entry: all that features depend on, and of the photographs a sample."""
        images, sample = self.photographs.images, hashlib.sha256()
        count = min(SAMPLE, len(images))
        for i in range(count):
            sample.update(images[i * len(images) // count, None][0].numpy().tobytes())
        labels = hashlib.sha256(images.labels.numpy().tobytes()).hexdigest()
        device = next(self.network.parameters()).device.type
        versions = [__version__, torch.__version__, device]
        done = [images.image_size, self.size, self.classes, labels, LAYOUT, *versions]
        data = f"{len(images)} {sample.hexdigest()}"
        return cache_key(data, json.dumps(done), self.network.fingerprint)

    def _read(self) -> tuple[str, list[FeatureSet]] | None:
        """The entry's digest of its photographs and their halves; None without a sound entry."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = json.loads(file.metadata()["codeclade"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes["sha256"] != state_fingerprint(tensors):
                return None
            halves = [self._half(tensors, half, *notes[half]) for half in HALVES]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return notes["photographs"], halves

    def _half(self, tensors: dict[str, Tensor], name: str, count: int, correct: int) -> FeatureSet:
        """A set as it was before it was written, but for the logits, which nobody asks for."""
        half = FeatureSet(self.network, self.classes)
        half.count, half.correct = count, correct
        if not count:
            return half
        for kind, (rows, statistics) in KINDS.items():
            features = tensors.get(f"{name}.{kind}")
            if features is None:
                continue
            found = FeatureStatistics(features.shape[1], self.network.fingerprint)
            # Sums that were stored, because not all features were; else exact in any order.
            if f"{name}.{kind}.sums" in tensors:
                found.sums, found.count = tensors[f"{name}.{kind}.sums"], count
                found.moments = tensors[f"{name}.{kind}.moments"]
            else:
                for some in features.split(CHUNK):
                    found.update(some)
            setattr(half, rows, list(features))
            setattr(half, statistics, found)
        return half

    def _write(self) -> None:
        """Keep the halves; a cache that cannot be written costs time next time and nothing else."""
        tensors: dict[str, Tensor] = {}
        for name, half in zip(HALVES, self.halves, strict=True):
            if not half.count:
                continue
            for kind, (rows, statistics) in KINDS.items():
                kept, found = getattr(half, rows), getattr(half, statistics)
                if found is None:
                    continue
                tensors[f"{name}.{kind}"] = torch.stack(kept)
                # Sums take 65 MB for 1,280 features, so only those that `_half` cannot make again.
                if half.count > len(kept):
                    tensors[f"{name}.{kind}.sums"] = found.sums
                    tensors[f"{name}.{kind}.moments"] = found.moments
        # A digest of what is stored: a damaged file is noticed and made again.
        notes = {
            "photographs": self.digest.hexdigest(),
            "sha256": state_fingerprint(tensors),
            **{name: [x.count, x.correct] for name, x in zip(HALVES, self.halves, strict=True)},
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.path) as partial:
                save_file(tensors, partial, {"codeclade": json.dumps(notes)})
        except (OSError, SafetensorError) as error:
            warnings.warn(f"features of the photographs were not kept: {error}", stacklevel=2)


def in_other_half(places: Tensor) -> Tensor:
    """Whether photographs at these places (n,) belong to the second half: neighbors 2i and 2i + 1
    are in different ones, exchanged where the fraction of i times the golden ratio is below 1/2."""
    exchanged = (places // 2).double() * GOLDEN % 1 < 0.5
    return (places % 2 == 1) ^ exchanged


def features_folder() -> Path:
    """The folder named by CODECLADE_FEATURES, else `codeclade/features` in the user's cache."""
    if named := os.environ.get("CODECLADE_FEATURES"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "codeclade" / "features"
