"""Moved to codeclade.checkpoints.dcpe."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "refiner_from_dcpe": "checkpoints.dcpe.FAMILY.refiner.build",
        "refiner_to_dcpe": "checkpoints.dcpe.FAMILY.refiner.published_weights",
        "cluster_map_from_dcpe": "checkpoints.dcpe.cluster_map_from_index",
    },
)
