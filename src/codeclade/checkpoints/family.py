"""A published family: which files it comes in, and the pipeline they become.

A family names one adapter for each of its components; what is special about it (a permuted
codebook, a cluster index) overrides one method. `registry.py` lists all families.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..components.cluster_map import ClusterMap
from ..components.pipeline import CodecladePipeline
from ..components.text_pipeline import CodecladeTextPipeline
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.imagenet import class_names
from ..data.records import Provenance, SourceFile
from .adapter import StateDictAdapter
from .containers import load_checkpoint

OTHER_GUIDANCE = 2.0  # sizes without a published value
LONGEST_SIDE = 4096  # tokens a row; published models have 16 to 32


@dataclass
class Conversion:
    """What a set of published files became, and what is known of where it comes from."""

    pipeline: CodecladePipeline | CodecladeTextPipeline
    provenance: Provenance


class PublishedFamily:
    """One project's published checkpoints.

    Attributes:
        method: the project's name, as provenance.json and cards give it.
        paper: for the statement of provenance.
        license: a Hub license name of its weights, None where the project names none.
        license_statement: the same in words.
        tokenizer, generator, refiner: adapters; a family without refiner has None.
        guidance: scales of the project's own evaluation by width of the generator, for `sampling`.
        required_files: keyword arguments of `convert` that must be given beside its own.
    """

    method: str
    paper: str
    license: str | None
    license_statement: str
    tokenizer: StateDictAdapter
    generator: StateDictAdapter
    refiner: StateDictAdapter | None = None
    guidance: dict[int, float]
    required_files: tuple[str, ...] = ()

    def sampling(self, transformer: CodecladeTransformer) -> dict[str, Any]:
        """Sampling defaults of the project's own evaluation for this size of generator."""
        scale = self.guidance.get(transformer.config.hidden_size, OTHER_GUIDANCE)
        return {"guidance_scale": scale}

    def build_tokenizer(self, vq: str | Path, **files: str | Path | None) -> VQModel:
        """The tokenizer of a file."""
        return read_component(vq, self.tokenizer)

    def build_cluster_map(self, vq_model: VQModel, **files: str | Path | None) -> ClusterMap | None:
        """The cluster map that belongs to the generator; here none."""
        return None

    def convert(
        self,
        vq: str | Path,
        gpt: str | Path,
        image_size: int | None = None,
        heads: int | None = None,
        **files: str | Path | None,
    ) -> Conversion:
        """Published files as a pipeline.

        Args:
            vq: tokenizer.
            gpt: generator.
            image_size: side in pixels the generator was trained for; it is in none of the files.
            heads: attention heads, for a width that is no published size.
            files: files of this family alone, by the names that `registry.FAMILIES` gives them.

        Raises:
            ValueError: files that are missing, damaged, of another architecture, or do not fit
                together.
        """
        # What is missing is said before any file is read.
        if image_size is None:
            raise ValueError("give --image-size, which the generator's file does not hold.")
        for name in self.required_files:
            if files.get(name) is None:
                raise ValueError(f"give --{name.replace('_', '-')}, which this generator needs.")
        # The tokenizer comes first: its downsampling turns pixels into the grid of the others.
        vq_model = self.build_tokenizer(vq, **files)
        given = {"grid_size": grid_size(image_size, vq_model), "num_attention_heads": heads}
        transformer = read_component(gpt, self.generator, **given)
        # Only generators of classes have maps and refiners; the pipeline checks that all fit.
        settings = self.sampling(transformer)
        if transformer.config.text_dim:
            pipeline = CodecladeTextPipeline(vq_model, transformer, **settings)
        else:
            refiner, labels = files.get("refiner"), transformer.config.num_classes
            pipeline = CodecladePipeline(
                vq_model,
                transformer,
                self.build_cluster_map(vq_model, **files),
                id2label=dict(enumerate(class_names())) if labels == 1000 else {},
                refiner=read_component(refiner, self.refiner, **given) if refiner else None,
                **settings,
            )
        # Every file that was read is named with its size, so that a conversion can be traced.
        sources = [vq, gpt, *(path for path in files.values() if path is not None)]
        return Conversion(pipeline, self.provenance(sources, bool(transformer.config.text_dim)))

    def provenance(self, sources: list[str | Path], text: bool = False) -> Provenance:
        """What is known of weights converted from these files."""
        data = "the authors' image-text pairs" if text else "ImageNet-1k"
        return Provenance(
            method=self.method,
            license=self.license,
            statement=f"Converted from {self.method}'s published files ({self.paper}); the weights "
            f"are unchanged. {self.license_statement} Trained on {data}; its terms apply.",
            datasets=[] if text else ["ILSVRC/imagenet-1k"],
            files=[SourceFile(name=Path(p).name, bytes=Path(p).stat().st_size) for p in sources],
        )


def read_component(path: str | Path, adapter: StateDictAdapter, **given: Any) -> nn.Module:
    """The component that one file holds; errors name the file."""
    weights = load_checkpoint(path)
    try:
        # Published weights may be views into larger storages, which safetensors refuse later.
        return adapter.build({key: value.contiguous() for key, value in weights.items()}, **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def grid_size(image_size: int, vq_model: VQModel) -> int:
    """Side of the token grid of images of `image_size` pixels.

    Raises:
        ValueError: a size the tokenizer cannot take.
    """
    factor = vq_model.downsample
    if not 0 < image_size <= LONGEST_SIDE * factor or image_size % factor:
        raise ValueError(
            f"image size {image_size} does not fit this tokenizer: give a positive multiple of "
            f"{factor}."
        )
    return image_size // factor
