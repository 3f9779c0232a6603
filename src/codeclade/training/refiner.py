"""Train a Refiner on code shards: ids from their own clusters, all positions at once.

DCPE's refine net (arXiv 2508.10719), CTF's second stage (arXiv 2503.16194) and MASC's hierarchical
decoding (arXiv 2510.04220): true clusters in, cross-entropy on the true ids; independent of the
generator except for MASC, whose generator is frozen and lends its hidden states.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.refiner import Refiner, RefinerConfig, generator_states
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.codes import Codes, codes_folder
from .join_pipeline import check_joins, join_refiner
from .optimization import build_optimizer
from .processes import summed
from .recipe import DECODER_SIZES, RunRecipe
from .run import Run
from .sharding import even_batches
from .start_table import DataSummary
from .throughput import ImageCost, decoder_flops


@dataclass(kw_only=True)
class RefinerRecipe(RunRecipe):
    """Settings of `codeclade train-refiner`; the defaults are DCPE's refine net."""

    HARMLESS: ClassVar[tuple[str, ...]] = (*RunRecipe.HARMLESS, "compile", "use_best")

    hidden_size: int = 768  # width D
    num_hidden_layers: int = 1  # blocks
    num_attention_heads: int = 12  # heads a block; D must be a multiple of 4 times as many
    intermediate_size: int = 2048  # width inside the feed-forward layers
    causal: bool = True  # False: every position sees all clusters (CTF)
    mask_to_members: bool = False  # True: per-cluster softmax (CTF, MASC)
    class_prefix: bool = True  # False: clusters, and the generator's states if given, alone
    sampling_temperature: float = 0.0  # of the finished refiner; 0 is arg-max
    token_dropout: float = 0.0  # dropout of the embedded clusters
    dropout: float = 0.1  # residual and feed-forward dropout
    class_dropout: float = 0.0  # above 0: the refiner has a null class and can be guided
    final_learning_rate: float = 1e-4  # at the last step: that of all steps
    warmup: int = 0  # steps of linear increase
    use_best: bool = False  # finish with the weights of the lowest validation loss, not the last
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass
    compile: bool = False  # torch.compile of the blocks


def train_refiner(
    recipe: RefinerRecipe,
    codes: str | Path,
    vq_model: VQModel,
    cluster_map: ClusterMap,
    out: str | Path,
    transformer: CodecladeTransformer | None = None,
    pipeline: str | Path | None = None,
) -> Refiner:
    """Train a refiner on code shards and save it; a second call goes on.

    Args:
        codes: folder with train/ and validation/, made by `encode` with the same tokenizer.
        cluster_map: gives the clusters that come in.
        out: gets refiner/ (EMA weights), log.jsonl and checkpoints/.
        transformer: a trained generator over the same clusters, whose hidden states come in too
            (MASC); it is not trained.
        pipeline: folder of a pipeline of this tokenizer and map, which gets the finished refiner.

    Raises:
        ValueError: codes, map or generator of another tokenizer, a folder with another recipe's
            run, or a pipeline that the refiner does not fit.
    """
    # Everything that can be refused is refused before the first weight is drawn.
    codes = codes_folder(codes)
    train, held_out = Codes(codes / "train"), Codes(codes / "validation")
    train.check_tokenizer(vq_model)
    if not cluster_map.matches(vq_model.codebook):
        raise ValueError("cluster_map was made from another codebook; cluster this one again.")
    if transformer is not None and transformer.config.vocab_size != cluster_map.num_clusters:
        raise ValueError(
            f"the generator predicts {transformer.config.vocab_size} tokens, but there are "
            f"{cluster_map.num_clusters} clusters; give the generator trained on them."
        )
    config = refiner_config(recipe, train, cluster_map, transformer)
    names = train.header["class_names"]
    if pipeline is not None:
        check_joins(config, names, pipeline)
    run = Run(recipe, out)

    # Training, from the newest checkpoint on.
    model = Refiner(config)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.compile:
        for layer in model.layers:
            layer.compile()
    run.start(model, build_optimizer(model, recipe))
    tokens = config.num_tokens
    flops = decoder_flops(model, config.num_hidden_layers, config.hidden_size, tokens)
    data = DataSummary(train.source, len(train), len(held_out), len(names))
    run.describe(data, ImageCost(tokens, flops))
    device, main = run.accelerator.device, run.accelerator.is_main_process
    if transformer is not None:
        transformer = transformer.to(device).eval().requires_grad_(False)
    if main:
        run.log(run.first, {"member_draw_baseline": member_entropy(train, cluster_map)})
    _train(run, _Batches(train, held_out, cluster_map.mapping.to(device), transformer))

    # The refiner alone, and as one more component of the pipeline.
    model = run.finished_model(lambda: Refiner(config), recipe.use_best)
    if main:
        model.save_pretrained(run.out / "refiner")
        run.record(run.out / "refiner", "refiner")
        if pipeline is not None:
            join_refiner(run.out / "refiner", pipeline)
    return model


def refiner_config(
    recipe: RefinerRecipe,
    codes: Codes,
    cluster_map: ClusterMap,
    transformer: CodecladeTransformer | None,
) -> RefinerConfig:
    """Architecture for the codes of one tokenizer and the clusters of one map."""
    return RefinerConfig(
        codebook_size=codes.header["codebook_size"],
        num_clusters=cluster_map.num_clusters,
        grid_size=codes.header["grid_size"],
        num_classes=len(codes.header["class_names"]) if recipe.class_prefix else 0,
        null_class=recipe.class_dropout > 0,
        context_dim=None if transformer is None else transformer.config.hidden_size,
        residual_dropout=recipe.dropout,
        feed_forward_dropout=recipe.dropout,
        **recipe.pick("causal", "mask_to_members", "sampling_temperature"),
        **recipe.pick(*DECODER_SIZES, "token_dropout", "class_dropout"),
    )


@dataclass
class _Batches:
    """Where the inputs of a refiner come from."""

    train: Codes
    held_out: Codes
    mapping: Tensor  # (N,)
    transformer: CodecladeTransformer | None

    def inputs(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor | None]:
        """Arguments of `Refiner.forward` for ids (B, T) and class labels (B,)."""
        ids, labels = ids.to(self.mapping.device), labels.to(self.mapping.device)
        clusters, context = self.mapping[ids], None
        if self.transformer is not None:
            context = generator_states(self.transformer, clusters, class_labels=labels)
        return {
            "clusters": clusters,
            "class_labels": labels,
            "context": context,
            "mapping": self.mapping,
            "labels": ids,
        }


def _train(run: Run, batches: _Batches) -> None:
    run.model.train()

    def losses(ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        given = batches.inputs(ids, labels)
        output = run.model(**given)
        right = output.logits.detach().argmax(-1) == given["labels"]
        return {"loss": output.loss, "accuracy": right.float().mean()}

    for done, batch in run.steps(batches.train):
        run.log_losses(done, run.optimize(batch, losses))
        if run.evaluates(done):
            with run.averaged_weights():
                numbers = validation(run.plain_model, batches, run.accelerator)
                run.validated(done, numbers)


@torch.no_grad()
def validation(
    model: Refiner, batches: _Batches, accelerator: Accelerator | None = None, batch_size: int = 64
) -> dict[str, float]:
    """Cross-entropy per token in nats and arg-max accuracy, first view of every held-out image.

    Args:
        accelerator: its processes share the images; None: this process takes all.
    """
    training = model.training
    model.eval()
    total = torch.zeros(3, dtype=torch.float64)  # sums of losses and accuracies, images
    for (ids, labels), counts in even_batches(batches.held_out, batch_size, accelerator):
        given = batches.inputs(ids, labels)
        output = model(**given)
        accuracy = (output.logits.argmax(-1) == given["labels"]).float().mean()
        total += counts * len(ids) * torch.tensor([output.loss.item(), accuracy.item(), 1.0])
    model.train(training)
    loss, correct, images = summed(total, accelerator)
    return {"validation_loss": loss / images, "validation_accuracy": correct / images}


def member_entropy(codes: Codes, cluster_map: ClusterMap) -> float:
    """Nats per token of the uniform member draw, mean ln(cluster size): the bar for a refiner."""
    counts = codes.counts()[0].double()
    nats = cluster_map.sizes[cluster_map.mapping].double().log()  # (N,) of every code
    return ((counts * nats).sum() / counts.sum()).item()
