"""Moved to codeclade.data and codeclade.training.batches."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "LabelledImages": "data.images.LabeledImages",
        "load_images": "data.images.load_images",
        "plain_batches": "data.images.plain_batches",
        "to_pixels": "data.pixels.to_pixels",
        "StepSampler": "training.batches.StepSampler",
        "step_loader": "training.batches.step_loader",
    },
)
