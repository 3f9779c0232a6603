"""The page of `codeclade cluster --report`: tree, sizes, tables, images, each with protocol."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..checkpoints.codebooks import load_tokenizer
from ..components.cluster_map import ClusterMap
from ..components.vq_model import VQModel
from ..data.codes import Codes
from ..data.images import photographs
from ..data.pixels import to_image
from ..data.sheets import contact_sheet
from . import figures
from .comparison import DRAWS, Comparison, Settings, Tokenizer, compare
from .page import Page, Table, check_ending

SMALLEST_SIDE = 16  # pixels that the feature network and SSIM's window need
NONE = "·"  # a cell without a number
NAMES = {
    "masc": "MASC",
    "dcpe": "DCPE",
    "kmeans": "k-means",
    "balanced": "Balanced k-means",
    "random": "Random partition",
}


def prepare_report(
    settings: Settings, path: str | Path
) -> Callable[[ClusterMap, Tensor, np.ndarray], None]:
    """Read all inputs; what comes back takes (cluster map, codebook, rows) and writes the page.

    Raises:
        ValueError: a bad ending or folder, or images without a tokenizer to decode them.
    """
    path = Path(path)
    check_ending(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to save {path.name} in.")
    # Tokenizer, photographs and codes are read now, so that the map is not made in vain.
    vq_model = pixels = None
    if settings.images:
        vq_model = load_tokenizer(settings.source)
        own = isinstance(vq_model, VQModel)
        side = vq_model.config.sample_size if own else vq_model.sample_size
        if side < SMALLEST_SIDE:
            raise ValueError(
                f"{settings.source} is for images of {side}x{side} pixels, and the replacement "
                f"test needs {SMALLEST_SIDE}x{SMALLEST_SIDE}; leave --images out."
            )
        pixels = photographs(settings.images, settings.num_images, side)
    shards = Codes(settings.codes) if settings.codes else None
    if shards is not None and vq_model is not None:
        shards.check_tokenizer(vq_model)

    def write(cluster_map: ClusterMap, codebook: Tensor, rows: np.ndarray) -> None:
        result = compare(settings, cluster_map, codebook, rows, vq_model, pixels, shards)
        write_report(result, path, vq_model)

    return write


def write_report(result: Comparison, path: Path, vq_model: Tokenizer | None = None) -> None:
    """Write one self-contained .html or .png file, under a temporary name first."""
    # Head: what was clustered, and the numbers to see first.
    settings, (codes, width) = result.settings, result.rows.shape
    kind = "rows of unit length" if settings.normalized else "stored rows"
    page = Page(
        title=f"{NAMES[settings.method]}: {codes:,} codes in {result.clusters:,} clusters",
        subtitle=f"{settings.source} · {codes:,} codes of width {width} · {kind} · "
        f"seed {settings.seed}",
        summary=_summary(result),
    )

    # The map itself: its tree and its sizes.
    tiled = None if result.level == 1 else vq_model  # a detail code alone cannot be decoded
    if codes > 1:
        page.add(
            "The top of the tree",
            "Average linkage of the codebook; every leaf is a branch, its number of codes below it."
            + (" The tiles show the branch's middle code among other codes." if tiled else ""),
            picture=figures.dendrogram(result, tiled),
        )
    page.add(
        f"Cluster sizes at K = {result.clusters:,}",
        "Number of clusters of every size, method by method. No size is the better one by itself: "
        "the nearer to the dotted mean, the more evenly the clusters share the codes.",
        picture=figures.sizes(result),
    )

    # Beside other methods, by the codebook alone.
    page.add(
        "Quality over K",
        "Distance inside clusters against a random partition of the same sizes: lower is better."
        + (" Replacement test, PSNR and SSIM: higher is better." if result.image_count else ""),
        picture=figures.curves(result),
    )
    page.add("The partitions", _partition_protocol(result), table=_partition_table(result))

    # Beside other methods, by images.
    if result.image_count:
        page.add("Semantic replacement test", _image_protocol(result), table=_image_table(result))
        page.add(
            f"The same images, codes replaced inside their clusters, K = {result.clusters:,}",
            f"The first {len(result.photographs)} of {result.image_count} photographs.",
            picture=_sheet(result),
            pixelated=True,
        )
    page.write(path)


def _summary(result: Comparison) -> list[tuple[str, str]]:
    # Of the map itself, what can be said without photographs; then what needs them.
    main = result.at(result.clusters)[0].numbers
    numbers = [
        (
            "sizes: min · median · max",
            f"{main['smallest']} · {main['median']:g} · {main['largest']}",
        ),
        ("codes alone", f"{main['alone']:,}"),
        ("distance / random", f"{main['against_random']:.2f}"),
    ]
    if result.cophenetic is not None:
        numbers.append(("cophenetic correlation", f"{result.cophenetic:.3f}"))
    if "entropy" in main:
        numbers.append(("entropy of a token", f"{main['entropy']:.2f} bits"))
    if result.image_count:
        loss = result.reconstruction_numbers["psnr"] - main["photograph_psnr"]
        numbers.append(("PSNR lost", f"{loss:z.2f} dB"))
    return numbers


def _partition_protocol(result: Comparison) -> str:
    text = (
        "Distance: mean Euclidean distance from a code to up to 64 other members of its cluster, "
        "over all codes, where a code that is alone counts as 0; / random: divided by the same in "
        "a random partition of the same cluster sizes (one draw, seed "
        f"{result.settings.seed}). ↓: lower is better."
    )
    if "unit_against_random" in result.partitions[0].numbers:
        text += (
            " balanced always clusters rows of unit length, the others these rows as they are; "
            "/ random, unit: the same, of all methods, between rows of unit length."
        )
    if result.starts:
        text += f" k-means: best of {result.starts} start{'s' if result.starts > 1 else ''}."
    if result.cophenetic is not None:
        text += " Cophenetic correlation: over all pairs of codes, or 200,000 drawn at random."
    if result.tokens:
        text += (
            f" Entropy: of the clusters of {result.tokens}, in bits, and its share of log2 K; "
            "ids themselves would be K = N."
        )
    return " ".join([text, *dict.fromkeys(result.notes)])


def _partition_table(result: Comparison) -> Table:
    head = ["K", "method", "smallest", "median", "largest", "alone"]
    # Columns that only some reports have: rows of unit length, entropies of counted codes.
    head += ["distance ↓", "/ random ↓"]
    entropy, unit = bool(result.tokens), "unit_against_random" in result.partitions[0].numbers
    head += ["/ random, unit ↓"] if unit else []
    rows = []
    for part in result.partitions:
        n = part.numbers
        row = [f"{part.clusters:,}", part.method, f"{n['smallest']:,}", f"{n['median']:g}"]
        row += [f"{n['largest']:,}", f"{n['alone']:,}", _number(n["distance"], 3)]
        row += [_number(n["against_random"], 3)]
        row += [_number(n["unit_against_random"], 3)] if unit else []
        if entropy:
            share = n["entropy"] / np.log2(part.clusters) if part.clusters > 1 else float("nan")
            row += [_number(n["entropy"], 2), _number(100 * share, 1)]
        rows.append(row)
    head += ["entropy, bits", "% of log2 K"] if entropy else []
    return Table(head, rows, (f"{result.clusters:,}", result.settings.method))


def _image_protocol(result: Comparison) -> str:
    side, count = result.photographs.shape[-1], result.image_count
    return (
        f"{count} photograph{'s' if count > 1 else ''} of {result.settings.images}, "
        f"{side}x{side}, center "
        f"crops; {DRAWS} random draws of members (first seed {result.settings.seed}); means over "
        f"draws and images. PSNR against {result.settings.method}: mean difference over the same "
        "images ± its standard error, above 0 where the other method is the better one; below two "
        "of them the methods cannot be told apart here. ↑: higher is better, ↓: lower is. "
        "PSNR in dB over [-1, 1]; SSIM with the Gaussian window of 11; "
        "features: mean squared distance of normalized EfficientNet-Lite0 features "
        "(strides 2 to 16). First against the photographs, then against the tokenizer's own "
        "reconstruction of them, which K = N would reach."
    )


def _image_table(result: Comparison) -> Table:
    metrics = [("psnr", "PSNR ↑", 2), ("ssim", "SSIM ↑", 3), ("features", "features ↓", 3)]
    metrics = [m for m in metrics if m[0] in result.reconstruction_numbers]
    targets = ("photograph", "reconstruction")
    head = ["K", "method", *(name for _ in targets for _, name, _ in metrics)]
    over = [("", 2), *((f"to the {target}s", len(metrics)) for target in targets), ("", 1)]
    head.append(f"PSNR against {result.settings.method}")
    # The first row is what any replacement is measured against: none at all.
    best = [_number(result.reconstruction_numbers[key], digits) for key, _, digits in metrics]
    rows = [[NONE, "no replacement", *best, *[NONE] * (len(metrics) + 1)]]
    for part in result.partitions:
        values = [
            _number(part.numbers[f"{target}_{key}"], digits)
            for target in targets
            for key, _, digits in metrics
        ]
        # Differences to the method of the map, with the error of the mean difference.
        gap, error = part.numbers["psnr_gap"], part.numbers["psnr_gap_error"]
        gap = f"{gap:+z.2f} ± {_number(error, 2)}" if np.isfinite(gap) else NONE
        own = part is result.at(part.clusters)[0]
        rows.append([f"{part.clusters:,}", part.method, *values, NONE if own else gap])
    return Table(head, rows, (f"{result.clusters:,}", result.settings.method), over)


def _number(value: float, digits: int) -> str:
    if np.isnan(value):
        return NONE
    return "∞" if np.isinf(value) else f"{value:.{digits}f}"


def _sheet(result: Comparison):
    rows = {"photograph": result.photographs, "no replacement": result.reconstructions}
    rows |= {part.method: part.images for part in result.at(result.clusters)}
    side = result.photographs.shape[-1]
    return contact_sheet(
        [(name, [to_image(image) for image in images]) for name, images in rows.items()],
        scale=max(1, 216 // side),
    )
