"""`codeclade cluster`: a codebook to a cluster map, with a report on request."""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from .arguments import add_verb, recipe_arguments, say_size

CLUSTER_EXAMPLES = """codeclade cluster runs/tokenizer --clusters 512 --out runs/cluster_map
  codeclade cluster FoundationVision/LlamaGen/vq_ds16_c2i.pt --clusters 8192 --out masc-8192
  codeclade cluster vq_ds16_c2i.pt --recipe ctf --out ctf-512
  codeclade cluster 0485000.pt --table detail --clusters 2048 --out iar2-detail
  codeclade cluster deepseek-community/Janus-Pro-1B --method kmeans --clusters 8192 --out janus \\
      init=k-means++ n_init=3
  codeclade cluster runs/tokenizer/vq_model --clusters 512 --out runs/cluster_map \\
      --report report.html --images photos/"""

# Fields of the methods that are no settings of their own: `clusters`, `seed` and `normalize` are.
OUTSIDE = ("n_clusters", "rate", "random_state", "normalize")


@dataclass
class ClusterRecipe:
    """Settings of `codeclade cluster`; those of the method itself come on top."""

    clusters: int  # number of clusters K
    method: str = "masc"  # masc, dcpe, kmeans, balanced or random
    normalize: bool = False  # cluster rows of unit length, as tokenizers with a cosine search do
    seed: int = 0  # of all random draws
    weights: str = "none"  # usage: codes count as often as they occur in --codes, plus once

    def __post_init__(self):
        if self.weights not in ("none", "usage"):
            raise ValueError(f"weights is {self.weights!r}; it must be none or usage.")
        if self.weights == "usage" and self.method not in ("masc", "dcpe"):
            raise ValueError(f"weights=usage is of methods masc and dcpe, not {self.method!r}.")


def add_cluster(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "cluster",
        _cluster,
        "cluster a codebook and save the cluster map",
        CLUSTER_EXAMPLES,
    )
    parser.add_argument(
        "source",
        help=".npy, .safetensors, a .pt of LlamaGen, IAR or IAR2, the folder or Hub id of any VQ "
        "model (codeclade, diffusers, taming, Janus, Emu3, Chameleon); owner/name/file on the Hub",
    )
    # Flags that a recipe sets too have no default here: None tells a flag that was not given from
    # one given with the default's value. The defaults stand in ClusterRecipe.
    parser.add_argument("--method", help="masc, dcpe, kmeans, balanced or random; default masc")
    parser.add_argument("--clusters", type=int, metavar="K", help="number of clusters")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cluster map")
    parser.add_argument(
        "--table", metavar="NAME", help="of several codebooks: semantic, detail or a tensor name"
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="cluster rows of unit length",
    )
    parser.add_argument("--seed", type=int, help="of all random draws; default 0")
    parser.add_argument("--report", metavar="FILE", help="compare methods in a .html or .png page")
    parser.add_argument(
        "--report-clusters", type=int, nargs="+", metavar="K", help="default: K, N/2, N/4, N/8"
    )
    parser.add_argument("--images", metavar="DIR", help="photographs for the replacement test")
    parser.add_argument("--num-images", type=int, default=64, metavar="B", help="default 64")
    parser.add_argument(
        "--codes", metavar="DIR", help="code shards, for weights=usage and the report"
    )
    recipe_arguments(parser, "cluster")


def _cluster(arguments: argparse.Namespace) -> None:
    # Everything that can be wrong is found before the work, which takes minutes for large K.
    recipe, options = read_recipe(arguments)
    by_usage = recipe.weights == "usage"
    if by_usage and not arguments.codes:
        raise ValueError("weights=usage needs --codes DIR, whose codes are counted.")
    codes = arguments.codes and not by_usage
    if not arguments.report and (arguments.images or codes or arguments.report_clusters):
        raise ValueError("--images, --codes and --report-clusters are for --report FILE.")
    from ..checkpoints.cluster_maps import check_out, make_cluster_map, save_cluster_map
    from ..checkpoints.codebooks import load_codebook
    from ..clustering.codebook import check_clusters

    # What is asked for is possible: known before a codebook is read or downloaded.
    replaced = check_out(arguments.out)
    report = _prepared_report(arguments, recipe, options) if arguments.report else None
    codebook = load_codebook(arguments.source, arguments.table)
    for count in arguments.report_clusters or ():
        check_clusters(count, len(codebook))
    if replaced:
        print(f"this replaces {replaced}", file=sys.stderr)

    # Codes that occur often may count more.
    weights = usage(arguments.codes, codebook, arguments.table) if by_usage else None

    # The map is saved before the report, which takes longer and can fail for lack of packages.
    cluster_map, rows = make_cluster_map(
        codebook,
        recipe.method,
        recipe.clusters,
        normalize=recipe.normalize,
        seed=recipe.seed,
        options=options,
        weights=weights,
    )
    save_cluster_map(cluster_map, arguments.out, arguments.source)
    sizes = cluster_map.sizes
    print(
        f"{len(codebook):,} codes in {len(sizes):,} clusters of {sizes.min()} to {sizes.max()} "
        f"(median {sizes.double().quantile(0.5):g}); saved in {arguments.out}"
    )
    if report:
        report(cluster_map, codebook, rows)
        print(f"report in {arguments.report}")


def usage(folder: str, codebook, table: str | None = None):
    """Weights (N,) of codes: how often each occurs in code shards, plus once.

    The one more gives codes that never occur a place in the tree, as the lightest of all.

    Args:
        folder: code shards, or a folder of splits, of which "train" is taken.
        codebook: (N, d) rows that are clustered.
        table: which table of the tokenizer they are; "detail" for the second one.

    Raises:
        ValueError: shards of another codebook.
    """
    from ..data.codes import HEADER, Codes, codes_folder

    place = codes_folder(folder)
    codes = Codes(place if (place / HEADER).is_file() else place / "train")
    counts = codes.counts()
    if table == "detail" and len(counts) < 2:
        raise ValueError(f"{folder} has no detail codes to count.")
    own = counts[1] if table == "detail" else counts[0]
    if len(own) != len(codebook) or (table != "detail" and not codes.made_with(codebook)):
        raise ValueError(
            f"{folder} holds codes of another codebook than that of {len(codebook)} rows."
        )
    return own.double().numpy() + 1


def read_recipe(arguments: argparse.Namespace) -> tuple[ClusterRecipe, dict[str, Any]]:
    """The recipe's settings, then `key=value`, then flags; and the method's own settings.

    Raises:
        ValueError: an unknown method or setting, a value of the wrong type, or no clusters.
    """
    from ..clustering import METHODS
    from ..clustering.codebook import choose
    from ..data.recipes import check_given, field_types, recipe_values, typed

    given = recipe_values("cluster", arguments.recipe, arguments.overrides, arguments.size)
    # Flags become text and pass through the same check of types as key=value, so a wrong value
    # gives one and the same sentence however it was given.
    for name in ("clusters", "method", "normalize", "seed"):
        if getattr(arguments, name) is not None:
            given[name] = str(getattr(arguments, name))
    check_given("cluster", given, ["clusters"], arguments.recipe)
    # Which settings there are depends on the method.
    own = field_types(ClusterRecipe)
    method = METHODS[choose("method", given.get("method", ClusterRecipe.method), METHODS)]
    others = {key: kind for key, kind in field_types(method).items() if key not in OUTSIDE}
    values = typed("cluster", given, own | others)
    say_size(arguments.recipe, arguments.size)
    options = {key: value for key, value in values.items() if key not in own}
    return ClusterRecipe(**{key: values[key] for key in own if key in values}), options


def _prepared_report(arguments: argparse.Namespace, recipe: ClusterRecipe, options: dict[str, Any]):
    """What writes the report of a cluster map; all that can be wrong is found before the work."""
    from ..evaluation.cluster_report import prepare_report
    from ..evaluation.comparison import Settings

    settings = Settings(
        source=arguments.source,
        method=recipe.method,
        table=arguments.table,
        normalized=recipe.normalize,
        options=options,
        counts=arguments.report_clusters,
        images=arguments.images,
        num_images=arguments.num_images,
        codes=arguments.codes,
        seed=recipe.seed,
    )
    return prepare_report(settings, arguments.report)
