"""Real components at tiny size, with random weights everywhere."""

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from codeclade import (
    ClusterMap,
    CodecladeConfig,
    CodecladePipeline,
    CodecladeTextPipeline,
    CodecladeTransformer,
    Refiner,
    RefinerConfig,
    VQModel,
)

NAMES = {
    0: "goldfish, Carassius auratus",
    1: "tabby, tabby cat",
    2: "golden retriever",
    3: "crane",  # the bird
    4: "crane",  # the machine
}
SCHEMES = ("token", "cluster", "cluster_token", "semantic_detail")
COARSE = {"cluster_token": 12, "semantic_detail": 32}  # first-stage vocabulary
DETAILS = 24
REFINERS = {  # fields of the three methods' refiners
    "DCPE": {},
    "CTF": {
        "causal": False,
        "mask_to_members": True,
        "null_class": True,
        "sampling_temperature": 1.0,
    },
    "MASC": {
        "causal": False,
        "mask_to_members": True,
        "num_classes": 0,
        "context_dim": 32,
        "sampling_temperature": 1.0,
    },
}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "dog", "house", "on", "the", "beach"]
TEXT_DIM, PREFIX = 16, 8  # width of text features, positions of a caption


def by_smallest_member(labels) -> torch.Tensor:
    """The same partition with clusters numbered in order of their smallest member."""
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(int(label), len(number)) for label in labels])


def build_vq(seed: int = 0, **changes) -> VQModel:
    fields = {
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "latent_channels": 8,
        "codebook_size": 32,
        "codebook_dim": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQModel(**(fields | changes)).eval()


def build_map(codebook: torch.Tensor, clusters: int = 12) -> ClusterMap:
    """Average linkage by scipy, tree included."""
    tree = linkage(codebook.detach().double().numpy(), "average")
    labels = by_smallest_member(fcluster(tree, clusters, "maxclust"))
    return ClusterMap.from_labels(
        labels, codebook, children=tree[:, :2].astype(int), heights=tree[:, 2]
    )


def build_transformer(seed: int = 0, **changes) -> CodecladeTransformer:
    """Random weights everywhere: the zero-initialized head would make every test pass."""
    fields = {
        "vocab_size": 32,
        "grid_size": 4,
        "num_classes": 5,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CodecladeTransformer(CodecladeConfig(**(fields | changes)))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, nn.RMSNorm):
                nn.init.normal_(module.weight, mean=1.0, std=0.1)
    return model.eval()


def build_refiner(seed: int = 0, **changes) -> Refiner:
    """12 clusters to 32 ids; random weights everywhere, as in `build_transformer`."""
    fields = {
        "codebook_size": 32,
        "num_clusters": 12,
        "grid_size": 4,
        "num_classes": 5,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Refiner(RefinerConfig(**(fields | changes)))
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model.eval()


def build_pipeline(scheme: str = "cluster", seed: int = 0, **settings) -> CodecladePipeline:
    vq_model = build_vq(seed)
    cluster_map = build_map(vq_model.codebook) if scheme == "cluster" else None
    vocab_size = cluster_map.num_clusters if cluster_map is not None else vq_model.codebook_size
    transformer = build_transformer(seed, scheme=scheme, vocab_size=vocab_size)
    pipe = CodecladePipeline(vq_model, transformer, cluster_map, **({"id2label": NAMES} | settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_parts(
    scheme: str,
    seed: int = 0,
    grid_size: int = 4,
    text: bool = False,
    vq: dict | None = None,
    **changes,
) -> dict:
    """Tokenizer, cluster map and generator of a scheme: 32 codes in 12 clusters, or 32 semantic and
    24 detail codes; conditioned on 5 classes or on captions.

    Fields of the tokenizer that should differ are in `vq`, those of the generator are `changes`.
    """
    pairs = scheme == "semantic_detail"
    vq_model = build_vq(seed, detail_codebook_size=DETAILS if pairs else None, **(vq or {}))
    cluster_map = None if pairs else build_map(vq_model.codebook)
    captions = {"num_classes": 0, "text_dim": TEXT_DIM, "prefix_length": PREFIX}
    transformer = build_transformer(
        seed,
        scheme=scheme,
        vocab_size={"cluster": 12, "semantic_detail": DETAILS}.get(scheme, 32),
        coarse_vocab_size=COARSE.get(scheme),
        grid_size=grid_size,
        **(captions if text else {}),
        **changes,
    )
    if text:
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(transformer.prefix.null, generator=generator)
    if scheme == "cluster_token":
        transformer.use_clusters(cluster_map.mapping)
    return {"vq_model": vq_model, "transformer": transformer, "cluster_map": cluster_map}


def build_scheme(
    scheme: str,
    seed: int = 0,
    grid_size: int = 4,
    refiner: Refiner | None = None,
    **settings,
) -> CodecladePipeline:
    """4x4 tokens of 4x4 pixels, five classes."""
    parts = build_parts(scheme, seed, grid_size)
    pipe = CodecladePipeline(**parts, refiner=refiner, **({"id2label": NAMES} | settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, and an end token as T5 has it."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_t5(width: int = TEXT_DIM) -> T5EncoderModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
        return T5EncoderModel(config).eval()


def build_dinov2(folder) -> Dinov2Model:
    """A seeded Dinov2 of 24 features, saved in a folder."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, patch_size=56,
        image_size=224,
    )  # fmt: skip
    model = Dinov2Model(config).eval()
    model.save_pretrained(folder)
    return model


def build_clip(folder, max_length: int = 16) -> CLIPModel:
    """A random CLIP of 32 x 32 pixels, saved with the tokenizer of `build_tokenizer`."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": max_length}
    text |= {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}
    vision = {"image_size": 32, "patch_size": 16}
    parts = {"text_config": sizes | text, "vision_config": sizes | vision}
    model = CLIPModel(CLIPConfig(**parts, projection_dim=8)).eval()
    draws = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=draws)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model


def build_text_pipeline(
    scheme: str = "token", encoder: bool = True, refiner: Refiner | None = None, **settings
) -> CodecladeTextPipeline:
    """Captions of up to 8 words, with or without the text encoder."""
    parts = build_parts(scheme, text=True)
    if encoder:
        parts |= {"tokenizer": build_tokenizer(), "text_encoder": build_t5()}
    pipe = CodecladeTextPipeline(**parts, refiner=refiner, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(first, second) -> bool:
    """Whether two models have equal weights, by name."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
