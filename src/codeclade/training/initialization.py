"""Start a generator from a trained one: other classes, another grid, another vocabulary.

Weights of the same name and shape are copied. Class rows are found by name. Rows of ids and
clusters go by codes: a new entry starts as the mean of the old rows of the codes it stands for, so
a cluster that is split hands its row to all parts. Rotary positions have no weights, so any grid
goes.

Shapes: N codes, V vocabulary, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..components.cluster_map import SKETCH_TOLERANCE, ClusterMap, codebook_sketch
from ..components.pipeline import CodecladePipeline
from ..components.text_pipeline import CodecladeTextPipeline
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel

CLASSES = "prefix.embedding.weight"
SINGLE = ("token", "cluster")  # schemes of one table over ids or clusters
TABLES = ("token_embedding.weight", "head.weight")  # theirs
SAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def load_source(source: str, config: CodecladeConfig) -> CodecladePipeline | CodecladeTextPipeline:
    """The pipeline to start from.

    Args:
        source: folder or Hub id.
        config: of the generator that shall start from it.

    Raises:
        ValueError: a source of other sizes or of a scheme that has nothing in common.
    """
    kind = CodecladeTextPipeline if config.text_dim else CodecladePipeline
    pipeline = kind.from_pretrained(source, dtype=torch.float32)
    theirs = pipeline.transformer.config
    other = [name for name in SAME if getattr(theirs, name) != getattr(config, name)]
    if other:
        given = ", ".join(f"{name}={getattr(theirs, name)}" for name in other)
        raise ValueError(f"init_from={source} is of another size; set {given}.")
    if theirs.scheme != config.scheme and not {theirs.scheme, config.scheme} <= {*SINGLE}:
        raise ValueError(
            f"init_from={source} has scheme {theirs.scheme!r}, which cannot become "
            f"{config.scheme!r}; {' and '.join(SINGLE)} can become each other."
        )
    return pipeline


@torch.no_grad()
def initialize(
    model: CodecladeTransformer,
    source: CodecladePipeline | CodecladeTextPipeline,
    class_names: Sequence[str],
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
) -> list[str]:
    """Copy what fits from a trained pipeline into a fresh model, in place.

    Returns:
        Sentences that say which rows were kept.
    """
    # Tables whose rows have a meaning of their own come first; the rest goes by name and shape.
    theirs, ours = source.transformer.state_dict(), model.state_dict()
    said, done = [], set()
    if CLASSES in ours and CLASSES in theirs:
        said.append(_copy_classes(ours[CLASSES], theirs[CLASSES], class_names, source.labels))
        done.add(CLASSES)
    if model.config.scheme in SINGLE:
        said.append(_copy_tokens(model, source, ours, theirs, vq_model, cluster_map))
        done |= {*TABLES}
    elif not same_codebook(vq_model, source.vq_model):
        said.append("another codebook: rows of the same number are kept, whatever they stood for")

    # All other weights, where name and shape are those of the source.
    left = []
    for name, value in ours.items():
        if name in done or name.endswith("cluster_of"):
            continue
        if name in theirs and theirs[name].shape == value.shape:
            value.copy_(theirs[name])
        else:
            left.append(name)
    if left:
        said.append(f"other shapes, so these start anew: {', '.join(left)}")
    grids = source.transformer.config.grid_size, model.config.grid_size
    if grids[0] != grids[1]:
        said.append(f"grid {grids[0]} becomes {grids[1]}: rotary positions have no weights")
    return said


def _copy_classes(
    table: Tensor, source: Tensor, names: Sequence[str], labels: dict[str, list[int]]
) -> str:
    """Rows (classes + 1, D) by class name; the last row is the null class, where others start."""
    found = [class_row(name, labels) for name in names]
    null = len(source) - 1
    table.copy_(source[[*(null if index is None else index for index in found), null]])
    fresh = [name for name, index in zip(names, found, strict=True) if index is None]
    said = f"{len(names) - len(fresh)} of {len(names)} class rows kept by name"
    if fresh:
        more = ", ..." if len(fresh) > 5 else ""
        said += f"; {', '.join(fresh[:5])}{more} start as the null class"
    return said


def class_row(name: str, labels: dict[str, list[int]]) -> int | None:
    """The one class with this name or one of its synonyms; None: there is none, or several."""
    for wanted in (name, *name.split(",")):
        found = set(labels.get(wanted.strip().lower(), ()))
        if len(found) == 1:
            return found.pop()
    return None


def _copy_tokens(
    model: CodecladeTransformer,
    source: CodecladePipeline | CodecladeTextPipeline,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
) -> str:
    """Rows (V, D) of embedding and output layer, by the codes that they stand for."""
    if not same_codebook(vq_model, source.vq_model):
        return "another codebook: all rows of ids or clusters start anew"
    # An entry, old or new, is the set of ids it stands for: an id alone, or a cluster's members.
    codes = torch.arange(vq_model.codebook_size)
    old = source.cluster_map.mapping.cpu() if _clustered(source.transformer) else codes  # (N,)
    new = cluster_map.mapping.cpu() if _clustered(model) else codes  # (N,)
    sizes = new.bincount(minlength=model.config.vocab_size).unsqueeze(-1)  # (V, 1)
    # A new row is the mean over its ids of the old rows they had.
    for name in TABLES:
        rows = theirs[name][old].double()  # (N, D)
        total = torch.zeros(len(sizes), rows.shape[1], dtype=rows.dtype).index_add(0, new, rows)
        ours[name].copy_(total / sizes)
    if torch.equal(old, new):
        return f"all {len(sizes):,} rows of ids or clusters kept"
    # For the log: which new rows are an old one unchanged.
    pairs = torch.stack([old, new]).unique(dim=1)  # (2, n) which old entry goes into which new one
    whole = int((pairs[1].bincount(minlength=len(sizes)) == 1).sum())
    return (
        f"{whole:,} of {len(sizes):,} rows of ids or clusters kept from one old row, "
        f"{len(sizes) - whole:,} are means of several"
    )


def _clustered(model: CodecladeTransformer) -> bool:
    return model.scheme.predicts_clusters


def same_codebook(first: VQModel, second: VQModel) -> bool:
    """Whether two tokenizers have the same codes."""
    if first.codebook.shape != second.codebook.shape:
        return False
    gap = codebook_sketch(first.codebook) - codebook_sketch(second.codebook)
    return float(gap.abs().max()) <= SKETCH_TOLERANCE
