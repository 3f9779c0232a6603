"""The `codeclade` command. A verb imports what it needs when it runs, so `--help` is instant."""

import argparse
import os
import sys
from pathlib import Path

EXAMPLES = """examples:
  codeclade generate "golden retriever" --out dog.png --seed 7 --guidance-scale 2
  codeclade train-tokenizer --recipe recipe.yaml --out runs/tokenizer data=photos/
  codeclade encode --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model --out runs/codes
  codeclade cluster runs/tokenizer/vq_model --method masc --clusters 512 --out runs/cluster_map
  codeclade train-generator --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model \\
      --cluster-map runs/cluster_map --codes runs/codes --out runs/generator
  codeclade convert llamagen --vq vq_ds16_c2i.pt --gpt c2i_L_384.pt --image-size 384 \\
      --out llamagen-l-384
  codeclade push llamagen-l-384 user/llamagen-l-384 --dry-run
  codeclade demo --pipeline llamagen-l-384
"""

CLUSTER_EXAMPLES = """codeclade cluster runs/tokenizer --clusters 512 --out runs/cluster_map
  codeclade cluster FoundationVision/LlamaGen/vq_ds16_c2i.pt --clusters 8192 --out masc-8192
  codeclade cluster 0485000.pt --table detail --clusters 2048 --out iar2-detail
  codeclade cluster deepseek-community/Janus-Pro-1B --method kmeans --clusters 8192 --out janus
  codeclade cluster runs/tokenizer/vq_model --clusters 512 --out runs/cluster_map \\
      --report report.html --images photos/"""


PUSH_EXAMPLES = """codeclade push runs/generator/pipeline user/my-pipeline --dry-run
  codeclade push runs/generator/pipeline user/my-pipeline --space user/my-demo
  codeclade push runs/cluster_map user/masc-8192 --license mit
  codeclade push runs/codes user/my-codes --private"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; bad input is answered with one sentence and exit code 2."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        if os.environ.get("CODECLADE_TRACEBACK"):
            raise
        print(f"codeclade {arguments.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"codeclade {arguments.verb}: stopped.", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of all verbs."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="codeclade",
        description="Clustered codebooks for autoregressive image generation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"codeclade {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_generate(verbs)
    _add_cluster(verbs)
    _add_train_tokenizer(verbs)
    _add_encode(verbs)
    _add_train_generator(verbs)
    _add_train_refiner(verbs)
    _add_convert(verbs)
    _add_push(verbs)
    _add_demo(verbs)
    return parser


def _verb(verbs, name: str, run, help: str, example: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="FILE", help="YAML file; see hub_configs/")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the recipe's"
    )


def _add_generate(verbs) -> None:
    parser = _verb(
        verbs,
        "generate",
        _generate,
        "generate images of classes and save them",
        'codeclade generate "golden retriever" --out dog.png --seed 7 --guidance-scale 2',
    )
    parser.add_argument(
        "labels",
        nargs="*",
        metavar="CLASS",
        help="class names or ids; none: a sheet of eight classes",
    )
    parser.add_argument("--pipeline", help="folder or Hub id; default: the bundled pipeline")
    parser.add_argument("--out", default="image.png", metavar="FILE", help="default: image.png")
    parser.add_argument(
        "--images", type=int, metavar="N", help="images a class; default 1, sheet 8"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--guidance-scale", type=float, metavar="S", help="active above 1")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is arg-max")
    parser.add_argument("--top-k", type=int, metavar="K", help="0 keeps all")
    parser.add_argument("--top-p", type=float, metavar="P", help="1 keeps all")
    parser.add_argument("--scale", type=int, default=2, help="enlargement on sheets; default 2")
    parser.add_argument("--device", help="default: cuda where available, else cpu")


def _generate(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to save {out.name} in.")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--out {out} must end in .png, .jpg or .webp.")
    import torch

    from .evaluation.sheet import contact_sheet

    pipeline = _load_pipeline(arguments.pipeline, arguments.device)
    labels = [int(label) if label.isdecimal() else label for label in arguments.labels]
    count = arguments.images or (1 if labels else 8)
    label_ids = pipeline.get_label_ids(labels or _some_classes(pipeline))
    images = pipeline(
        label_ids,
        guidance_scale=arguments.guidance_scale,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images
    picture = images[0]
    if len(images) > 1:
        names = [pipeline.config.id2label.get(str(label), str(label)) for label in label_ids]
        rows = [(name, images[i * count : (i + 1) * count]) for i, name in enumerate(names)]
        picture = contact_sheet(rows, arguments.scale)
    picture.save(out)
    print(f"saved {out} ({picture.width}x{picture.height})")


def _load_pipeline(source: str | None, device: str | None):
    """The pipeline of a folder or Hub id, or the bundled one, on the best device there is."""
    import torch

    from . import CodecladePipeline, bundled

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return CodecladePipeline.from_pretrained(source or bundled(), dtype=dtype).to(device)


def _some_classes(pipeline) -> list[int]:
    """Eight classes, evenly spread."""
    known = pipeline.transformer.config.num_classes
    return list(range(0, known, max(1, known // 8)))[:8]


def _add_cluster(verbs) -> None:
    parser = _verb(
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
    from .clustering.codebook import check_clusters
    from .hub.cluster_maps import check_out, make_cluster_map, save
    from .hub.codebooks import load_codebook

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
    save(cluster_map, arguments.out)
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
    from .evaluation.cluster_report import prepare_report
    from .evaluation.comparison import Settings

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


def _add_train_tokenizer(verbs) -> None:
    parser = _verb(
        verbs,
        "train-tokenizer",
        _train_tokenizer,
        "train a VQ tokenizer on photographs",
        "codeclade train-tokenizer --recipe recipe.yaml --out runs/tokenizer data=photos/",
    )
    _recipe_arguments(parser)


def _train_tokenizer(arguments: argparse.Namespace) -> None:
    from .training.run import load_recipe
    from .training.tokenizer import TokenizerRecipe, train_tokenizer

    recipe = load_recipe(TokenizerRecipe, "tokenizer", arguments.recipe, arguments.overrides)
    train_tokenizer(recipe, arguments.out)


def _add_encode(verbs) -> None:
    parser = _verb(
        verbs,
        "encode",
        _encode,
        "tokenize photographs into code shards",
        "codeclade encode --recipe recipe.yaml --tokenizer runs/vq_model --out codes data=photos/",
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="VQModel folder")
    _recipe_arguments(parser)


def _encode(arguments: argparse.Namespace) -> None:
    import torch

    from .components.vq_model import VQModel
    from .training.codes import EncodeRecipe, encode
    from .training.run import load_recipe

    recipe = load_recipe(EncodeRecipe, "encode", arguments.recipe, arguments.overrides)
    vq_model = VQModel.from_pretrained(arguments.tokenizer).eval()
    encode(recipe, vq_model.to("cuda" if torch.cuda.is_available() else "cpu"), arguments.out)


def _add_train_generator(verbs) -> None:
    parser = _verb(
        verbs,
        "train-generator",
        _train_generator,
        "train a generator on code shards and save the whole pipeline",
        "codeclade train-generator --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model "
        "--cluster-map runs/cluster_map --codes runs/codes --out runs/generator",
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="VQModel folder")
    parser.add_argument("--cluster-map", metavar="DIR", help="ClusterMap folder; none: predict ids")
    parser.add_argument("--codes", required=True, metavar="DIR", help="what encode wrote")
    _recipe_arguments(parser)


def _train_generator(arguments: argparse.Namespace) -> None:
    from .components.cluster_map import ClusterMap
    from .components.vq_model import VQModel
    from .training.generator import GeneratorRecipe, train_generator
    from .training.run import load_recipe

    recipe = load_recipe(GeneratorRecipe, "generator", arguments.recipe, arguments.overrides)
    vq_model = VQModel.from_pretrained(arguments.tokenizer).eval()
    cluster_map = (
        ClusterMap.from_pretrained(arguments.cluster_map) if arguments.cluster_map else None
    )
    train_generator(recipe, arguments.codes, vq_model, cluster_map, arguments.out)


def _add_train_refiner(verbs) -> None:
    parser = _verb(
        verbs,
        "train-refiner",
        _train_refiner,
        "train a network from clusters to ids on code shards",
        "codeclade train-refiner --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model "
        "--cluster-map runs/cluster_map --codes runs/codes --out runs/refiner",
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="VQModel folder")
    parser.add_argument("--cluster-map", required=True, metavar="DIR", help="ClusterMap folder")
    parser.add_argument("--codes", required=True, metavar="DIR", help="what encode wrote")
    parser.add_argument(
        "--generator",
        metavar="DIR",
        help="generator folder whose hidden states come in too (MASC); none: clusters alone",
    )
    _recipe_arguments(parser)


def _train_refiner(arguments: argparse.Namespace) -> None:
    from .components.cluster_map import ClusterMap
    from .components.transformer import CodecladeTransformer
    from .components.vq_model import VQModel
    from .training.refiner import RefinerRecipe, train_refiner
    from .training.run import load_recipe

    recipe = load_recipe(RefinerRecipe, "refiner", arguments.recipe, arguments.overrides)
    vq_model = VQModel.from_pretrained(arguments.tokenizer).eval()
    cluster_map = ClusterMap.from_pretrained(arguments.cluster_map)
    generator = (
        CodecladeTransformer.from_pretrained(arguments.generator) if arguments.generator else None
    )
    train_refiner(recipe, arguments.codes, vq_model, cluster_map, arguments.out, generator)


def _add_convert(verbs) -> None:
    parser = _verb(
        verbs,
        "convert",
        _convert,
        "turn published checkpoint files into a pipeline folder, and back",
        "codeclade convert llamagen --vq vq_ds16_c2i.pt --gpt c2i_L_384.pt --image-size 384 "
        "--out llamagen-l-384",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, help in (
        ("llamagen", "LlamaGen, class- or text-conditional"),
        ("dcpe", "DCPE: a generator over clusters and its cluster index"),
        ("iar", "IAR: a generator over a re-ordered codebook"),
        ("iar2", "IAR2: a generator over pairs of codes"),
    ):
        _add_convert_kind(kinds.add_parser(kind, help=help, description=help + "."), kind)
    back = kinds.add_parser("to-llamagen", help="a pipeline folder, to the published key names")
    back.add_argument("pipeline", metavar="PIPELINE", help="pipeline folder")
    back.add_argument("--pt", action="store_true", help="torch files instead of .safetensors")
    for kind in kinds.choices.values():
        kind.add_argument("--out", required=True, metavar="DIR", help="new folder")
        kind.add_argument("--overwrite", action="store_true", help="replace that folder")


def _add_convert_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("--vq", required=True, metavar="FILE", help="tokenizer")
    parser.add_argument("--gpt", metavar="FILE", help="generator; none: the tokenizer alone")
    if kind == "dcpe":
        parser.add_argument("--idx-to-cluster", metavar="FILE", help="cluster of every id")
        parser.add_argument("--refiner", metavar="FILE", help="refine net; none: uniform members")
    if kind == "iar":
        parser.add_argument(
            "--mapping",
            metavar="FILE",
            help="old id to new id, where --vq is LlamaGen's tokenizer; none: --vq is re-ordered",
        )
    size = {"llamagen": None, "dcpe": 256, "iar": 384, "iar2": 384}[kind]
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        default=size,
        help="side the generator was trained for; the files do not say"
        + (f"; default {size}" if size else ", so give it with --gpt"),
    )
    parser.add_argument(
        "--heads", type=int, metavar="H", help="attention heads, for a width nobody published"
    )


def _convert(arguments: argparse.Namespace) -> None:
    from .hub import published
    from .hub.folders import new_folder

    given = vars(arguments)
    if arguments.kind == "to-llamagen":
        with new_folder(arguments.out, arguments.overwrite) as folder:
            names = published.to_published(arguments.pipeline, folder, arguments.pt)
        print(f"saved {', '.join(names)} in {arguments.out}")
        return
    names = ("vq", "gpt", "idx_to_cluster", "refiner", "mapping", "image_size", "heads")
    files = {name: given[name] for name in names if name in given}
    published.write(arguments.out, arguments.overwrite, arguments.kind, files)
    print(f"saved {arguments.out}; load it with from_pretrained")


def _add_push(verbs) -> None:
    parser = _verb(
        verbs,
        "push",
        _push,
        "publish a pipeline, component or code shards on the Hugging Face Hub",
        PUSH_EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", help="what was saved, converted or trained")
    parser.add_argument("repository", metavar="USER/NAME", help="created if it is not there")
    parser.add_argument("--private", action="store_true", help="where the repository is new")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--space", metavar="USER/NAME", help="also a Gradio Space that shows it")
    parser.add_argument("--license", metavar="NAME", help="of the weights, for the card: mit, ...")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--no-samples", action="store_true", help="draw no sample sheet")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, send nothing")


def _push(arguments: argparse.Namespace) -> None:
    from .hub.push import check_repo_id, prepare, publish

    name, space = arguments.repository, arguments.space
    if space:
        check_repo_id(space)
    repository = prepare(arguments.folder, name, arguments.license)
    wanted = repository.class_name == "CodecladePipeline" and not arguments.no_samples
    draw = wanted and "samples.png" not in repository.files
    if draw and not arguments.dry_run:
        extra = {"samples.png": _sample_sheet(arguments.folder)}
        repository = prepare(arguments.folder, name, arguments.license, extra)
    if space and repository.kind != "pipeline":
        raise ValueError(f"--space shows a pipeline, but {arguments.folder} is none.")
    sizes = repository.sizes()
    if arguments.dry_run:
        print("\n".join(f"{size:>15,}  {file}" for file, size in sizes.items()))
        drawn = "; samples.png will be drawn" if draw else ""
        print(f"{sum(sizes.values()):>15,}  in {len(sizes)} files for {name}{drawn}")
    if repository.left_out:
        print(f"left out, as no repository file: {', '.join(repository.left_out)}")
    if arguments.dry_run:
        return
    done = publish(repository, name, arguments.private, arguments.create_pr, arguments.message)
    gone = f", {len(done.deleted)} stale files deleted" if done.deleted else ""
    print(f"published {done.url} ({len(sizes)} files, {sum(sizes.values()):,} bytes{gone})")
    if space:
        from .hub.space import push_space

        print(f"published {push_space(space, name, arguments.private).url}")


def _sample_sheet(folder: str) -> bytes:
    """PNG file of four images of each of eight classes, default settings, seed 0."""
    import io

    import torch

    from .evaluation.sheet import contact_sheet

    pipeline = _load_pipeline(folder, None)
    pipeline.set_progress_bar_config(desc="samples")
    labels = _some_classes(pipeline)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(labels, num_images_per_prompt=4, generator=generator).images
    names = [pipeline.config.id2label.get(str(i), str(i)).split(",")[0] for i in labels]
    rows = [(name, images[4 * i : 4 * i + 4]) for i, name in enumerate(names)]
    scale = max(1, 128 // images[0].width)
    contact_sheet(rows, scale).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def _add_demo(verbs) -> None:
    parser = _verb(
        verbs,
        "demo",
        _demo,
        "start the Gradio app of spaces/ on this machine",
        "codeclade demo --pipeline runs/generator/pipeline --port 7861",
    )
    parser.add_argument("--pipeline", help="folder or Hub id; default: the bundled pipeline")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")


def _demo(arguments: argparse.Namespace) -> None:
    import importlib.util
    import runpy

    from .hub.space import space_folder

    if not importlib.util.find_spec("gradio"):
        raise ImportError("the demo needs gradio; pip install 'codeclade[demo]'.")
    if arguments.pipeline:
        os.environ["CODECLADE_PIPELINE"] = arguments.pipeline
    os.environ["GRADIO_SERVER_NAME"] = arguments.host
    os.environ["GRADIO_SERVER_PORT"] = str(arguments.port)
    runpy.run_path(str(space_folder() / "app.py"), run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
