"""The hooks into diffusers and transformers. A failure here means a new release moved something:
see components/registration.py and the `_dict_from_json_file` hook of components/pipeline.py.
"""

import inspect
import json

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines import pipeline_loading_utils
from transformers import AutoConfig, AutoModel

import codeclade
from codeclade import CodecladePipeline
from codeclade.components.loading import installed_index
from codeclade.components.registration import COMPONENTS, PIPELINES
from codeclade.hub.repository import read_repository


def test_the_tables_of_diffusers_are_where_we_write():
    tables = pipeline_loading_utils.LOADABLE_CLASSES, pipeline_loading_utils.ALL_IMPORTABLE_CLASSES
    assert {"diffusers", "transformers", "codeclade"} <= set(tables[0])
    for component in COMPONENTS:
        assert tables[0]["codeclade"][component.__name__] == ["save_pretrained", "from_pretrained"]
        assert component.__name__ in tables[1]
        assert getattr(codeclade, component.__name__) is component
    for pipeline in PIPELINES:
        assert getattr(diffusers, pipeline.__name__) is pipeline


def test_diffusers_still_reads_indexes_through_the_hook():
    assert "_dict_from_json_file" in inspect.getsource(ConfigMixin.load_config)
    assert "cls._dict_from_json_file" in inspect.getsource(DiffusionPipeline.download)


def test_the_hub_download_accepts_our_components():
    index = {"_class_name": "CodecladePipeline", "vq_model": ["codeclade", "VQModel"]}
    found = pipeline_loading_utils._get_custom_components_and_folders("user/repo", index, set())
    assert found == ({}, ["vq_model"])


def test_saved_indexes_name_the_package(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vq_model"] == ["codeclade", "VQModel"]
    assert index["transformer"] == ["codeclade", "CodecladeTransformer"]
    pipe = DiffusionPipeline.from_pretrained(tmp_path)  # no flag: the classes are installed
    assert type(pipe) is CodecladePipeline
    assert type(pipe.vq_model) is codeclade.VQModel


def test_a_folder_in_hub_layout_loads_the_installed_classes(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline("cluster")
    pipe.save_pretrained(tmp_path)
    for name, content in read_repository(tmp_path).files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "CodecladePipeline"]
    loaded = CodecladePipeline.from_pretrained(tmp_path)
    assert type(loaded.cluster_map) is codeclade.ClusterMap
    loaded.set_progress_bar_config(disable=True)
    images = [
        p("tabby", output_type="pt", generator=torch.Generator().manual_seed(1)).images
        for p in (pipe, loaded)
    ]
    assert torch.equal(*images)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert again["vq_model"] == ["codeclade", "VQModel"]


def test_a_subclass_loads_a_folder_in_hub_layout(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster").save_pretrained(tmp_path)
    for name, content in read_repository(tmp_path).files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)

    class Mine(CodecladePipeline):
        pass

    assert type(Mine.from_pretrained(tmp_path)) is Mine


def test_pipelines_of_a_repositorys_own_code_can_be_saved_and_read_again():
    code = "diffusers_modules.local.modeling_codeclade_vq_model"
    assert installed_index({"vq_model": [code, "VQModel"]})["vq_model"] == ["codeclade", "VQModel"]
    foreign = {"vq_model": ["my_modeling_codeclade_vq_model", "VQModel"]}
    assert installed_index(foreign) == foreign


def test_other_libraries_keep_their_names():
    index = {
        "_class_name": ["pipeline", "CodecladePipeline"],
        "vq_model": ["diffusers", "VQModel"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "transformer": ["codeclade.components.transformer", "CodecladeTransformer"],
        "cluster_map": ["modeling_codeclade_cluster_map", "ClusterMap"],
        "refiner": [None, None],
        "top_p": 1.0,
    }
    assert installed_index(index) == index | {
        "_class_name": "CodecladePipeline",
        "transformer": ["codeclade", "CodecladeTransformer"],
        "cluster_map": ["codeclade", "ClusterMap"],
    }
    assert index["_class_name"] == ["pipeline", "CodecladePipeline"]


def test_auto_classes_know_the_transformers_models(tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is codeclade.CodecladeConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is codeclade.CodecladeTransformer
