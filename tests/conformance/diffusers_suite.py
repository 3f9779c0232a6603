"""diffusers' pipeline and model mixins on this package's pipelines and tokenizer; see run.py."""

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin
from tests.models.autoencoders.testing_utils import AutoencoderTesterMixin
from tests.models.testing_utils import (
    BaseModelTesterConfig,
    MemoryTesterMixin,
    ModelTesterMixin,
    TorchCompileTesterMixin,
    TrainingTesterMixin,
)
from tests.pipelines.testing_utils import (
    BasePipelineTesterConfig,
    PipelineTesterMixin,
)
from tests.pipelines.testing_utils import MemoryTesterMixin as PipelineMemoryTesterMixin
from tests.testing_utils import torch_device

from builders import build_parts, build_t5, build_tokenizer, build_vq
from codeclade import CodecladePipeline, CodecladeTextPipeline, VQModel
from codeclade.components import loading, pipeline_files


@pytest.fixture(autouse=True)
def safetensors_only(monkeypatch):
    """The mixins ask for pickles, which are refused here; they are given safetensors."""
    for module in (loading, pipeline_files):
        monkeypatch.setattr(module, "refuse_pickle", lambda safe_serialization: None)


@pytest.fixture(autouse=True)
def no_streams_on_a_cpu(monkeypatch):
    """`DIFFUSERS_TEST_DEVICE=cpu:0` runs the mixins of memory too; a CPU has no streams."""
    if torch.device(torch_device).type != "cpu":
        return

    def plain(enable):
        def without_streams(self, *args, use_stream=False, record_stream=False, **settings):
            return enable(self, *args, **settings)

        return without_streams

    for kind in (ModelMixin, DiffusionPipeline):
        monkeypatch.setattr(kind, "enable_group_offload", plain(kind.enable_group_offload))


class Inputs(BasePipelineTesterConfig):
    """Tiny parts and a call for them, which the pipelines of all schemes share."""

    # Tokens are sampled one by one: there is no number of steps to choose.
    optional_input_params = BasePipelineTesterConfig.optional_input_params - {"num_inference_steps"}
    callback_cfg_params = frozenset()
    output_shape = (3, 16, 16)
    condition: dict = {"class_labels": 1}  # noqa: RUF012
    pipeline_class = CodecladePipeline
    scheme = "token"

    @property
    def required_input_params_in_call_signature(self):
        return frozenset(self.condition)

    @property
    def batch_input_params(self):
        return frozenset(self.condition)

    def get_dummy_components(self):
        return {**build_parts(self.scheme), "refiner": None}

    def get_dummy_inputs(self):
        return {**self.condition, "generator": self.get_generator(0), "output_type": "pt"}


class Pipelines(Inputs, PipelineTesterMixin):
    """What the mixin's tests ask for that pipelines of single tokens have not."""

    def test_inference_batch_single_identical(self):
        super().test_inference_batch_single_identical(additional_params_copy_to_batched_inputs=[])

    def test_save_load_optional_components(self, tmp_path):
        if self.scheme == "cluster":
            pytest.skip("clusters cannot become ids without the cluster map")
        super().test_save_load_optional_components(tmp_path)


class Cluster:
    scheme = "cluster"


class ClusterToken:
    scheme = "cluster_token"


class SemanticDetail:
    scheme = "semantic_detail"


class Text:
    pipeline_class = CodecladeTextPipeline
    condition = {"prompt": "a red dog on the beach"}  # noqa: RUF012

    def get_dummy_components(self):
        text = {"tokenizer": build_tokenizer(), "text_encoder": build_t5()}
        return {**build_parts("token", text=True), **text, "refiner": None}


class TestToken(Pipelines):
    pass


class TestCluster(Cluster, Pipelines):
    pass


class TestClusterToken(ClusterToken, Pipelines):
    pass


class TestSemanticDetail(SemanticDetail, Pipelines):
    pass


class TestText(Text, Pipelines):
    def test_encode_prompt_works_in_isolation(self):
        pytest.skip("it looks for the source of the class in diffusers.pipelines")

    def test_save_load_optional_components(self, tmp_path):
        pytest.skip("captions cannot be encoded without the text encoder")


# The mixins of memory are skipped as whole classes where there is no GPU.


class TestTokenMemory(Inputs, PipelineMemoryTesterMixin):
    pass


class TestClusterMemory(Cluster, Inputs, PipelineMemoryTesterMixin):
    pass


class TestClusterTokenMemory(ClusterToken, Inputs, PipelineMemoryTesterMixin):
    pass


class TestSemanticDetailMemory(SemanticDetail, Inputs, PipelineMemoryTesterMixin):
    pass


class TestTextMemory(Text, Inputs, PipelineMemoryTesterMixin):
    pass


class Tokenizer(BaseModelTesterConfig):
    """A tiny tokenizer and a batch of two images."""

    model_class = VQModel
    output_shape = (3, 16, 16)
    main_input_name = "pixels"

    def get_init_dict(self):
        return {name: value for name, value in build_vq().config.items() if name[0] != "_"}

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(0)
        return {"pixels": torch.rand(2, 3, 16, 16, generator=generator).to(torch_device)}


CHECKPOINTED = {"Encoder", "Decoder", "UNetMidBlock2D"}


class TestVQModel(Tokenizer, ModelTesterMixin, TrainingTesterMixin, AutoencoderTesterMixin):
    def test_forward_with_norm_groups(self):
        pytest.skip("it names the input `sample`; here it is `pixels`")

    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set=CHECKPOINTED)

    def test_from_save_pretrained_variant(self):
        pytest.skip("it asks for a message about a pickle; here it is one about safetensors")

    def test_outputs_equivalence(self):
        pytest.skip("it asks for a dict where nothing is said; here images come by themselves")


class TestVQModelMemory(Tokenizer, MemoryTesterMixin):
    @pytest.fixture(scope="class")
    def base_model_output(self):
        """Of the first image: where nothing is said, images come by themselves, not in a tuple."""
        torch.manual_seed(0)
        model = self.model_class(**self.get_init_dict()).eval().to(torch_device)
        with torch.no_grad():
            return model(**self.get_dummy_inputs())[0]


class TestVQModelCompile(Tokenizer, TorchCompileTesterMixin):
    pass
