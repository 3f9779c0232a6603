"""Mutated pipeline folders: the bundled one and small ones of every scheme.

What must be refused: a field of another type, not finite or out of its range; fields, weights,
labels, trees and parts that contradict each other; weights that are no numbers, or no
floating-point ones where those belong; files that are not whole. What cannot be seen, and so may
load: another good value of a free choice (`rope_theta` 5000), other finite weights.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline

import codeclade
from builders import REFINERS, build_refiner, build_scheme, build_text_pipeline
from codeclade import (
    ClusterMap,
    CodecladePipeline,
    CodecladeTextPipeline,
    CodecladeTransformer,
    Refiner,
    VQModel,
)
from fuzz.batches import Load, rewrite

CLASSES = {
    "vq_model": VQModel,
    "transformer": CodecladeTransformer,
    "cluster_map": ClusterMap,
    "refiner": Refiner,
}
DEEP = "deep"  # stands for text that json.dumps could not write
NEVER = [  # what no number, truth value or name may be
    [],
    {},
    [1],
    {"a": 1},
    "x" * 10_000,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    DEEP,
    -(2**63),
]
# Sizes that weights confirm, so that every other value is a contradiction.
CONFIRMED = {
    "transformer": (
        "vocab_size",
        "num_classes",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "prefix_length",
    ),
    "vq_model": ("layers_per_block", "latent_channels", "codebook_size", "codebook_dim"),
    "cluster_map": ("codebook_size", "num_clusters", "codebook_dim", "num_merges"),
    "refiner": (
        "codebook_size",
        "num_clusters",
        "num_classes",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "context_dim",
    ),
}
MAY_BE_NULL = (
    "coarse_vocab_size",
    "text_dim",
    "detail_codebook_size",
    "context_dim",
    "architectures",
    "dtype",
    "transformers_version",
    "tie_word_embeddings",
)
ZERO_IS_FINE = ("dropout", "num_classes", "num_merges", "initializer_range", "weight", "temper")


class Pipelines:
    """Whole folders in a folder, and mutations of them."""

    def __init__(self, folder: Path, seed: int = 0):
        self.random = random.Random(seed)
        self.bundled = Path(codeclade.bundled("0.1"))  # of clusters, so with every part
        self.small: dict[str, Path] = {}
        for scheme in ("token", "cluster", "cluster_token", "semantic_detail"):
            self.small[scheme] = folder / scheme
            build_scheme(scheme).save_pretrained(folder / scheme)
        refiner = build_refiner(**REFINERS["MASC"])
        build_scheme("cluster", refiner=refiner).save_pretrained(folder / "refiner")
        build_text_pipeline().save_pretrained(folder / "text")
        build_scheme("cluster").save_pretrained(folder / "shards", max_shard_size="20KB")
        self.small |= {name: folder / name for name in ("refiner", "text", "shards")}

    def folders(self) -> Iterator[tuple[str, Path]]:
        """The bundled folder and those with a part or fields that it lacks."""
        yield "bundled", self.bundled
        yield from self.small.items()

    def case(
        self,
        name: str,
        base: Path,
        change: Callable[[Path], object],
        refused: bool | None = True,
        part: str | None = None,
    ) -> Load:
        """A mutation; those of a part are entered by turns as pipeline, by diffusers or alone."""
        kind = CodecladeTextPipeline if base.name == "text" else CodecladePipeline
        ways: list[Callable] = [kind.from_pretrained]
        # diffusers gives text encoders to transformers before this package is asked anything.
        if part in (*CLASSES, "index"):
            ways.append(DiffusionPipeline.from_pretrained)
        if part in CLASSES:
            ways.append(partial(CLASSES[part].from_pretrained, subfolder=part))
        load = self.random.choice(ways)
        return Load(name, base, change, load, refused, works)

    # --- JSON

    def fields(self) -> Iterator[Load]:
        """Every field of every config, with what it cannot be."""
        for where, base in (
            ("bundled", self.bundled),
            ("cluster_token", self.small["cluster_token"]),
            ("semantic_detail", self.small["semantic_detail"]),
            ("refiner", self.small["refiner"]),
            ("text", self.small["text"]),
        ):
            for part in CLASSES:
                # Once is enough for parts that are alike in all of them.
                only = {
                    "cluster_token": "transformer",
                    "semantic_detail": "transformer",
                    "refiner": "refiner",
                    "text": "transformer",
                }.get(where)
                path = base / part / "config.json"
                if only not in (None, part) or not path.is_file():
                    continue
                content = json.loads(path.read_text())
                values = {name: value for name, value in content.items() if name[0] != "_"}
                for name, value in values.items():
                    known = name in CONFIRMED[part] and (where, name) != ("text", "num_classes")
                    bad = wrong_values(name, value, known)
                    # Some of them, fewer in the other folders: fields are the same there.
                    share = 0.15 if only else 0.5
                    for i, (other, text) in enumerate(bad):
                        if self.random.random() > share and name != "coarse_vocab_size":
                            continue
                        change = partial(set_field, part, name, text)
                        title = f"{where} {part}.{name}={other} ({i})"
                        yield self.case(title, base, change, True, part)

    def more_fields(self) -> Iterator[Load]:
        """Fields that are not there, that are of no class, and good values of free choices."""
        base = self.bundled
        content = json.loads((base / "transformer/config.json").read_text())
        for name in content:
            # What the default is decides whether it fits the rest.
            yield self.case(
                f"without {name}", base, partial(drop, "transformer", name), None, "transformer"
            )
        for name in (
            "head_dim",
            "num_tokens",
            "num_stages",
            "to_dict",
            "from_dict",
            "num_key_value_heads",
            "__class__",
            "transformers_weights",
            "a b",
            "attn_implementation",
            "get_text_config",
        ):
            change = partial(set_field, "transformer", name, "5")
            yield self.case(f"field {name}", base, change, True, "transformer")
        for name, text in (
            ("forward", "5"),
            ("config", "{}"),
            ("codebook", "[1]"),
            ("a", "[1]"),
            ("_class_name", '"ClusterMap"'),
            ("_class_name", "5"),
        ):
            change = partial(set_field, "vq_model", name, text)
            yield self.case(f"field {name}={text}", base, change, True, "vq_model")
        for part, name, text in (
            ("transformer", "dtype", '"float33"'),
            ("transformer", "dtype", '"int8"'),
            ("transformer", "dtype", '"float16"'),
            ("transformer", "model_type", '"bert"'),
            ("transformer", "scheme", '"token_cluster"'),
            ("transformer", "scheme", '"cluster_token"'),
            ("transformer", "scheme", '"semantic_detail"'),
            ("transformer", "quantization_config", "{}"),
            ("transformer", "quantization_config", "5"),
            ("transformer", "quantization_config", '{"quant_method": 5}'),
            ("transformer", "quantization_config", '{"quant_method": "none"}'),
            ("transformer", "quantization_config", '{"quant_method": "torchao"}'),
            ("transformer", "hidden_size", "254"),
            ("transformer", "num_attention_heads", "3"),
            ("transformer", "num_attention_heads", "1024"),
            ("transformer", "rms_norm_eps", "1.5"),
            ("transformer", "rope_theta", "0.5"),
            ("transformer", "text_dim", "64"),
            ("transformer", "coarse_vocab_size", "64"),
            ("vq_model", "norm_num_groups", "7"),
            ("vq_model", "block_out_channels", "[32, 64]"),
            ("vq_model", "block_out_channels", "[32, 64, 64, 64]"),
            ("vq_model", "block_out_channels", "[32.0, 64, 64, 128]"),
            ("vq_model", "block_out_channels", "[32, 64, 64, null]"),
            ("vq_model", "block_out_channels", json.dumps([32] * 5000)),
            ("vq_model", "block_out_channels", json.dumps([2**17] * 12)),
            ("vq_model", "detail_codebook_size", "64"),
            ("vq_model", "sample_size", "8"),
        ):
            change = partial(set_field, part, name, text)
            # Which side is wrong the grid says: a tokenizer alone has none.
            way = "index" if name == "sample_size" else part
            yield self.case(f"{part}.{name}={text[:40]}", base, change, True, way)
        for part, name, text in (
            ("transformer", "rope_theta", "5000"),
            ("transformer", "rms_norm_eps", "1e-6"),
            ("transformer", "class_dropout", "0"),
            ("transformer", "note", '"of mine"'),
            ("vq_model", "sample_size", "48"),
            ("cluster_map", "method", '"other"'),
        ):
            change = partial(set_field, part, name, text)
            yield self.case(f"good {part}.{name}={text}", base, change, False, part)

    def index(self) -> Iterator[Load]:
        """model_index.json: defaults, parts and names."""
        base = self.bundled
        for name in ("guidance_scale", "temperature", "top_k", "top_p"):
            value = json.loads((base / "model_index.json").read_text())[name]
            for other, text in [*wrong_values(name, value, False), ("1e30", "1e30")]:
                change = partial(set_field, "", name, text)
                # Of what nests too deeply diffusers has read the whole before it asks us.
                way = None if other.startswith("[[") else "index"
                yield self.case(f"index {name}={other}", base, change, True, way)
        change = partial(set_field, "transformer", "grid_size", "100")
        yield self.case("a grid far too large", base, change)
        parts = [
            "5",
            "[]",
            "{}",
            '"VQModel"',
            "[1, 2]",
            '["codeclade"]',
            '["codeclade", null]',
            '[null, "VQModel"]',
            '["os", "system"]',
            '["codeclade", "CodecladePipeline"]',
            '["codeclade.cli", "main"]',
            '["antigravity", "VQModel"]',
            '["a", "b", "c"]',
            '["diffusers", "AutoencoderKL"]',
            '["codeclade", "' + "x" * 9000 + '"]',
        ]
        for part in ("vq_model", "transformer", "cluster_map", "refiner"):
            for text in parts:
                change = partial(set_field, "", part, text)
                yield self.case(f"index {part}={text[:40]}", base, change)
        for part in ("tokenizer", "text_encoder"):
            for text in [*parts, '["transformers", "nothing"]', '["transformers", "pipeline"]']:
                change = partial(set_field, "", part, text)
                yield self.case(f"index {part}={text[:40]}", self.small["text"], change)
        for part in ("vq_model", "transformer", "cluster_map"):
            yield self.case(f"index without {part}", base, partial(drop, "", part))
            yield self.case(
                f"index {part}=nulls", base, partial(set_field, "", part, "[null, null]")
            )
        for text in (
            "5",
            "[]",
            '"a"',
            '{"a": "b"}',
            '{"-1": "b"}',
            '{"1": 5}',
            '{"1": ["b"]}',
            '{"1": null}',
            '{"99": "goldfish"}',
            '{"1.5": "b"}',
            '{"1": "' + "x" * 5000 + '"}',
        ):
            change = partial(set_field, "", "id2label", text)
            yield self.case(f"index id2label={text[:30]}", base, change, True, "index")
        for text in (
            "5",
            "[]",
            '"none"',
            "{}",
            '{"name": 5}',
            '{"name": "linear", "start": "a"}',
            '{"name": "linear", "start": NaN}',
            '{"name": "linear", "begin": 1}',
            '{"name": "interval"}',
            '{"name": "linear", "start": [1, 2, 3]}',
            '{"name": []}',
            '"' + "x" * 5000 + '"',
            '{"name": "linear", "start": [1, {}]}',
            '{"name": "cosine_power", "power": Infinity}',
        ):
            change = partial(set_field, "", "guidance_schedule", text)
            yield self.case(f"index schedule={text[:40]}", base, change, True, "index")
        for text in ("5", "null", "[]", "{}", '""', '["a"]', "[5]"):
            change = partial(set_field, "", "_class_name", text)
            yield self.case(f"index _class_name={text}", base, change, None)

    def documents(self) -> Iterator[Load]:
        """Whole JSON files that are none, or of another kind."""
        whole = {
            "empty": "",
            "null": "null",
            "number": "17",
            "text": '"a"',
            "list": "[1, 2]",
            "object": "{}",
            "deep list": "[" * 100_000 + "]" * 100_000,
            "deep object": '{"a":' * 90_000 + "1" + "}" * 90_000,
            "cut": '{"a": 1, ',
            "not UTF-8": b"\xff\xfe{}",
            "zeros": b"\0" * 400,
            "huge": '{"a": "' + "x" * 2**25 + '"}',
            "twice": '{"num_clusters": 1, "num_clusters": 2}',
            "digits": '{"a": ' + "9" * 9999 + "}",
        }
        for base, part in (
            (self.bundled, ""),
            (self.bundled, "vq_model"),
            (self.bundled, "transformer"),
            (self.bundled, "cluster_map"),
            (self.small["refiner"], "refiner"),
            (self.small["text"], "text_encoder"),
            (self.small["text"], "tokenizer"),
        ):
            name = {"": "model_index.json", "tokenizer": "tokenizer.json"}.get(part, "config.json")
            for what, content in whole.items():

                def change(copy, part=part, name=name, content=content):
                    rewrite(copy / part / name, content)

                refused = None if what == "object" and part == "text_encoder" else True
                yield self.case(f"{part}/{name} {what}", base, change, refused)

            def gone(copy, part=part, name=name):
                (copy / part / name).unlink()

            def folder(copy, part=part, name=name):
                (copy / part / name).unlink()
                (copy / part / name).mkdir()

            yield self.case(f"{part}/{name} gone", base, gone)
            yield self.case(f"{part}/{name} a folder", base, folder)

    def flipped(self) -> Iterator[Load]:
        """Random bytes of JSON files and headers: refused, or nothing that breaks a call."""
        for where, base in self.folders():
            for path in sorted(base.rglob("*")):
                if path.suffix not in (".json", ".safetensors"):
                    continue
                with path.open("rb") as stream:
                    start = stream.read(8)
                    length = int.from_bytes(start, "little") + 8
                end = length if path.suffix == ".safetensors" else path.stat().st_size
                for _ in range(4 if where == "bundled" else 2):
                    inside = path.relative_to(base)
                    place, value = self.random.randrange(end), self.random.randrange(256)

                    def change(copy, path=inside, place=place, value=value):
                        content = bytearray((copy / path).read_bytes())
                        content[place] = value
                        rewrite(copy / path, bytes(content))

                    name = f"{where}/{inside} byte {place} = {value}"
                    yield self.case(name, base, change, None)


def works(loaded) -> None:
    """Fails unless a pipeline makes an image of numbers; other parts are fine once loaded."""
    if isinstance(loaded, CodecladePipeline):
        loaded.set_progress_bar_config(disable=True)
        images = loaded([0], output_type="pt").images
        assert images.isfinite().all(), "an image that is not finite"


def wrong_values(name: str, value, confirmed: bool) -> Iterator[tuple[str, str]]:
    """What a field cannot be, as (title, JSON), for the kind of value it has."""
    values = list(NEVER)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name.endswith("channels") and isinstance(value, list):
        values += [None, 5, "a", [0], [-1], [2**40]]
    elif isinstance(value, bool):
        values += ["true", 1, 0, 2.5]
    elif isinstance(value, str):
        values += [5, True, 2.5]
    elif isinstance(value, list):
        values.remove([])
        values += [5, "a", True]
    elif number:
        values += [str(value), True, 1e300, [value]]
        if isinstance(value, int):
            values += [value + 0.5, 2**40, 2**31]
        if (
            not any(part in name for part in ZERO_IS_FINE)
            and name != "top_k"
            and "scale" not in name
        ):
            values.append(0)
        if confirmed:
            values += [value + 1, 2 * value + 2, max(1, value // 2) if value > 1 else 3]
    else:
        values += ["a", True, 2.5]
    if value is not None and name not in MAY_BE_NULL:
        values.append(None)
    for other in values:
        text = "[" * 5000 + "]" * 5000 if other is DEEP else json.dumps(other)
        yield text[:24], text


def set_field(part: str, name: str, text: str, copy: Path) -> None:
    """Write a field as JSON text into a config, or into the index."""
    path = copy / part / ("config.json" if part else "model_index.json")
    content = json.loads(path.read_text())
    content.pop(name, None)
    rest = json.dumps(content)[:-1]
    rewrite(path, f"{rest}{', ' if content else ''}{json.dumps(name)}: {text}}}")


def drop(part: str, name: str, copy: Path) -> None:
    """Take a field out of a config, or out of the index."""
    path = copy / part / ("config.json" if part else "model_index.json")
    content = json.loads(path.read_text())
    del content[name]
    rewrite(path, json.dumps(content))
