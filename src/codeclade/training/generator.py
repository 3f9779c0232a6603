"""Train a CodecladeTransformer on code shards, in any scheme of the family.

MASC eq. 5 (arXiv 2510.04220): ids become clusters for input and target alike, cross-entropy over K
classes, everything else as LlamaGen (arXiv 2406.06525): AdamW, class dropout, EMA. `cluster_token`
and `semantic_detail` (IAR2, arXiv 2510.06928) have their losses with the model; objective.py adds
those of IAR (arXiv 2501.00880), of reAR (arXiv 2510.04450) and of the merge tree (our own).
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import parametrize

from ..components.cluster_map import ClusterMap
from ..components.guidance import Schedule
from ..components.pipeline import CodecladePipeline
from ..components.schemes import scheme_class
from ..components.text_pipeline import CodecladeTextPipeline
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.atomic import write_json
from ..data.captioned import CaptionedCodes
from ..data.codes import Codes, codes_folder
from ..data.records import TrainingRecord
from ..data.sheets import contact_sheet, shown_classes
from .context_noise import noise_rate
from .drop_path import add_drop_path
from .embedding_priors import add_embedding_priors, code_contexts, folded, token_vectors
from .generator_recipe import GeneratorRecipe, generator_config, read_codes
from .growing import Growth
from .initialization import initialize, load_source
from .low_rank import add_low_rank, merged
from .objective import GeneratorObjective, TokenNoise, model_condition
from .optimization import build_optimizer
from .processes import summed
from .run import Run
from .sharding import callable_parts, even_batches, is_sharded
from .sparse_head import SparseClusterToken
from .start_table import DataSummary, activation_bytes
from .throughput import ImageCost, decoder_flops

SHEET_CAPTIONS, SHEET_IMAGES = 8, 4  # rows and columns of a sample sheet


def train_generator(
    recipe: GeneratorRecipe,
    codes: str | Path,
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
    out: str | Path,
) -> CodecladePipeline | CodecladeTextPipeline:
    """Train a generator on code shards and save the whole pipeline; a second call goes on.

    Args:
        codes: folder with train/ and validation/, made by `encode` with the same tokenizer.
        cluster_map: the generator predicts its clusters; None: ids. A generator of scheme "token"
            only carries it into its pipeline, for redrawing.
        out: gets pipeline/ (EMA weights), log.jsonl and checkpoints/.

    Raises:
        ValueError: codes or map of another tokenizer, or a folder with another recipe's run.
    """
    # Everything that can be refused is refused before the first weight is drawn.
    training = GeneratorTraining(recipe, codes, vq_model, cluster_map)
    run = Run(recipe, out)
    main = run.accelerator.is_main_process
    if recipe.init_from and run.folder.newest() is None:  # a run that goes on has its own weights
        training.source = load_source(recipe.init_from, training.config)

    # Training, from the newest checkpoint on.
    objective = training.objective(main)
    cost = image_cost(recipe, objective)
    run.start(objective, build_optimizer(objective, recipe))
    run.describe(training.summary(), cost)
    if main:
        run.log(run.first, baselines(training.train, training.mapping))
    for done in _train(run, training):
        if recipe.sample_every and done % recipe.sample_every == 0:
            conditions = sheet_conditions(training.held_out, training.class_names)
            with run.averaged_weights():
                save_samples(run, training.pipeline, conditions, done)

    # The whole pipeline, so that the folder can be used, evaluated and pushed as it is.
    build = partial(training.objective, speaks=False)  # a second one, for a sharded run's weights
    finished = run.finished_model(build, recipe.use_best)
    pipeline = training.pipeline(merged(folded(finished.model)).requires_grad_(True))
    if main:
        pipeline.save_pretrained(run.out / "pipeline")
        run.record(run.out / "pipeline", "generator")
        keep_record(vq_model, run.out / "pipeline" / "vq_model")
    return pipeline


class GeneratorTraining:
    """What a run of a generator is made of: data, config, and how its model is put together.

    The arguments and errors are those of `train_generator`.
    """

    def __init__(
        self,
        recipe: GeneratorRecipe,
        codes: str | Path,
        vq_model: VQModel,
        cluster_map: ClusterMap | None,
    ):
        Schedule(recipe.guidance_schedule)  # which a finished pipeline would refuse
        self.recipe, self.vq_model, self.cluster_map = recipe, vq_model, cluster_map
        # Codes and map are of this tokenizer.
        codes = codes_folder(codes)
        self.train, self.held_out = (read_codes(recipe, codes / p) for p in ("train", "validation"))
        self.train.check_tokenizer(vq_model)
        if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
            raise ValueError("cluster_map was made from another codebook than the tokenizer's.")
        self.class_names: list[str] = self.train.header["class_names"]
        # The model fits both; what the recipe adds to it fits the model.
        self.config = generator_config(recipe, self.train, cluster_map)
        self.scheme = scheme_class(self.config.scheme)
        self.mapping = cluster_map.mapping if self.scheme.predicts_clusters else None  # (N,)
        vectors = token_vectors(self.config.scheme, vq_model, cluster_map)
        self.noise = None
        if recipe.context_noise != "none":
            self.noise = TokenNoise(recipe.context_noise, vectors, recipe.context_noise_clusters)
        # What stands beside what in the images; a first and a second model share it.
        self.contexts = None
        if recipe.embedding_prior.endswith("context"):
            self.contexts = code_contexts(self.config.scheme, self.train, vq_model, cluster_map)
        self.growth = Growth(recipe.grow, self.config, vectors[0]) if recipe.grow else None
        self.source = None  # what `init_from` names, in a run that starts from it

    def summary(self) -> DataSummary:
        """The training set in numbers."""
        sizes = len(self.train), len(self.held_out), len(self.class_names)
        return DataSummary(self.train.source, *sizes)

    def objective(self, speaks: bool = True) -> GeneratorObjective:
        """A new model with its losses.

        Args:
            speaks: print what comes from the weights of `source`.
        """
        # First weights: drawn, or those of another generator.
        recipe, vq_model, cluster_map = self.recipe, self.vq_model, self.cluster_map
        model = CodecladeTransformer(self.config)
        if self.scheme.holds_clusters:
            model.use_clusters(cluster_map.mapping)
        if self.source is not None:
            given = model, self.source, self.class_names, vq_model, cluster_map
            for line in initialize(*given):
                if speaks:
                    print(f"init_from: {line}", file=sys.stderr)
        # What stands in their place, or beside them, while it is trained.
        if recipe.lora_rank:
            alpha, dropout = recipe.lora_alpha, recipe.lora_dropout
            add_low_rank(model, recipe.lora_rank, alpha, dropout, recipe.lora_whole)
        prior, fresh = recipe.embedding_prior, self.source is None
        given = vq_model, cluster_map, recipe.seed, fresh, self.contexts
        add_embedding_priors(model, prior, *given)
        if self.growth is not None:
            self.growth.add_to(model, fresh)
        add_drop_path(model, recipe.drop_path)
        if self.config.text_dim and not recipe.class_dropout:
            model.prefix.null.requires_grad_(False)  # no step uses it, which DDP would not forgive
        # How the blocks are computed.
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if recipe.compile:
            for layer in model.layers:
                layer.compile()
        losses = recipe.pick("cluster_loss_weight", "tree_loss_weight", "alignment_weight")
        return GeneratorObjective(
            model, vq_model, cluster_map, **losses, sparse_head=recipe.sparse_head
        )

    def pipeline(self, model: CodecladeTransformer) -> CodecladePipeline | CodecladeTextPipeline:
        """The pipeline that a model is saved in, with the recipe's settings as its defaults."""
        sampling = ("guidance_scale", "temperature", "top_k", "top_p", "guidance_schedule")
        given = self.recipe.pick(*sampling) | {"cluster_map": self.cluster_map}
        if self.config.text_dim:
            return CodecladeTextPipeline(self.vq_model, model, **given)
        names = dict(enumerate(self.class_names))
        return CodecladePipeline(self.vq_model, model, id2label=names, **given)


def keep_record(vq_model: VQModel, folder: Path) -> None:
    """Copy how a tokenizer was trained beside its copy in `folder`, where it says so."""
    origin = vq_model.config.get("_name_or_path")  # the folder it was loaded from, if it was
    record = Path(origin) / TrainingRecord.FILE if origin else None
    if record and record.is_file():
        write_json(folder / TrainingRecord.FILE, TrainingRecord.read(record).to_json())


def image_cost(recipe: GeneratorRecipe, objective: GeneratorObjective) -> ImageCost:
    """What a training image costs, about."""
    model, config = objective.model, objective.model.config
    length = config.prefix_length + config.num_tokens - 1
    flops = decoder_flops(model, config.num_hidden_layers, config.hidden_size, length)
    # Logits that a pass keeps: not those of a loss in chunks, and of a sparse head clusters' alone.
    coarse = config.coarse_vocab_size or 0
    kept = coarse if recipe.sparse_head else config.vocab_size + coarse
    if objective.chunked and recipe.mixed_precision != "fp16":
        kept = 0
    bytes_kept = activation_bytes(
        positions=length,
        # Blocks of a head see three tokens a position.
        layers=len(model.layers) + 3 * len(getattr(model.head, "blocks", ())),
        width=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=kept,
        bytes_each=4 if recipe.mixed_precision == "no" else 2,
        checkpointing=recipe.gradient_checkpointing,
    )
    return ImageCost(config.num_tokens, flops, bytes_kept)


def _train(run: Run, training: GeneratorTraining) -> Iterator[int]:
    """Number of every step that is done, validated where due."""
    device, mapping = run.accelerator.device, training.mapping
    noise, growth = training.noise, training.growth
    run.model.train()

    for done, batch in run.steps(training.train):
        # What changes with the step: the share of noise, and the size of a growing vocabulary.
        rate = noise_rate(done - 1, run.total)
        clusters = growth.enter(run.model, done - 1) if growth is not None else None
        if clusters is not None:
            run.log(done, {"clusters": clusters})

        def losses(
            ids: Tensor, labels: Tensor, *text: Tensor, rate: float = rate
        ) -> dict[str, Tensor]:
            tokens = ids if mapping is None else mapping[ids]
            noisy = (None, None) if noise is None else noise(tokens, rate)
            given = (tokens, labels, *noisy, *text)
            return run.model(*(one if one is None else one.to(device) for one in given))

        # The step, and every so many steps a look at held-out images with averaged weights.
        run.log_losses(done, run.optimize(batch, losses))
        if run.evaluates(done):
            with run.averaged_weights():
                model, sparse = run.plain_model.model, run.plain_model.sparse
                given = training.held_out, mapping, run.accelerator
                with callable_parts(run.model):
                    loss = validation_loss(model, *given, sparse=sparse)
                run.validated(done, {"validation_loss": loss})
        yield done


@torch.no_grad()
def save_samples(
    run: Run,
    pipeline_of: Callable[[CodecladeTransformer], CodecladePipeline | CodecladeTextPipeline],
    conditions: list[tuple[str, dict[str, Any]]],
    done: int,
) -> None:
    """Write samples/step-N.png with the weights in the model: a row each condition, fixed seeds.

    Draws nothing from the random state that training goes on with.
    """
    # A sharded model computes on all processes; otherwise the main one is enough.
    if not (is_sharded(run.model) or run.accelerator.is_main_process):
        return
    model, device = run.plain_model.model, run.accelerator.device
    pipeline = pipeline_of(model.eval())
    vq_device = pipeline.vq_model.device
    pipeline.vq_model.to(device)
    pipeline.set_progress_bar_config(disable=True)
    try:
        rows = []
        with (
            callable_parts(run.model),
            parametrize.cached(),
        ):  # sums of an embedding prior once, not once a position
            for name, given in conditions:
                draws = [torch.Generator().manual_seed(seed) for seed in range(SHEET_IMAGES)]
                given = given | {"num_images_per_prompt": SHEET_IMAGES, "generator": draws}
                rows.append((name, pipeline(**given).images))
    finally:
        pipeline.vq_model.to(vq_device)
        model.train()
    if run.accelerator.is_main_process:
        folder = run.out / "samples"
        folder.mkdir(exist_ok=True)
        contact_sheet(rows).save(folder / f"step-{done:08d}.png")


def sheet_conditions(held_out: Codes, names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a sheet: classes, or the first validation captions; name and arguments."""
    if not isinstance(held_out, CaptionedCodes):
        return [(names[i], {"class_labels": i}) for i in shown_classes(len(names))]
    rows = []
    for index, text in enumerate(held_out.captions(0)[:SHEET_CAPTIONS]):
        features, mask = (one.unsqueeze(0) for one in held_out.caption(index))
        rows.append((text, {"prompt_embeds": features, "prompt_attention_mask": mask}))
    return rows


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
    for (ids, *rest), counts in even_batches(codes, batch_size, accelerator):
        tokens = (ids if mapping is None else mapping[ids]).to(model.device)
        given = model_condition(tokens, *(one.to(model.device) for one in rest))
        # A sparse head has no logits of all ids; its loss is the same number.
        if sparse is None:
            loss = model(tokens[:, :-1], labels=tokens, **given).loss
        else:
            output = model(tokens[:, :-1], return_logits=False, **given)
            hidden = output.last_hidden_state[:, first : first + tokens.shape[1]]
            loss, _ = sparse(model.head, hidden, tokens)
        total += counts * torch.tensor([loss.item() * len(tokens), len(tokens)])
    model.train(training)
    # Sums of all processes, so that the mean counts every image once.
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
