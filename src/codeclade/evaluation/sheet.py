"""Moved to codeclade.data.sheets."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "contact_sheet": "data.sheets.contact_sheet",
    },
)
