"""Which split of a data set is trained on, and which one is held out for validation."""

from collections.abc import Sequence
from dataclasses import dataclass

VALIDATION = ("validation", "valid", "val")  # where nothing is said


@dataclass(frozen=True)
class Splits:
    """What a source calls its splits; empty: the usual names.

    Args:
        train: to train on.
        validation: held out.
    """

    train: str = ""
    validation: str = ""

    def chosen(self, source: str, there: Sequence[str]) -> tuple[str, str | None]:
        """Names of the split to train on and of the one held out; None: the source has none.

        Args:
            there: names of the source's splits.

        Raises:
            ValueError: a split that the source does not have, or one that is both.
        """
        train, held_out = self.train or "train", self.validation or None
        if held_out is None:
            held_out = next((n for n in VALIDATION if n in there and n != train), None)
        for setting, name in (("split", train), ("validation_split", held_out)):
            if name is not None and name not in there:
                raise ValueError(
                    f"{source} has no split {name!r}; it has {', '.join(there)}. Name one with "
                    f"{setting}=."
                )
        if train == held_out:
            raise ValueError(f"split and validation_split are both {train!r}.")
        return train, held_out
