"""Where the generator of the bundled pairs started: the generator of single ids, made one of pairs.

    R="--recipe tiny-imagenet-pairs"
    T=runs/tokenizer/vq_model
    python tests/benchmarks/study_pairs.py prepare --data DIR --out runs/study
    codeclade train-tokenizer $R --fetch-lpips --out runs/tokenizer steps=1300 learning_rate=4e-4 \
        final_learning_rate=5e-5 classifier_weight=0.03 ema_decay=0.998 \
        init_from=runs/study/pair-tokenizer/vq_model
    codeclade encode $R --tokenizer $T --out runs/codes
    python tests/benchmarks/bundled_start.py pairs --tokenizer $T --out runs/pairs
    codeclade train-generator $R --tokenizer $T --codes runs/codes --out runs/large \
        init_from=runs/pairs steps=1700 num_hidden_layers=8 head_layers=2 head_mlp=true
    python tests/benchmarks/bundled_start.py smaller --pipeline runs/large/pipeline \
        --codes runs/codes --out runs/smaller
    codeclade train-generator $R --tokenizer $T --codes runs/codes --out runs/small \
        init_from=runs/smaller

Then the tokenizer learned on, with twice the weight of the classifier's loss, and after it the
generator with the new codes:

    N=runs/tokenizer-2/vq_model
    codeclade train-tokenizer $R --out runs/tokenizer-2 init_from=$T steps=3600 learning_rate=4e-4
    codeclade encode $R --tokenizer $N --out runs/codes-2
    codeclade train-generator $R --tokenizer $N --codes runs/codes-2 --out runs/generator \
        init_from=runs/small/pipeline steps=1800 learning_rate=8e-4 evaluate_every=300

The tokenizer's first two trainings had four more classes (brown bear, suspension bridge, barn,
banana).

`pairs` copies every weight of `bundled("ids")` that a generator of pairs has a place for; the
semantic codes of the tokenizer, which started as its codes, stand in the same rows. The embedding
and the semantic output pass it on unchanged: GELU(x) - GELU(-x) = x. `smaller` leaves out the two
blocks of the decoder and the one of the head that are missed least, and puts one linear layer,
fitted by least squares, in the place of each output's two.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer, VQModel, bundled
from codeclade.data.codes import Codes

SIZES = (
    "grid_size", "num_classes", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size",
)  # fmt: skip
LEFT_OUT = (4, 5)  # of 8 blocks; 4 and 6 cost as much, others more (validation loss without them)


def save(transformer, vq_model, id2label: dict, out: Path) -> None:
    """A pipeline that a training starts from by `init_from`."""
    labels = dict(id2label)
    CodecladePipeline(vq_model=vq_model, transformer=transformer, id2label=labels).save_pretrained(
        out
    )


def copy_alike(target: nn.Module, source: nn.Module) -> None:
    """Copy the weights that have the same name and shape."""
    theirs = source.state_dict()
    for name, value in target.state_dict().items():
        if name in theirs and theirs[name].shape == value.shape:
            value.copy_(theirs[name])


@torch.no_grad()
def pairs(tokenizer: str, out: Path) -> None:
    """The generator of single ids as one of pairs that predicts semantic codes as it did ids."""
    source = CodecladePipeline.from_pretrained(bundled("ids"), dtype=torch.float32)
    ids, vq_model = source.transformer, VQModel.from_pretrained(tokenizer)
    sizes = {name: getattr(ids.config, name) for name in SIZES}
    torch.manual_seed(0)
    model = CodecladeTransformer(
        CodecladeConfig(
            vocab_size=vq_model.detail_codebook_size,
            scheme="semantic_detail",
            coarse_vocab_size=vq_model.codebook_size,
            head_layers=2,
            **sizes,
        )
    )
    copy_alike(model, ids)
    embedding, head = model.token_embedding, model.head
    embedding.semantic.weight.copy_(ids.token_embedding.weight)
    identity(embedding.mix[0], embedding.mix[2], torch.eye(ids.config.hidden_size))
    identity(head.semantic[0], head.semantic[2], ids.head.weight)
    save(model, vq_model, source.config.id2label, out)


def identity(first: nn.Linear, last: nn.Linear, then: Tensor) -> None:
    """Make two layers with a GELU between them the map x -> `then` x, of the first D inputs."""
    width = then.shape[1]
    first.weight[: 2 * width].zero_()
    first.weight[:width, :width].copy_(torch.eye(width))
    first.weight[width : 2 * width, :width].copy_(-torch.eye(width))
    first.bias[: 2 * width].zero_()
    last.weight[:, : 2 * width].copy_(torch.cat([then, -then], 1))
    if last.bias is not None:
        last.bias.zero_()


@torch.no_grad()
def smaller(pipeline: str, codes: Path, out: Path) -> None:
    """Six blocks of eight, one block of the head, outputs of one layer."""
    source = CodecladePipeline.from_pretrained(pipeline, dtype=torch.float32)
    large = source.transformer.eval()
    ids, labels = first_images(codes / "train", 512)
    wanted = [part - part.mean(-1, keepdim=True) for part in logits(large, ids, labels)]

    # What stays of the large one, as a model of its own.
    kept = [block for index, block in enumerate(large.layers) if index not in LEFT_OUT]
    large.layers, large.head.blocks = nn.ModuleList(kept), large.head.blocks[1:]
    fields = (*SIZES, "vocab_size", "scheme", "coarse_vocab_size", "head_window")
    sizes = {name: getattr(large.config, name) for name in fields}
    sizes |= {"num_hidden_layers": len(kept), "head_layers": 1, "head_mlp": False}
    model = CodecladeTransformer(CodecladeConfig(**sizes)).eval()
    copy_alike(model, large)

    # Its outputs by ridge regression on the logits of the large one.
    inputs: list[list[Tensor]] = [[], []]
    outputs = model.head.semantic, model.head.detail
    for output, seen in zip(outputs, inputs, strict=True):
        output.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
    logits(model, ids, labels)
    for output, seen, targets in zip(outputs, inputs, wanted, strict=True):
        x = torch.cat(seen).flatten(0, 1)  # (n, D)
        square = x.T @ x
        square += 1e-3 * square.diagonal().mean() * torch.eye(len(square))
        output[2].weight.copy_(torch.linalg.solve(square, x.T @ targets).T)
    save(model, source.vq_model, source.config.id2label, out)


def first_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Pairs (n, T, 2) and classes (n,) of images that are spread evenly."""
    codes = Codes(folder)
    found = list(codes.first_views(64, 0, max(1, len(codes) // count)))
    ids, labels = (torch.cat(part).long()[:count] for part in zip(*found, strict=True))
    return ids, labels


def logits(model, ids: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """Semantic and detail logits (n, N) of all positions."""
    parts = []
    for some, classes in zip(ids.split(32), labels.split(32), strict=True):
        output = model(input_ids=some, class_labels=classes, labels=some)
        parts.append((output.semantic_logits, output.detail_logits))
    return [torch.cat(stage).flatten(0, 1) for stage in zip(*parts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["pairs", "smaller"])
    parser.add_argument("--tokenizer", help="pairs: VQModel of pairs, from that of the ids")
    parser.add_argument("--pipeline", help="smaller: the generator to make smaller")
    parser.add_argument("--codes", type=Path, help="smaller: what encode wrote")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.what == "pairs":
        pairs(arguments.tokenizer, arguments.out)
    else:
        smaller(arguments.pipeline, arguments.codes, arguments.out)


if __name__ == "__main__":
    main()
