"""What every adapter of published weights does: four functions, strict in both directions.

An adapter knows how one component is stored in a project's files: a literal map of names with `{}`
for layers, and what the shapes say of the architecture. It holds no weights.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..components.weight_files import shortened
from .containers import IGNORED, StateDict

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class StateDictAdapter(ABC):
    """One component in the files of one project.

    Attributes:
        what: for messages, as in "this is no LlamaGen generator checkpoint".
        names: published stem to ours; `{}` is a number, `.weight` and `.bias` follow.
        required: published keys that every such file has and `config_from` reads.
    """

    what: str
    names: dict[str, str]
    required: tuple[str, ...]

    def recognizes(self, state_dict: StateDict) -> bool:
        """Whether a state dict of published names is of this layout, without a name too many."""
        weights = [key for key in state_dict if not IGNORED.match(key)]
        there = all(key in state_dict for key in self.required)
        return there and not unnamed(weights, self.names)

    @abstractmethod
    def config_from(self, state_dict: StateDict, **given: Any) -> dict[str, Any]:
        """Fields of the component's constructor, by the shapes of published weights.

        Args:
            state_dict: published names; holds every key of `required`.
            given: what no file says, as the side of the token grid.
        """

    def from_published(self, state_dict: StateDict) -> StateDict:
        """Published names and shapes to ours; unknown names stay as they are."""
        return rename(state_dict, self.names)

    def to_published(self, state_dict: StateDict) -> StateDict:
        """Our names and shapes to the published ones.

        Raises:
            ValueError: a weight that has no name there.
        """
        names = {ours: theirs for theirs, ours in self.names.items()}
        unknown = unnamed(state_dict, names)
        if unknown:
            raise ValueError(f"a {self.what} has no weights named {listed(unknown)}.")
        return rename(state_dict, names)

    @abstractmethod
    def new_model(self, fields: dict[str, Any]) -> nn.Module:
        """The component of these constructor fields."""

    def build(self, state_dict: StateDict, **given: Any) -> nn.Module:
        """The component with published weights, in eval mode; they are not copied.

        Args:
            state_dict: published names, as `load_checkpoint` gives them.
            given: see `config_from`.

        Raises:
            ValueError: weights that are missing, unexpected, of a wrong shape or type, or not
                finite, by their published names.
        """
        # What every such file has is checked first: the architecture follows from its shapes.
        weights = {key: value for key, value in state_dict.items() if not IGNORED.match(key)}
        self.check_names(self.required, weights)
        for key, value in weights.items():
            if value.dtype not in FLOATS:
                dtype = str(value.dtype).removeprefix("torch.")
                raise ValueError(f"{shortened(key)} holds {dtype}, not floating-point weights.")
        fields = self.config_from(weights, **given)
        # The model takes no memory before its weights come, and says which they must be.
        with torch.device("meta"):
            model = self.new_model(fields)
        # Names and shapes must be equal in both directions: a weight that is missing would have no
        # values, one too many means that the architecture was read wrongly. Published names are
        # compared, since these are the ones in the user's file.
        wanted = self.to_published(model.state_dict())
        self.check_names(wanted, weights, weights)
        for key, value in weights.items():
            if value.shape != wanted[key].shape:
                raise ValueError(
                    f"{key} has shape {tuple(value.shape)}, but this {self.what} needs "
                    f"{tuple(wanted[key].shape)}."
                )
        # One pass over all numbers: NaN and infinity would become pictures without a word.
        for key, value in weights.items():
            check_finite(key, value)
        model.load_state_dict(self.from_published(weights), assign=True)
        return model.eval()

    def published_weights(self, model: nn.Module) -> StateDict:
        """Inverse of `build`: the weights of a component under the published names.

        Raises:
            ValueError: a component that these files cannot hold.
        """
        return self.to_published(model.state_dict())

    def check_names(
        self, wanted: Iterable[str], there: StateDict, known: Iterable[str] = ()
    ) -> None:
        """Raise a ValueError unless all `wanted` names are there, and no `known` is beyond them."""
        missing = [key for key in wanted if key not in there]
        unexpected = [key for key in known if key not in wanted]
        if missing or unexpected:
            # With a long path before it, all of it still is one short sentence.
            most = 1 if missing and unexpected else 3
            parts = [f"missing {listed(missing, most)}"] if missing else []
            parts += [f"unexpected {listed(unexpected, most)}"] if unexpected else []
            words = shortened("; ".join(parts), 130)
            raise ValueError(f"this is no {self.what} checkpoint: {words}.")


def rename(state_dict: StateDict, names: dict[str, str]) -> StateDict:
    """Keys renamed by a map of stems; unknown keys stay as they are."""
    # Whole keys are matched, so that "norm" does not take "layers.0.norm"; a key that no stem fits
    # stays, and the check of names reports it as it stands in the file.
    patterns = _patterns(names)
    renamed = {}
    for key, value in state_dict.items():
        for pattern, target in patterns:
            match = pattern.fullmatch(key)
            if match:
                *numbers, leaf = match.groups()
                key = target.format(*numbers) + (leaf or "")
                break
        renamed[key] = value
    return renamed


def unnamed(keys: Iterable[str], names: dict[str, str]) -> list[str]:
    """Those of `keys` that a map of stems does not know."""
    patterns = [pattern for pattern, _ in _patterns(names)]
    return [key for key in keys if not any(pattern.fullmatch(key) for pattern in patterns)]


def _patterns(names: dict[str, str]) -> list[tuple[re.Pattern, str]]:
    return [
        (re.compile(re.escape(source).replace(r"\{\}", "([0-9]+)") + r"(\.weight|\.bias)?"), target)
        for source, target in names.items()
    ]


def count_layers(state_dict: StateDict, pattern: str) -> int:
    """Number of layers 0, 1, ... at `([0-9]+)` in keys that start with `pattern`.

    Counted, not the largest number: a key "layers.999999999" builds no layers.
    """
    # Gaps then show as names that are missing or unexpected, before any memory is taken.
    matches = (re.match(pattern, key) for key in state_dict)
    return len({match.group(1) for match in matches if match})


def shape_of(state_dict: StateDict, key: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a weight.

    Raises:
        ValueError: another number of dimensions, or one of size 0.
    """
    shape = tuple(state_dict[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{key} has shape {shape}, but needs {dimensions} dimensions.")
    return shape


def check_finite(name: str, weights: Tensor) -> None:
    """Raise a ValueError that names a weight with NaN or infinity in it; takes no memory."""
    if weights.is_meta or not weights.numel():
        return
    # Minimum and maximum show any infinity, and NaN becomes both; `isfinite` of the weights would
    # make a second tensor of their size.
    if not all(one.isfinite() for one in weights.aminmax()):
        raise ValueError(f"{name} holds NaN or infinite numbers; the file is damaged.")


def listed(names: list[str], most: int = 3) -> str:
    """Some names for a message, which stays short."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name, 50) for name in names[:most]) + more
