"""Feature networks of TorchScript files: what they see, what they are called, what is refused."""

import pytest
import torch
from torch import Tensor, nn

from codeclade.evaluation.feature_sets import FeatureSet, open_network, scores, set_distances
from codeclade.metrics.networks import file_sha256


class Means(nn.Module):
    """Colors' means of 8-bit images as features, else something that is none."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        if images.dtype != torch.uint8 or not return_features:
            return images
        return images.float().mean((2, 3))


class Rows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(2)


def saved(module: nn.Module, path) -> str:
    torch.jit.save(torch.jit.script(module), str(path))
    return f"torchscript={path}"


def test_a_file_of_any_name_sees_8_bit_images_and_is_never_called_fid(tmp_path):
    network = open_network(saved(Means(), tmp_path / "FID.pt"))
    images = torch.randint(0, 256, (24, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    found = FeatureSet(network)
    for some in (images / 127.5 - 1).split(5):
        found.add(some, torch.zeros(len(some)))
    torch.testing.assert_close(found.features, images.float().mean((2, 3)))
    assert network.fingerprint == file_sha256(tmp_path / "FID.pt")
    names = [one.name for one in set_distances(found, found)]
    assert names[:3] == ["FD-FID", "KID-FID", "Precision-FID"] and scores(found) == []


def test_what_is_no_network_of_features_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"must return \(B, D\) features of 2 images, got \(2, 3, 36"
    ):
        open_network(saved(Rows(), tmp_path / "rows.pt"))(torch.zeros(2, 3, 6, 6))
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.pt is not a TorchScript file"):
        open_network(f"torchscript={tmp_path / 'text.pt'}")
    with pytest.raises(ValueError, match="there is no file"):
        open_network(f"torchscript={tmp_path / 'none.pt'}")
