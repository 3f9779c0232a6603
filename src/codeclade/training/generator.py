"""Train a CodecladeTransformer on code shards, in any scheme of the family.

MASC eq. 5 (arXiv 2510.04220): ids become clusters for input and target alike, cross-entropy over K
classes, everything else as LlamaGen (arXiv 2406.06525): AdamW, class dropout, EMA. `cluster_token`
and `semantic_detail` (IAR2, arXiv 2510.06928) have their losses with the model; objective.py adds
those of IAR (arXiv 2501.00880), of reAR (arXiv 2510.04450) and of the merge tree (our own).
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
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.codes import Codes, codes_folder
from .context_noise import KINDS, noise_rate
from .drop_path import add_drop_path
from .embedding_priors import PRIORS, add_embedding_priors, folded, token_vectors
from .objective import GeneratorObjective, TokenNoise
from .optimization import build_optimizer
from .processes import share, summed
from .recipe import RunRecipe
from .run import Run
from .sparse_head import SparseClusterToken


@dataclass(kw_only=True)
class GeneratorRecipe(RunRecipe):
    """Settings of `codeclade train-generator`."""

    scheme: str = ""  # empty: with a map "cluster", with pairs "semantic_detail", else "token"
    embedding_prior: str = (
        "none"  # none, tree, codebook, both; controls random_tree, random_codebook
    )
    cluster_loss_weight: float = 0.0  # IAR: weight of the cluster loss; scheme "token" with a map
    tree_loss_weight: float = 0.0  # of the cross-entropies in cuts of the codes' merge tree
    alignment_weight: float = 0.0  # reAR: of cosines between hidden states and code vectors
    context_noise: str = "none"  # input tokens replaced at first: none, uniform (reAR), cluster
    context_noise_clusters: int = 1024  # clusters of the tree that "cluster" noise stays within
    sparse_head: bool = False  # cluster_token: loss from the right cluster's members, less memory
    hidden_size: int = 768  # width D
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # heads a block; D must be a multiple of 4 times as many
    intermediate_size: int = 2048  # width inside the feed-forward layers
    dropout: float = 0.1  # of embedded tokens, residual branches and feed-forward layers
    token_dropout: float | None = None  # null: that of dropout
    residual_dropout: float | None = None  # null: that of dropout
    feed_forward_dropout: float | None = None  # null: that of dropout
    drop_path: float = 0.0  # chance of leaving the last block's branches out, less in earlier ones
    class_dropout: float = 0.1  # share of classes replaced by the null class, for guidance
    guidance_scale: float = 2.0  # saved with the finished pipeline as its default
    temperature: float = 1.0  # saved default; 0 is arg-max
    top_k: int = 0  # saved default; 0 keeps all
    top_p: float = 1.0  # saved default; 1 keeps all
    guidance_schedule: str | dict | None = None  # saved default: a name, or name and parameters

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("embedding_prior", PRIORS), ("context_noise", KINDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )
        for name in ("cluster_loss_weight", "tree_loss_weight", "alignment_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be 0 or more and below 1.")


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
    vectors = token_vectors(config.scheme, vq_model, cluster_map)
    noise = None
    if recipe.context_noise != "none":
        noise = TokenNoise(recipe.context_noise, vectors, recipe.context_noise_clusters)
    mapping = cluster_map.mapping if config.scheme == "cluster" else None
    run = Run(recipe, out)

    # Training, from the newest checkpoint on.
    model = CodecladeTransformer(config)
    if config.scheme == "cluster_token":
        model.use_clusters(cluster_map.mapping)
    add_embedding_priors(model, recipe.embedding_prior, vq_model, cluster_map, recipe.seed)
    add_drop_path(model, recipe.drop_path)
    objective = build_objective(recipe, model, vq_model, cluster_map)
    run.start(objective, build_optimizer(objective, recipe))
    if run.accelerator.is_main_process:
        run.log(run.first, baselines(train, mapping))
    _train(run, train, held_out, mapping, noise)

    # The whole pipeline, so that the folder can be used, evaluated and pushed as it is.
    model = folded(run.finished_model().model)
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
    if (scheme == "semantic_detail") != bool(details):
        raise ValueError(
            f"scheme {scheme!r} does not fit codes with {details or 'no'} detail codes."
        )
    wants_map = scheme in ("cluster", "cluster_token") or recipe.cluster_loss_weight > 0
    if wants_map != (cluster_map is not None):
        raise ValueError(
            f"scheme {scheme!r} with cluster_loss_weight={recipe.cluster_loss_weight} "
            f"{'needs a' if wants_map else 'takes no'} cluster map."
        )
    if recipe.sparse_head and scheme != "cluster_token":
        raise ValueError(f"sparse_head is of scheme 'cluster_token', not {scheme!r}.")
    if recipe.sparse_head and (recipe.tree_loss_weight or recipe.cluster_loss_weight):
        raise ValueError("sparse_head has no logits of all ids, which tree and cluster loss need.")
    clusters = cluster_map.num_clusters if cluster_map is not None else None
    vocabulary = {"cluster": (clusters, None), "cluster_token": (size, clusters)}
    vocab_size, coarse = vocabulary.get(scheme, (details, size) if details else (size, None))
    return CodecladeConfig(
        vocab_size=vocab_size,
        coarse_vocab_size=coarse,
        scheme=scheme,
        grid_size=codes.header["grid_size"],
        num_classes=len(codes.header["class_names"]),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        **dropouts(recipe),
        class_dropout=recipe.class_dropout,
    )


def dropouts(recipe: GeneratorRecipe) -> dict[str, float]:
    """The three dropouts of a config: each its own, or else the common one."""
    names = ("token_dropout", "residual_dropout", "feed_forward_dropout")
    own = {name: getattr(recipe, name) for name in names}
    return {name: recipe.dropout if value is None else value for name, value in own.items()}


def build_objective(
    recipe: GeneratorRecipe,
    model: CodecladeTransformer,
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
) -> GeneratorObjective:
    """The model with the losses of a recipe."""
    return GeneratorObjective(
        model,
        vq_model,
        cluster_map,
        cluster_loss_weight=recipe.cluster_loss_weight,
        tree_loss_weight=recipe.tree_loss_weight,
        alignment_weight=recipe.alignment_weight,
        sparse_head=recipe.sparse_head,
    )


def _train(
    run: Run, train: Codes, held_out: Codes, mapping: Tensor | None, noise: TokenNoise | None
) -> None:
    device, steps = run.accelerator.device, run.recipe.steps
    run.model.train()

    for done, batch in run.steps(train):
        rate = noise_rate(done - 1, steps)

        def losses(ids: Tensor, labels: Tensor, rate: float = rate) -> dict[str, Tensor]:
            tokens = ids if mapping is None else mapping[ids]
            given = [tokens, labels]
            if noise is not None:
                given += noise(tokens, rate)
            return run.model(*(tensor.to(device) for tensor in given))

        run.log_losses(done, run.optimize(batch, losses))
        if run.evaluates(done):
            with run.averaged_weights():
                objective = run.plain_model
                loss = validation_loss(
                    objective.model, held_out, mapping, run.accelerator, sparse=objective.sparse
                )
            run.log(done, {"validation_loss": loss})


@torch.no_grad()
def validation_loss(
    model: CodecladeTransformer,
    codes: Codes,
    mapping: Tensor | None,
    accelerator: Accelerator | None = None,
    batch_size: int = 250,
    sparse: SparseClusterToken | None = None,
) -> float:
    """Mean cross-entropy per token, in nats, of the first view of every image.

    Args:
        accelerator: its processes share the images; None: this process takes all.
        sparse: computes the loss of a "cluster_token" model in less memory.
    """
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # sum of losses, images
    first = model.config.prefix_length - 1
    for ids, labels in codes.first_views(batch_size, *share(accelerator)):
        tokens = (ids if mapping is None else mapping[ids]).to(model.device)
        if sparse is None:
            loss = model(tokens[:, :-1], labels.to(model.device), labels=tokens).loss
        else:
            output = model(tokens[:, :-1], labels.to(model.device), return_logits=False)
            hidden = output.hidden_states[:, first : first + tokens.shape[1]]
            loss, _ = sparse(model.head, hidden, tokens)
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
