"""Which photographs a command reads: the settings that training a tokenizer and encoding share."""

from dataclasses import dataclass, field

from ..data.columns import Columns
from ..data.images import DAMAGED, LabeledImages, load_images
from ..data.splits import Splits
from ..data.streaming import ImageStream, open_stream


@dataclass(kw_only=True)
class Photographs:
    """Settings of a data set of photographs; recipes that read one start with these."""

    data: str  # image folder, parquet folder or Hub dataset
    image_size: int  # pixels a side
    classes: list | dict = field(default_factory=list)  # names to use; empty = all
    split: str = ""  # of the data set, to train on; empty: train
    validation_split: str = ""  # empty: validation, valid or val, else 5 % of split
    streaming: bool = False  # read a Hub dataset, parquet or tars as they arrive, undownloaded
    image_column: str = ""  # of the data set; empty: image or img
    label_column: str = ""  # class labels, numbers or names; empty: label, labels or fine_label
    crop: float = 1.0  # largest resize factor before the random crop
    damaged_images: str = "refuse"  # refuse names the first and ends; skip looks for them first

    @property
    def columns(self) -> Columns:
        """What the data set calls its columns."""
        return Columns(self.image_column, self.label_column)

    def check_photographs(self) -> None:
        """Raise a ValueError for what is to happen to damaged images, unless it is known."""
        if self.damaged_images not in DAMAGED:
            raise ValueError(
                f"damaged_images is {self.damaged_images!r}; it must be one of "
                f"{', '.join(DAMAGED)}."
            )

    def open(self, split: str) -> LabeledImages | ImageStream:
        """The photographs of "train" or "validation", whatever the data set calls that split.

        Raises:
            ValueError: as `load_images` and `open_stream`.
        """
        splits = Splits(self.split, self.validation_split)
        names = {"damaged": self.damaged_images, "columns": self.columns, "splits": splits}
        if self.streaming:
            return open_stream(self.data, split, self.classes, **names)
        source = self.data, split, self.image_size, self.classes, self.crop
        return load_images(*source, **names)
