"""Whole files with weights, mappings and flags that are no generator's or tokenizer's."""

from collections.abc import Iterator

import torch

from fuzz.published import CODES, Case, Published


def weights(files: Published) -> Iterator[Case]:
    """Whole files whose weights are no generator's or tokenizer's."""
    for key in sorted(files.gpt)[:: max(1, len(files.gpt) // 8)]:
        for what, bad in (("NaN", torch.nan), ("infinity", torch.inf), ("-inf", -torch.inf)):
            changed = files.gpt[key].clone()
            changed.view(-1)[files.random.randrange(changed.numel())] = bad
            path = files.torch_file({"model": files.gpt | {key: changed}})
            yield f"{what} in {key}", files.llamagen(path), False
    for key in ("encoder.conv_in.weight", "quantize.embedding.weight", "decoder.conv_out.bias"):
        changed = files.vq[key].clone()
        changed.view(-1)[0] = torch.nan
        path = files.torch_file(files.vq | {key: changed})
        yield f"NaN in {key}", files.llamagen(vq=path), False
    overflow = {key: (value * 1e30).half() for key, value in files.gpt.items()}
    yield "float16 overflow", files.llamagen(files.torch_file(overflow)), False
    for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64):
        for key in ("norm.weight", "tok_embeddings.weight"):
            path = files.torch_file(files.gpt | {key: files.gpt[key].to(dtype)})
            yield f"{dtype} {key}", files.llamagen(path), False
    shapes = ((), (0,), (0, 32), (32, 0), (1,) * 20, (2, 3, 4), (1, 1), (65, 32), (64, 33))
    for key in ("tok_embeddings.weight", "norm.weight", "layers.0.feed_forward.w1.weight"):
        for shape in shapes:
            path = files.torch_file(files.gpt | {key: torch.ones(shape)})
            yield f"{key} of shape {shape}", files.llamagen(path), False
    for key in ("quantize.embedding.weight", "quant_conv.weight", "encoder.conv_in.weight"):
        for shape in ((), (0, 8), (8,), (31, 32, 1, 1), (64, 9, 1)):
            path = files.torch_file(files.vq | {key: torch.ones(shape)})
            yield f"{key} of shape {shape}", files.llamagen(vq=path), False
    key = "encoder.conv_blocks.0.res.0.conv1.weight"
    for channels in (1, 31, 33, 2**16):
        path = files.torch_file(files.vq | {key: torch.zeros(channels, 1, 1, 1)})
        yield f"tokenizer of {channels} channels", files.llamagen(vq=path), False
    for what, keys in {
        "layer 999999999": ["layers.999999999.attention.wqkv.weight"],
        "layer of 5000 digits": [f"layers.{'9' * 5000}.attention.wqkv.weight"],
        "layer -1": ["layers.-1.attention.wqkv.weight"],
        "layer 00": ["layers.00.attention.wqkv.weight"],
        "layer of other digits": ["layers.\u0663.attention.wqkv.weight"],
        "no name": [""],
        "name of 100,000 letters": ["a" * 100_000],
        "names of a thousand": [f"other.{i}.weight" for i in range(1000)],
        "name twice": ["module.norm.weight"],
        "name in lines": ["a\nb\nc"],
        "format": ["layers.{}.{0}.weight"],
        "blocks 77": ["encoder.conv_blocks.77.res.0.conv1.weight"],
        "number": [17],
        "tuple": [("a", 1)],
        "none": [None],
    }.items():
        path = files.torch_file(files.gpt | dict.fromkeys(keys, torch.ones(3)))
        yield f"generator with {what}", files.llamagen(path), False
        path = files.torch_file(files.vq | dict.fromkeys(keys, torch.ones(3)))
        yield f"tokenizer with {what}", files.llamagen(vq=path), False
    for what, content in {
        "a list": [files.gpt],
        "a tensor": torch.ones(3),
        "text": "weights",
        "nothing": {},
        "numbers": {"a": 1, "b": 2.0},
        "lists": {"model": [torch.ones(2)]},
        "ema of numbers": {"ema": {"a": 1}, "model": {"b": 2}},
        "the tokenizer": files.vq,
        "IAR2's tokenizer": files.vq2,
        "clusters": files.clusters,
    }.items():
        yield f"generator of {what}", files.llamagen(files.torch_file(content)), False
    for heads in ("0", "-1", "3", "1000000007"):
        arguments = files.llamagen()
        arguments[arguments.index("--heads") + 1] = heads
        yield f"{heads} heads", arguments, False
    for size in ("0", "-8", "7", "1000000000000", "99999999999999999999"):
        arguments = files.llamagen()
        arguments[arguments.index("--image-size") + 1] = size
        yield f"image size {size}", arguments, False


def mappings(files: Published) -> Iterator[Case]:
    """Cluster indices and permutations."""
    for what, content in {
        "float": files.index.float(),
        "bool": files.index.bool(),
        "complex": files.index.to(torch.complex64),
        "matrix": files.index.view(8, 8),
        "scalar": torch.tensor(3),
        "empty": files.index[:0],
        "short": files.index[:-1],
        "long": torch.cat([files.index, files.index]),
        "negative": files.index - 1,
        "huge": files.index + 2**60,
        "a cluster left out": files.index.clamp_max(5) * 2,
        "all one": torch.zeros(CODES, dtype=torch.int64),
        "expanded": torch.zeros(1, dtype=torch.int64).expand(2**40),
        "a list": files.index.tolist(),
        "text": "0 1 2",
        "two": {"a": files.index, "b": files.index},
        "a trap": {"a": eval},
    }.items():
        path = files.torch_file(content)
        yield f"index {what}", files.dcpe(path), False
        yield f"permutation {what}", files.iar(path), False
