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
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.pipeline import CodecladePipeline
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel
from .codes import Codes, codes_folder
from .losses import cluster_loss
from .run import Run, ema_weights


@dataclass
class GeneratorRecipe:
    """Settings of `codeclade train-generator`."""

    scheme: str = (
        ""  # empty: "cluster" with a cluster map, "semantic_detail" with pairs, else "token"
    )
    cluster_loss_weight: float = 0.0  # IAR: weight of the cluster loss; scheme "token" with a map
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 2048
    dropout: float = 0.1  # token, residual and feed-forward dropout
    class_dropout: float = 0.1
    steps: int = 100_000
    batch_size: int = 256  # global
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5
    warmup: int = 100
    weight_decay: float = 0.05  # on matrices only
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "bf16"  # no, fp16, bf16
    guidance_scale: float = 2.0  # defaults the finished pipeline is saved with
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    workers: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 500


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
    codes = codes_folder(codes)
    train, held_out = Codes(codes / "train"), Codes(codes / "validation")
    train.check_tokenizer(vq_model)
    if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
        raise ValueError("cluster_map was made from another codebook than the tokenizer's.")
    config = generator_config(recipe, train, cluster_map)
    scheme = scheme_class(config.scheme)
    mapping = cluster_map.mapping if scheme.predicts_clusters else None
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    set_seed(recipe.seed, device_specific=True)
    torch.manual_seed(recipe.seed)
    model = CodecladeTransformer(config)
    if scheme.holds_clusters:
        model.use_clusters(cluster_map.mapping)
    ema = EMAModel(model.parameters(), decay=recipe.ema_decay)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    run = Run(accelerator, out, recipe, recipe.steps)
    start = run.resume()
    run.log(start, baselines(train, mapping))
    clusters = cluster_map.mapping if recipe.cluster_loss_weight else None
    _optimize(run, recipe, train, held_out, mapping, clusters, model, optimizer, ema, start)
    model = accelerator.unwrap_model(model).float().eval()
    ema.copy_to(model.parameters())
    pipeline = CodecladePipeline(
        vq_model,
        model,
        cluster_map,
        id2label=dict(enumerate(train.header["class_names"])),
        guidance_scale=recipe.guidance_scale,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
    )
    if accelerator.is_main_process:
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


def build_optimizer(model: torch.nn.Module, recipe: GeneratorRecipe) -> torch.optim.AdamW:
    """LlamaGen's AdamW: betas (0.9, 0.95), weight decay on tensors of two or more dimensions."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _optimize(
    run, recipe, train, held_out, mapping, clusters, model, optimizer, ema, start
) -> None:
    device, plain = run.accelerator.device, run.accelerator.unwrap_model(model)
    model.train()
    for done, (ids, labels) in run.steps(train, optimizer, start):
        tokens = (ids if mapping is None else mapping[ids]).to(device)
        output = model(tokens[:, :-1], labels.to(device), labels=tokens)
        loss = output.loss
        if clusters is not None:
            extra = cluster_loss(output.logits, tokens, clusters.to(device))
            loss = loss + recipe.cluster_loss_weight * extra
        run.descend(loss, model, optimizer)
        ema.step(model.parameters())
        if done % recipe.log_every == 0:
            run.log(done, {"loss": loss.item(), "learning_rate": optimizer.param_groups[0]["lr"]})
        if run.due(done):
            with ema_weights(plain, ema):
                run.log(done, {"validation_loss": validation_loss(plain, held_out, mapping)})


@torch.no_grad()
def validation_loss(
    model: CodecladeTransformer, codes: Codes, mapping: Tensor | None, batch_size: int = 250
) -> float:
    """Mean cross-entropy per token, in nats, of the first view of every image; float32."""
    training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(codes), batch_size):
        ids = codes.ids[start : start + batch_size, 0].long()
        tokens = (ids if mapping is None else mapping[ids]).to(model.device)
        labels = codes.labels[start : start + batch_size].to(model.device)
        total += model(tokens[:, :-1], labels, labels=tokens).loss.item() * len(tokens)
    model.train(training)
    return total / len(codes)


def baselines(codes: Codes, mapping: Tensor | None) -> dict[str, float]:
    """What a generator must beat, nats per token: ln V and the entropy of the frequencies.

    Pairs of semantic and detail codes count as the sum of both.
    """
    ids = codes.ids.long()
    sizes = [codes.header["codebook_size"], codes.header["detail_codebook_size"]]
    streams = ids.flatten(0, -2).unbind(-1) if sizes[1] else [ids.flatten()]
    uniform = entropy = 0.0
    for stream, size in zip(streams, sizes, strict=False):
        tokens = stream if mapping is None else mapping[stream]
        vocabulary = size if mapping is None else int(mapping.max()) + 1
        p = tokens.bincount(minlength=vocabulary).double() / len(tokens)
        uniform += math.log(vocabulary)
        entropy -= (p[p > 0] * p[p > 0].log()).sum().item()
    return {"uniform_baseline": uniform, "unigram_entropy": entropy}
