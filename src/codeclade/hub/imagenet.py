"""Moved to codeclade.data.imagenet."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "synset_names": "data.imagenet.synset_names",
        "class_names": "data.imagenet.class_names",
    },
)
