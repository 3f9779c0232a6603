"""`codeclade cluster`: a codebook to a cluster map, with a report on request."""

import argparse

from .arguments import add_verb

CLUSTER_EXAMPLES = """codeclade cluster runs/tokenizer --clusters 512 --out runs/cluster_map
  codeclade cluster FoundationVision/LlamaGen/vq_ds16_c2i.pt --clusters 8192 --out masc-8192
  codeclade cluster 0485000.pt --table detail --clusters 2048 --out iar2-detail
  codeclade cluster deepseek-community/Janus-Pro-1B --method kmeans --clusters 8192 --out janus
  codeclade cluster runs/tokenizer/vq_model --clusters 512 --out runs/cluster_map \\
      --report report.html --images photos/"""


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
    parser.add_argument(
        "--method", default="masc", help="masc, dcpe, kmeans, balanced or random; default masc"
    )
    parser.add_argument(
        "--clusters", type=int, required=True, metavar="K", help="number of clusters"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cluster map")
    parser.add_argument(
        "--table", metavar="NAME", help="of several codebooks: semantic, detail or a tensor name"
    )
    parser.add_argument("--normalize", action="store_true", help="cluster rows of unit length")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws; default 0")
    parser.add_argument("--report", metavar="FILE", help="compare methods in a .html or .png page")
    parser.add_argument(
        "--report-clusters", type=int, nargs="+", metavar="K", help="default: K, N/2, N/4, N/8"
    )
    parser.add_argument("--images", metavar="DIR", help="photographs for the replacement test")
    parser.add_argument("--num-images", type=int, default=64, metavar="B", help="default 64")
    parser.add_argument("--codes", metavar="DIR", help="code shards for the entropy of clusters")


def _cluster(arguments: argparse.Namespace) -> None:
    if not arguments.report and (arguments.images or arguments.codes or arguments.report_clusters):
        raise ValueError("--images, --codes and --report-clusters are for --report FILE.")
    from ..checkpoints.cluster_maps import check_out, make_cluster_map, save_cluster_map
    from ..checkpoints.codebooks import load_codebook
    from ..clustering.codebook import check_clusters

    check_out(arguments.out)
    report = _prepared_report(arguments) if arguments.report else None
    codebook = load_codebook(arguments.source, arguments.table)
    for count in arguments.report_clusters or ():
        check_clusters(count, len(codebook))
    cluster_map, rows = make_cluster_map(
        codebook,
        arguments.method,
        arguments.clusters,
        normalize=arguments.normalize,
        seed=arguments.seed,
    )
    save_cluster_map(cluster_map, arguments.out, arguments.source)
    sizes = cluster_map.sizes
    print(
        f"{len(codebook):,} codes in {len(sizes):,} clusters of {sizes.min()} to {sizes.max()} "
        f"(median {int(sizes.median())}); saved in {arguments.out}"
    )
    if report:
        report(cluster_map, codebook, rows)
        print(f"report in {arguments.report}")


def _prepared_report(arguments: argparse.Namespace):
    """What writes the report of a cluster map; all that can be wrong is found before the work."""
    from ..evaluation.cluster_report import prepare_report
    from ..evaluation.comparison import Settings

    settings = Settings(
        source=arguments.source,
        method=arguments.method,
        table=arguments.table,
        normalized=arguments.normalize,
        counts=arguments.report_clusters,
        images=arguments.images,
        num_images=arguments.num_images,
        codes=arguments.codes,
        seed=arguments.seed,
    )
    return prepare_report(settings, arguments.report)
