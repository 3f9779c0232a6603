"""codeclade: clustered codebooks for autoregressive image generation.

The public names load on first use, so that `import codeclade` and `codeclade --help` stay fast.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"

_PUBLIC = {
    "CodecladePipeline": "codeclade.components.pipeline",
    "CodecladeTextPipeline": "codeclade.components.text_pipeline",
    "CodecladeConfig": "codeclade.components.transformer",
    "CodecladeTransformer": "codeclade.components.transformer",
    "Refiner": "codeclade.components.refiner",
    "RefinerConfig": "codeclade.components.refiner",
    "ClusterMap": "codeclade.components.cluster_map",
    "VQModel": "codeclade.components.vq_model",
}

__all__ = [*_PUBLIC, "bundled", "__version__"]


def bundled() -> str:
    """Folder of the pipeline that ships inside the package, in Hub layout (works offline)."""
    return str(Path(__file__).parent / "bundled_pipeline")


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'codeclade' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
