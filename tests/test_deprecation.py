"""Old module paths answer with a warning, and name what they do not have."""

import importlib

import pytest

MOVED = [
    ("training.data.LabelledImages", "data.images.LabeledImages"),
    ("training.data.to_pixels", "data.pixels.to_pixels"),
    ("training.data.StepSampler", "training.batches.StepSampler"),
    ("training.codes.Codes", "data.codes.Codes"),
    ("training.codes.encode", "training.encode.encode"),
    ("evaluation.images.psnr", "metrics.image_quality.psnr"),
    ("evaluation.images.feature_network", "metrics.features.feature_network"),
    ("evaluation.features.frechet_distance", "metrics.distances.frechet_distance"),
    ("evaluation.clusters.size_spread", "metrics.clusters.size_spread"),
    ("evaluation.sheet.contact_sheet", "data.sheets.contact_sheet"),
    ("hub.imagenet.class_names", "data.imagenet.class_names"),
]


def place(path: str) -> tuple:
    module, _, name = f"codeclade.{path}".rpartition(".")
    return importlib.import_module(module), name


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_an_old_path_gives_the_same_thing_with_a_warning(old, new):
    module, name = place(old)
    with pytest.warns(DeprecationWarning, match=f"codeclade.{old} .* use codeclade.{new}"):
        found = getattr(module, name)
    assert found is getattr(*place(new))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
