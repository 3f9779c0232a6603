"""Train a CodecladeTransformer on code shards, in any scheme of the family.

MASC eq. 5 (arXiv 2510.04220): ids become clusters for input and target alike, cross-entropy over K
classes, everything else as LlamaGen (arXiv 2406.06525): AdamW, class dropout, EMA. `cluster_token`
and `semantic_detail` (IAR2, arXiv 2510.06928) have their losses with the model; objective.py adds
those of IAR (arXiv 2501.00880), of reAR (arXiv 2510.04450) and of the merge tree (our own).
"""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from ..components.cluster_map import ClusterMap
from ..components.guidance import Schedule
from ..components.pipeline import CodecladePipeline
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.atomic import write_json
from ..data.codes import Codes, codes_folder
from ..data.records import TrainingRecord
from ..data.sheets import contact_sheet
from .context_noise import noise_rate
from .drop_path import add_drop_path
from .embedding_priors import add_embedding_priors, folded, token_vectors
from .generator_recipe import GeneratorRecipe, generator_config
from .initialization import initialize, load_source
from .objective import GeneratorObjective, TokenNoise
from .optimization import build_optimizer
from .processes import share, summed
from .run import Run
from .sparse_head import SparseClusterToken
from .start_table import activation_bytes
from .throughput import decoder_flops

SHEET_CLASSES, SHEET_IMAGES = 8, 4  # rows and columns of a sample sheet


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
    scheme = scheme_class(config.scheme)
    mapping = cluster_map.mapping if scheme.predicts_clusters else None
    names = train.header["class_names"]
    run = Run(recipe, out)
    source = None
    if recipe.init_from and run.folder.newest() is None:  # a run that goes on has its own weights
        source = load_source(recipe.init_from, config)

    # The model with its losses; the sharded one of a finished run is made anew in the same way.
    def build() -> GeneratorObjective:
        model = CodecladeTransformer(config)
        if scheme.holds_clusters:
            model.use_clusters(cluster_map.mapping)
        if source is not None:
            for line in initialize(model, source, names, vq_model, cluster_map):
                if run.accelerator.is_main_process:
                    print(f"init_from: {line}", file=sys.stderr)
        prior, fresh = recipe.embedding_prior, source is None
        add_embedding_priors(model, prior, vq_model, cluster_map, recipe.seed, fresh)
        add_drop_path(model, recipe.drop_path)
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if recipe.compile:
            for layer in model.layers:
                layer.compile()
        return build_objective(recipe, model, vq_model, cluster_map)

    # Training, from the newest checkpoint on.
    objective = build()
    flops, activations = image_costs(recipe, objective.model)
    run.start(objective, build_optimizer(objective, recipe))
    run.describe(
        train.source, len(train), len(held_out), len(names), config.num_tokens, flops, activations
    )
    if run.accelerator.is_main_process:
        run.log(run.first, baselines(train, mapping))

    def pipeline_of(model: CodecladeTransformer) -> CodecladePipeline:
        return CodecladePipeline(
            vq_model,
            model,
            cluster_map,
            id2label=dict(enumerate(names)),
            guidance_scale=recipe.guidance_scale,
            temperature=recipe.temperature,
            top_k=recipe.top_k,
            top_p=recipe.top_p,
            guidance_schedule=recipe.guidance_schedule,
        )

    for done in _train(run, train, held_out, mapping, noise):
        if recipe.sample_every and done % recipe.sample_every == 0:
            with run.averaged_weights():
                save_samples(run, pipeline_of, len(names), done)

    # The whole pipeline, so that the folder can be used, evaluated and pushed as it is.
    pipeline = pipeline_of(folded(run.finished_model(build, recipe.use_best).model))
    if run.accelerator.is_main_process:
        pipeline.save_pretrained(run.out / "pipeline")
        run.record(run.out / "pipeline", "generator", train.source, len(train), len(names))
        keep_record(vq_model, run.out / "pipeline" / "vq_model")
    return pipeline


def keep_record(vq_model: VQModel, folder: Path) -> None:
    """Copy how a tokenizer was trained beside its copy in `folder`, where it says so."""
    origin = vq_model.config.get("_name_or_path")  # the folder it was loaded from, if it was
    record = Path(origin) / TrainingRecord.FILE if origin else None
    if record and record.is_file():
        write_json(folder / TrainingRecord.FILE, TrainingRecord.read(record).to_json())


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


def image_costs(recipe: GeneratorRecipe, model: CodecladeTransformer) -> tuple[float, float]:
    """FLOPs of an image, forward and backward, and bytes it keeps for the backward pass, about."""
    config = model.config
    length = config.prefix_length + config.num_tokens - 1
    flops = decoder_flops(model, config.num_hidden_layers, config.hidden_size, length)
    coarse = config.coarse_vocab_size or 0
    bytes_kept = activation_bytes(
        positions=length,
        # Blocks of a head see three tokens a position.
        layers=len(model.layers) + 3 * len(getattr(model.head, "blocks", ())),
        width=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=coarse if recipe.sparse_head else config.vocab_size + coarse,
        bytes_each=4 if recipe.mixed_precision == "no" else 2,
        checkpointing=recipe.gradient_checkpointing,
    )
    return flops, bytes_kept


def _train(
    run: Run, train: Codes, held_out: Codes, mapping: Tensor | None, noise: TokenNoise | None
) -> Iterator[int]:
    """Number of every step that is done, validated where due."""
    device = run.accelerator.device
    run.model.train()

    for done, batch in run.steps(train):
        rate = noise_rate(done - 1, run.total)

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
                run.validated(done, {"validation_loss": loss})
        yield done


@torch.no_grad()
def save_samples(
    run: Run,
    pipeline_of: Callable[[CodecladeTransformer], CodecladePipeline],
    classes: int,
    done: int,
) -> None:
    """Write samples/step-N.png with the weights in the model: rows are classes, seeds are fixed.

    Draws nothing from the random state that training goes on with.
    """
    # A sharded model computes on all processes; otherwise the main one is enough.
    sharded = any(isinstance(p, DTensor) for p in run.model.parameters())
    if not (sharded or run.accelerator.is_main_process):
        return
    model, device = run.plain_model.model, run.accelerator.device
    pipeline = pipeline_of(model.eval())
    vq_device = pipeline.vq_model.device
    pipeline.vq_model.to(device)
    pipeline.set_progress_bar_config(disable=True)
    try:
        rows = []
        with parametrize.cached():  # sums of an embedding prior once, not once a position
            for label in range(min(classes, SHEET_CLASSES)):
                draws = [torch.Generator().manual_seed(seed) for seed in range(SHEET_IMAGES)]
                images = pipeline(label, num_images_per_prompt=SHEET_IMAGES, generator=draws).images
                rows.append((pipeline.config.id2label[str(label)], images))
    finally:
        pipeline.vq_model.to(vq_device)
        model.train()
    if run.accelerator.is_main_process:
        folder = run.out / "samples"
        folder.mkdir(exist_ok=True)
        contact_sheet(rows).save(folder / f"step-{done:08d}.png")


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
