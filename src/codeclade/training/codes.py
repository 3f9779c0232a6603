"""Moved to codeclade.data.codes and codeclade.training.encode."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "Codes": "data.codes.Codes",
        "codes_folder": "data.codes.codes_folder",
        "HEADER": "data.codes.HEADER",
        "EncodeRecipe": "training.encode.EncodeRecipe",
        "encode": "training.encode.encode",
    },
)
