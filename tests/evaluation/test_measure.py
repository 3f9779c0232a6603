"""Records of measurements: what no mean survives, and what only some of the images have."""

import torch

from codeclade.evaluation.measure import Measurement
from codeclade.evaluation.protocol import Protocol


def test_exact_images_are_left_out_of_a_mean_and_said():
    protocol = Protocol(data="photos", images=3, dtype="float32", machine="cpu")
    measured = Measurement()
    measured.add_images("PSNR", torch.tensor([20.0, torch.inf, 30.0]), protocol, "8-bit")
    (record,) = measured.records
    assert record.value == 25 and record.protocol.startswith("8-bit, 1 exact ones left out")
    assert record.conditions["estimator"] == "mean over the images that are not exact"
    assert len(measured.per_image["PSNR"]) == 3
    measured.add_images("none", torch.tensor([torch.inf]), protocol, "8-bit")
    assert len(measured.records) == 1
