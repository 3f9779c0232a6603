"""Moved to codeclade.checkpoints."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "Conversion": "checkpoints.family.Conversion",
        "convert_llamagen": "checkpoints.llamagen.FAMILY.convert",
        "convert_dcpe": "checkpoints.dcpe.FAMILY.convert",
        "convert_iar": "checkpoints.iar.FAMILY.convert",
        "convert_iar2": "checkpoints.iar2.FAMILY.convert",
        "save_repository": "checkpoints.conversion.save_conversion",
        "to_published": "checkpoints.conversion.write_published",
        "LLAMAGEN_GUIDANCE": "checkpoints.llamagen.GUIDANCE",
        "DCPE_GUIDANCE": "checkpoints.dcpe.GUIDANCE",
        "IAR_GUIDANCE": "checkpoints.iar.GUIDANCE",
        "TEXT_SAMPLING": "checkpoints.llamagen.TEXT_SAMPLING",
        "IAR2_SAMPLING": "checkpoints.iar2.SAMPLING",
        "OTHER_GUIDANCE": "checkpoints.family.OTHER_GUIDANCE",
    },
)
