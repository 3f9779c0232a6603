"""Makes the components known to diffusers and transformers, once, when any of them is imported.

diffusers loads components of a Hub repository only from libraries in two module-level tables; they
are no documented interface, so tests/components/test_registration.py fails loudly when they change.
"""

import diffusers
from diffusers.pipelines import pipeline_loading_utils
from transformers import AutoConfig, AutoModel

from .cluster_map import ClusterMap
from .pipeline import CodecladePipeline
from .refiner import Refiner, RefinerConfig
from .text_pipeline import CodecladeTextPipeline
from .transformer import CodecladeConfig, CodecladeTransformer
from .vq_model import VQModel

COMPONENTS = (VQModel, ClusterMap, CodecladeTransformer, Refiner)
PIPELINES = (CodecladePipeline, CodecladeTextPipeline)


def register() -> None:
    """Let indexes say ["codeclade", "VQModel"], and let AutoModel and DiffusionPipeline find us."""
    methods = {kind.__name__: ["save_pretrained", "from_pretrained"] for kind in COMPONENTS}
    pipeline_loading_utils.LOADABLE_CLASSES["codeclade"] = methods
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)
    for pipeline in PIPELINES:  # a plain `_class_name` is looked up in diffusers itself
        setattr(diffusers, pipeline.__name__, pipeline)
    # The tokenizer and the map are diffusers' kind of model, which AutoModel does not know.
    for config, model in ((CodecladeConfig, CodecladeTransformer), (RefinerConfig, Refiner)):
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
