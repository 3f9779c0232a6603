"""Train a CodecladeTransformer on code shards, in any scheme of the family.

MASC eq. 5 (arXiv 2510.04220): ids become clusters for input and target alike, cross-entropy over K
classes, everything else as LlamaGen (arXiv 2406.06525): AdamW, class dropout, EMA. `cluster_token`
and `semantic_detail` (IAR2, arXiv 2510.06928) have their losses in components/heads.py; IAR
(arXiv 2501.00880) adds a cluster loss to plain ids.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.guidance import Schedule
from ..components.pipeline import CodecladePipeline
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.codes import Codes, codes_folder
from .losses import cluster_loss
from .optimization import build_optimizer
from .processes import share, summed
from .recipe import RunRecipe
from .run import Run


@dataclass(kw_only=True)
class GeneratorRecipe(RunRecipe):
    """Settings of `codeclade train-generator`."""

    scheme: str = ""  # empty: with a map "cluster", with pairs "semantic_detail", else "token"
    cluster_loss_weight: float = 0.0  # IAR: weight of the cluster loss; scheme "token" with a map
    hidden_size: int = 768  # width D
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # heads a block; D must be a multiple of 4 times as many
    intermediate_size: int = 2048  # width inside the feed-forward layers
    dropout: float = 0.1  # token, residual and feed-forward dropout
    class_dropout: float = 0.1  # share of classes replaced by the null class, for guidance
    guidance_scale: float = 2.0  # saved with the finished pipeline as its default
    temperature: float = 1.0  # saved default; 0 is arg-max
    top_k: int = 0  # saved default; 0 keeps all
    top_p: float = 1.0  # saved default; 1 keeps all
    guidance_schedule: str | dict | None = None  # saved default: a name, or name and parameters


def train_generator(
    recipe: GeneratorRecipe,
    codes: str | Path,
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
    out: str | Path,
) -> CodecladePipeline:
    """Train a generator on code shards and save the whole pipeline; a second call goes on.

    Args:
        codes: folder with train/ and validation/, made by `encode` with the same tokenizer.
        cluster_map: the generator predicts its clusters; None: ids.
        out: gets pipeline/ (EMA weights), log.jsonl and checkpoints/.

    Raises:
        ValueError: codes or map of another tokenizer, or a folder with another recipe's run.
    """
    # Everything that can be refused is refused before the first weight is drawn.
    Schedule(recipe.guidance_schedule)
    codes = codes_folder(codes)
    train, held_out = Codes(codes / "train"), Codes(codes / "validation")
    train.check_tokenizer(vq_model)
    if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
        raise ValueError("cluster_map was made from another codebook than the tokenizer's.")
    config = generator_config(recipe, train, cluster_map)
    scheme = scheme_class(config.scheme)
    mapping = cluster_map.mapping if scheme.predicts_clusters else None
    run = Run(recipe, out)

    # Training, from the newest checkpoint on.
    model = CodecladeTransformer(config)
    if scheme.holds_clusters:
        model.use_clusters(cluster_map.mapping)
    run.start(model, build_optimizer(model, recipe))
    if run.accelerator.is_main_process:
        run.log(run.first, baselines(train, mapping))
    clusters = cluster_map.mapping if recipe.cluster_loss_weight else None
    _train(run, recipe, train, held_out, mapping, clusters)

    # The whole pipeline, so that the folder can be used, evaluated and pushed as it is.
    model = run.finished_model()
    pipeline = CodecladePipeline(
        vq_model,
        model,
        cluster_map,
        id2label=dict(enumerate(train.header["class_names"])),
        guidance_scale=recipe.guidance_scale,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
        guidance_schedule=recipe.guidance_schedule,
    )
    if run.accelerator.is_main_process:
        pipeline.save_pretrained(run.out / "pipeline")
        names, data = train.header["class_names"], train.source
        run.record(run.out / "pipeline", "generator", data, len(train), len(names))
    return pipeline


def generator_config(
    recipe: GeneratorRecipe, codes: Codes, cluster_map: ClusterMap | None
) -> CodecladeConfig:
    """Architecture for the codes of one tokenizer in the recipe's scheme.

    Raises:
        ValueError: a scheme that the codes or the presence of a map do not fit.
    """
    size, details = codes.header["codebook_size"], codes.header["detail_codebook_size"]
    default = "semantic_detail" if details else "token" if cluster_map is None else "cluster"
    scheme = recipe.scheme or default
    kind = scheme_class(scheme)
    if kind.detail_codes != bool(details):
        raise ValueError(
            f"scheme {scheme!r} does not fit codes with {details or 'no'} detail codes."
        )
    needs_map = kind.predicts_clusters or kind.holds_clusters
    wants_map = needs_map or recipe.cluster_loss_weight > 0
    if wants_map != (cluster_map is not None):
        raise ValueError(
            f"scheme {scheme!r} with cluster_loss_weight={recipe.cluster_loss_weight} "
            f"{'needs a' if wants_map else 'takes no'} cluster map."
        )
    clusters = cluster_map.num_clusters if cluster_map is not None else None
    *coarse, vocab_size = kind.sizes(size, details, clusters)
    return CodecladeConfig(
        vocab_size=vocab_size,
        coarse_vocab_size=coarse[0] if coarse else None,
        scheme=scheme,
        grid_size=codes.header["grid_size"],
        num_classes=len(codes.header["class_names"]),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        token_dropout=recipe.dropout,
        residual_dropout=recipe.dropout,
        feed_forward_dropout=recipe.dropout,
        class_dropout=recipe.class_dropout,
    )


def _train(
    run: Run,
    recipe: GeneratorRecipe,
    train: Codes,
    held_out: Codes,
    mapping: Tensor | None,
    clusters: Tensor | None,
) -> None:
    device = run.accelerator.device
    run.model.train()

    def losses(ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        tokens = (ids if mapping is None else mapping[ids]).to(device)
        output = run.model(tokens[:, :-1], labels.to(device), labels=tokens)
        if clusters is None:
            return {"loss": output.loss}
        extra = cluster_loss(output.logits, tokens, clusters.to(device))
        return {"loss": output.loss + recipe.cluster_loss_weight * extra}

    for done, batch in run.steps(train):
        run.log_losses(done, run.optimize(batch, losses))
        if run.evaluates(done):
            with run.averaged_weights():
                loss = validation_loss(run.plain_model, held_out, mapping, run.accelerator)
            run.log(done, {"validation_loss": loss})


@torch.no_grad()
def validation_loss(
    model: CodecladeTransformer,
    codes: Codes,
    mapping: Tensor | None,
    accelerator: Accelerator | None = None,
    batch_size: int = 250,
) -> float:
    """Mean cross-entropy per token, in nats, of the first view of every image.

    Args:
        accelerator: its processes share the images; None: this process takes all.
    """
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # sum of losses, images
    for ids, labels in codes.first_views(batch_size, *share(accelerator)):
        tokens = (ids if mapping is None else mapping[ids]).to(model.device)
        loss = model(tokens[:, :-1], labels.to(model.device), labels=tokens).loss
        total += torch.tensor([loss.item() * len(tokens), len(tokens)])
    model.train(training)
    loss, images = summed(total, accelerator)
    return loss / images


def baselines(codes: Codes, mapping: Tensor | None) -> dict[str, float]:
    """What a generator must beat, nats per token: ln V and the entropy of the frequencies.

    Pairs of semantic and detail codes count as the sum of both.
    """
    uniform = entropy = 0.0
    for counts in codes.counts():
        if mapping is not None:
            counts = mapping.bincount(counts.double())
        p = counts.double() / counts.sum()
        uniform += math.log(len(counts))
        entropy -= (p[p > 0] * p[p > 0].log()).sum().item()
    return {"uniform_baseline": uniform, "unigram_entropy": entropy}
