"""codeclade: clustered codebooks for autoregressive image generation.

The public names load on first use, so that `import codeclade` and `codeclade --help` stay fast.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see
    from .components.cluster_map import ClusterMap as ClusterMap
    from .components.pipeline import CodecladePipeline as CodecladePipeline
    from .components.refiner import Refiner as Refiner
    from .components.refiner import RefinerConfig as RefinerConfig
    from .components.text_pipeline import CodecladeTextPipeline as CodecladeTextPipeline
    from .components.transformer import CodecladeConfig as CodecladeConfig
    from .components.transformer import CodecladeTransformer as CodecladeTransformer
    from .components.vq_model import VQModel as VQModel

__version__ = "0.2.0.dev0"

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


def bundled(version: str = "") -> str:
    """Folder of the pipeline that ships inside the package, in Hub layout (works offline).

    Args:
        version: "" is today's, of semantic and detail codes; "ids" the one of single ids, whose
            tokenizer the study has; "0.1" the one of clusters that codeclade 0.1 shipped.

    Raises:
        ValueError: a version without a pipeline of its own.
    """
    folders = {"": "", "ids": "_ids", "0.1": "_0_1"}
    if version not in folders:
        raise ValueError(f'version is {version!r}; it must be "" (the newest), "ids" or "0.1".')
    return str(Path(__file__).parent / f"bundled_pipeline{folders[version]}")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'codeclade' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
