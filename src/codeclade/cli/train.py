"""`codeclade train-tokenizer`, `encode`, `train-generator` and `train-refiner`."""

import argparse

from .arguments import add_verb, load_part, recipe_arguments


def add_train_tokenizer(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "train-tokenizer",
        _train_tokenizer,
        "train a VQ tokenizer on photographs",
        "codeclade train-tokenizer --recipe recipe.yaml --out runs/tokenizer data=photos/",
    )
    recipe_arguments(parser)


def _train_tokenizer(arguments: argparse.Namespace) -> None:
    from ..training.run import load_recipe
    from ..training.tokenizer import TokenizerRecipe, train_tokenizer

    recipe = load_recipe(TokenizerRecipe, "tokenizer", arguments.recipe, arguments.overrides)
    train_tokenizer(recipe, arguments.out)
    print(f"saved {arguments.out}/vq_model")


def add_encode(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "encode",
        _encode,
        "tokenize photographs into code shards",
        "codeclade encode --recipe recipe.yaml --tokenizer runs/vq_model --out codes data=photos/",
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="VQModel folder or Hub id"
    )
    recipe_arguments(parser)


def _encode(arguments: argparse.Namespace) -> None:
    import torch

    from ..components.vq_model import VQModel
    from ..training.encode import EncodeRecipe, encode
    from ..training.run import load_recipe

    recipe = load_recipe(EncodeRecipe, "encode", arguments.recipe, arguments.overrides)
    vq_model = load_part(VQModel, arguments.tokenizer, "vq_model").eval()
    encode(recipe, vq_model.to("cuda" if torch.cuda.is_available() else "cpu"), arguments.out)
    print(f"saved {arguments.out}")


def add_train_generator(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "train-generator",
        _train_generator,
        "train a generator on code shards and save the whole pipeline",
        "codeclade train-generator --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model "
        "--cluster-map runs/cluster_map --codes runs/codes --out runs/generator",
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="VQModel folder or Hub id"
    )
    parser.add_argument(
        "--cluster-map", metavar="DIR", help="ClusterMap folder or Hub id; none: predict ids"
    )
    parser.add_argument(
        "--codes", required=True, metavar="DIR", help="what encode wrote, or a Hub dataset"
    )
    recipe_arguments(parser)


def _train_generator(arguments: argparse.Namespace) -> None:
    from ..components.cluster_map import ClusterMap
    from ..components.vq_model import VQModel
    from ..training.generator import GeneratorRecipe, train_generator
    from ..training.run import load_recipe

    recipe = load_recipe(GeneratorRecipe, "generator", arguments.recipe, arguments.overrides)
    vq_model = load_part(VQModel, arguments.tokenizer, "vq_model").eval()
    cluster_map = load_part(ClusterMap, arguments.cluster_map, "cluster_map")
    train_generator(recipe, arguments.codes, vq_model, cluster_map, arguments.out)
    print(f"saved {arguments.out}/pipeline")


def add_train_refiner(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "train-refiner",
        _train_refiner,
        "train a network from clusters to ids on code shards",
        "codeclade train-refiner --recipe recipe.yaml --tokenizer runs/tokenizer/vq_model "
        "--cluster-map runs/cluster_map --codes runs/codes --out runs/refiner",
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="VQModel folder or Hub id"
    )
    parser.add_argument(
        "--cluster-map", required=True, metavar="DIR", help="ClusterMap folder or Hub id"
    )
    parser.add_argument(
        "--codes", required=True, metavar="DIR", help="what encode wrote, or a Hub dataset"
    )
    parser.add_argument(
        "--generator",
        metavar="DIR",
        help="generator folder whose hidden states come in too (MASC); none: clusters alone",
    )
    recipe_arguments(parser)


def _train_refiner(arguments: argparse.Namespace) -> None:
    from ..components.cluster_map import ClusterMap
    from ..components.transformer import CodecladeTransformer
    from ..components.vq_model import VQModel
    from ..training.refiner import RefinerRecipe, train_refiner
    from ..training.run import load_recipe

    recipe = load_recipe(RefinerRecipe, "refiner", arguments.recipe, arguments.overrides)
    vq_model = load_part(VQModel, arguments.tokenizer, "vq_model").eval()
    cluster_map = load_part(ClusterMap, arguments.cluster_map, "cluster_map")
    generator = load_part(CodecladeTransformer, arguments.generator, "transformer")
    train_refiner(recipe, arguments.codes, vq_model, cluster_map, arguments.out, generator)
    print(f"saved {arguments.out}/refiner")
