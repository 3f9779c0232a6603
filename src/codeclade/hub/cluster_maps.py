"""Moved to codeclade.checkpoints.cluster_maps."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "make_cluster_map": "checkpoints.cluster_maps.make_cluster_map",
        "check_out": "checkpoints.cluster_maps.check_out",
        "save": "checkpoints.cluster_maps.save_cluster_map",
    },
)
