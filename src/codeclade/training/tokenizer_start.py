"""Start a tokenizer from weights that are there: published ones, or those of another run."""

from pathlib import Path

from safetensors.torch import load_file

from ..components.vq_model import VQModel
from ..data.hub_ids import is_hub_id
from .discriminator import PatchDiscriminator

DISCRIMINATOR = "discriminator.safetensors"  # in the folder of a run
SAME = ("block_out_channels", "layers_per_block", "latent_channels", "codebook_size")
SAME = (*SAME, "codebook_dim", "norm_num_groups")


def start_from(
    source: str, vq_model: VQModel, discriminator: PatchDiscriminator | None = None
) -> str:
    """Load weights in place and say in one sentence which were taken.

    A second codebook that the source does not have stays as it was drawn, and so does the
    discriminator, unless the source is a run's folder that holds one of the same size.

    Args:
        source: folder of a VQModel, folder that holds one as vq_model (a pipeline, a run, what
            `codeclade convert` wrote), or a Hub id of either.

    Raises:
        ValueError: no such weights, or weights of another architecture.
    """
    # The same fields must have the same values; a second codebook may be missing there.
    found = _load(source)
    for name in SAME:
        theirs, ours = (_plain(model.config[name]) for model in (found, vq_model))
        if theirs != ours:
            raise ValueError(
                f"init_from is {source}, whose {name} is {theirs}; the recipe's is {ours}."
            )
    details = found.detail_codebook_size
    if details not in (None, vq_model.detail_codebook_size):
        raise ValueError(
            f"init_from is {source}, whose second codebook has {details} codes; the recipe's "
            f"stage has {vq_model.detail_codebook_size or 'none'}."
        )
    weights = found.state_dict()
    fresh = [name for name in vq_model.state_dict() if name not in weights]
    vq_model.load_state_dict(vq_model.state_dict() | weights)
    said = f"init_from {source}: took all {len(weights)} tensors of its tokenizer"
    said += f"; {', '.join(fresh)} drawn anew" if fresh else ""

    # The discriminator of the run that made the weights, if there is one.
    path = next((f for f in _beside(source) if f.is_file()), None)
    if discriminator is None:
        return f"{said}."
    if path is None:
        return f"{said}; the discriminator drawn anew."
    state, wanted = load_file(path), discriminator.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ValueError(
            f"{path} is a discriminator of another size; set discriminator_channels and "
            "discriminator_layers as in its run, or move it away to draw a new one."
        )
    discriminator.load_state_dict(state)
    return f"{said}; the discriminator from {path}."


def _load(source: str) -> VQModel:
    folder = Path(source)
    if folder.is_file():
        raise ValueError(
            f"init_from is the file {source}; convert it first (`codeclade convert`) and name the "
            "folder."
        )
    # A folder is a tokenizer, or the pipeline or run that has one.
    if folder.is_dir():
        part = next(
            (d for d in (folder, folder / "vq_model") if (d / "config.json").exists()), None
        )
        if part is None:
            raise ValueError(f"init_from is {source}, which holds no vq_model/config.json.")
        return VQModel.from_pretrained(part)
    # A Hub id may be either, too.
    if not is_hub_id(source):
        raise ValueError(f"init_from is {source}, which is neither a folder nor a Hub id.")
    try:
        return VQModel.from_pretrained(source)
    except OSError:
        try:
            return VQModel.from_pretrained(source, subfolder="vq_model")
        except OSError as error:
            raise ValueError(f"init_from is {source}; the Hub has no tokenizer there.") from error


def _beside(source: str) -> list[Path]:
    """Where a run leaves its discriminator, seen from its folder or from vq_model in it."""
    folder = Path(source)
    return [folder / DISCRIMINATOR, folder.resolve().parent / DISCRIMINATOR]


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value
