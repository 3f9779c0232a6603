"""Mutations of a pipeline of ids with a map of clusters, as the newest bundled one is.

Where pipelines.py and weights.py go field by field, this goes by kinds of damage: how text is
written, where numbers end, what a name may be, what lies where a file should, and what can be done
to numbers that stay numbers. Some of it is harmless, and then the same picture comes out.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from codeclade import CodecladePipeline
from fuzz.batches import Load, rewrite
from fuzz.pipelines import CLASSES, set_field, works
from fuzz.runner import LONGEST

PARTS = ("vq_model", "transformer", "cluster_map")
# Code that must not run: it would leave a file beside the folder of mutated ones.
TRAP = "import pathlib\npathlib.Path({place!r}).touch()\nclass Trap: pass\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 17849296\n"


class Newest:
    """A whole folder and mutations of it."""

    def __init__(self, base: Path, seed: int = 0):
        self.random = random.Random(seed)
        self.base = base
        pipe = CodecladePipeline.from_pretrained(base)
        pipe.set_progress_bar_config(disable=True)
        self.picture = pipe([0], output_type="pt", generator=seeded()).images

    def case(self, name: str, change: Callable, refused=True, part: str | None = None) -> Load:
        """A mutation, of a part by turns as pipeline, by diffusers or alone.

        Harmless ones (`refused=False`) must give the same picture, so they are whole pipelines.
        """
        ways: list[Callable] = [CodecladePipeline.from_pretrained]
        # diffusers looks for the class of a pipeline before this package is asked anything.
        by_class = part == "index" and "_class_name" not in name
        if by_class or (part in CLASSES and refused is not False):
            ways.append(DiffusionPipeline.from_pretrained)
        if part in CLASSES and refused is True:
            ways.append(partial(CLASSES[part].from_pretrained, subfolder=part))
        judged = self.is_the_same if refused is False else works_or_says
        return Load(name, self.base, change, self.random.choice(ways), refused, judged)

    def is_the_same(self, loaded) -> None:
        """Fails unless a pipeline makes the picture of the whole one."""
        loaded.set_progress_bar_config(disable=True)
        images = loaded([0], output_type="pt", generator=seeded()).images
        assert torch.equal(images, self.picture), "another picture"

    # --- JSON

    def texts(self) -> Iterator[Load]:
        """How a JSON file is written."""
        for part, name in (("", "model_index.json"), *((p, "config.json") for p in PARTS)):
            text = (self.base / part / name).read_text()
            first = next(iter(json.loads(text)))
            escaped = text.replace(f'"{first}"', f'"\\u{ord(first[0]):04x}{first[1:]}"', 1)
            body = text.strip()[1:]
            whole: dict[str, tuple[bytes | str, bool]] = {
                "UTF-16": (text.encode("utf-16"), True),
                "UTF-32": (text.encode("utf-32"), True),
                "a byte order mark": (b"\xef\xbb\xbf" + text.encode(), True),
                "overlong UTF-8": (text.encode().replace(b'"', b"\xc0\xa2", 1), True),
                "a surrogate in UTF-8": (b'{"a": "\xed\xa0\x80",' + body.encode(), True),
                "a comma at the end": (text.strip()[:-1].rstrip() + ",}", True),
                "a comment": ("// of mine\n" + text, True),
                "single quotes": (text.replace('"', "'"), True),
                "two documents": (text + text, True),
                "a list around": (f"[{text}]", True),
                "text around": (json.dumps(text), True),
                "lines": (json.dumps(text)[1:-1], True),
                "a key twice, escaped": (escaped.strip()[:-1] + f', "{first}": 5}}', True),
                "NUL in a key": (f'{{"a\\u0000b": 5, {body}', True),
                "an empty key": (f'{{"": 5, {body}', True),
                "a Cyrillic key": (f'{{"voc\\u0430b_size": [5], {body}', True),
                "a key of 100,000 letters": (f'{{"{"k" * 100_000}": [5], {body}', True),
                "a key of a lone surrogate": (f'{{"\\ud800": 5, {body}', True),
                "a million spaces": (" " * 2**20 + text, False),
                "tabs": (text.replace("  ", "\t"), False),
                "carriage returns": (text.replace("\n", "\r\n"), False),
                "a vertical tab": (text.replace("\n", "\v"), True),
                "escaped keys": (escaped, False),
                "a hundred thousand keys": (
                    "{" + "".join(f'"k{i}": [0], ' for i in range(100_000)) + body,
                    True,
                ),
                "gzip": (b"\x1f\x8b\x08\0" + text.encode(), True),
                "HTML": ("<!DOCTYPE html><html>404</html>", True),
                "a pointer of LFS": (POINTER, True),
            }
            for what, (content, bad) in whole.items():
                # What no class has as a field may be there, in an index too.
                refused = None if not part and " key" in what and "twice" not in what else bad
                refused = None if not part and what == "a hundred thousand keys" else refused
                change = partial(replace, f"{part}/{name}".lstrip("/"), content)
                yield self.case(f"{part}/{name} {what}", change, refused, part or None)

    def numbers(self) -> Iterator[Load]:
        """Where numbers end, and other ways to write them; None: a free choice, or nearly."""
        ways = ("{}.0", "{}e0", '"{}"', "0x{}", "0{}", "+{}", "{}_0", "[{}]", "-0", "-0.0", "1e400")
        ways += ("9" * 5000, "2e63", "18446744073709551616", "-{}", "{}0")
        sizes = [("transformer", n) for n in ("vocab_size", "hidden_size", "grid_size")]
        sizes += [("vq_model", "codebook_size"), ("cluster_map", "num_merges")]
        for part, name in sizes:
            value = json.loads((self.base / part / "config.json").read_text())[name]
            for way in ways:
                yield self.field(part, name, way.replace("{}", str(value)), True)
        for part, name, texts in (
            ("transformer", "rms_norm_eps", ("5e-324", "1e-400", "-0.0", "1", "true", "1e-46")),
            ("transformer", "rope_theta", ("1", "1e12", "0.9999999999999999", "1e13", "2")),
            ("transformer", "class_dropout", ("1", "-0.0", "1.0000000000000002", "5e-324")),
            ("transformer", "token_dropout", ("1", "-1e-300", "false")),
            ("transformer", "initializer_range", ("0", "10", "10.000001", "-0.0")),
            ("transformer", "semantic_loss_weight", ("0", "1e6", "1000001", "-1")),
            ("transformer", "grid_size", ("1", "2", "4", "7", "9", "16", "1024", "1025")),
            ("transformer", "head_layers", ("0", "1", "1024", "1025", "2.5")),
            ("transformer", "head_window", ("0", "1", "3", "32", "33", "null")),
            ("transformer", "positions_per_cell", ("0", "2", "3", "null", "-1")),
            ("transformer", "prefix_length", ("2", "4096", "4097")),
            ("transformer", "num_attention_heads", ("1", "2", "8", "16", "32", "64", "128")),
            ("vq_model", "norm_num_groups", ("1", "2", "16", "31", "64", "131072")),
            ("vq_model", "sample_size", ("1", "32", "63", "65", "128", "16384", "16385")),
            ("vq_model", "block_out_channels", ("[128, 64, 64, 32]", "[]", "[32]", "32")),
            ("", "temperature", ("5e-324", "1e-45", "1e-7", "100", "100.1", "-0.0", "0", "0.0")),
            ("", "top_p", ("5e-324", "1e-30", "0", "-0.0", "1.0000000000000002", "true")),
            ("", "top_k", ("1", "32", "33", "4097", "16777216", "16777217", "1.0", "-0")),
            ("", "guidance_scale", ("-0.0", "1000", "1000.5", "5e-324", "1", "0.5")),
        ):
            for text in texts:
                yield self.field(part, name, text, None)

    def field(self, part: str, name: str, text: str, refused: bool | None) -> Load:
        change = partial(set_field, part, name, text)
        title = f"{part or 'index'}.{name}={text[:40]}"
        return self.case(title, change, refused, part or "index")

    def switches(self) -> Iterator[Load]:
        """Fields that the libraries act upon."""
        for name, texts in {
            "return_dict": ("false", "null", "0", '"no"'),
            "output_hidden_states": ("true", "2", "[1]"),
            "output_attentions": ("true", '"all"'),
            "use_cache": ("false", "1"),
            "tie_word_embeddings": ("true", "null", "1"),
            "is_encoder_decoder": ("true", '""'),
            "dtype": ('"torch.bfloat16"', '"float64"', '"bfloat16 "', '"BFLOAT16"', '"auto"', "16"),
            "torch_dtype": ('"float32"', '"complex64"', "{}"),
            "architectures": ('["BertModel"]', '["../x"]', "[5]", "[]", '"CodecladeTransformer"'),
            "auto_map": ('{"AutoModel": "trap.Trap"}', '{"": ""}', "[]", '{"AutoModel": 5}'),
            "_attn_implementation": ('"flash_attention_2"', '"eager"', '"kernels/x"', "5"),
            "_attn_implementation_internal": ('"eager"', '"hub/trap"'),
            "_commit_hash": ('"../../etc"', "5"),
            "_name_or_path": ('"../../../etc"', '"https://localhost:1/x"', "5", '"\\ud800"'),
            "id2label": ('{"0": "a"}', '{"a": "b"}', '{"0": 5}'),
            "label2id": ('{"a": 0}', '{"a": "x"}'),
            "problem_type": ('"regression"', '"x"', "5"),
            "pruned_heads": ('{"0": [0]}', "5"),
            "chunk_size_feed_forward": ("1", "7"),
            "transformers_version": ('"99.0"', '"x"', '""'),
            "transformers_weights": ('"../vq_model/diffusion_pytorch_model.safetensors"',),
            "torchscript": ("true",),
            "sub_configs": ("{}", '{"a": "b"}'),
            "attribute_map": ('{"hidden_size": "vocab_size"}', '{"a": "a"}'),
            "base_model_tp_plan": ("{}", '{"layers.*": "colwise"}', '"x"'),
            "keys_to_ignore_at_inference": ('["logits"]', "5"),
            "gradient_checkpointing": ("true",),
            "model_type": ('"codeclade-refiner"', '""', '"\\u0441odeclade"', '"CODECLADE"'),
            "scheme": ('"token "', '"Token"', '""', '"\\u0000"', '"\\ud800"', '["token"]'),
        }.items():
            for text in texts:
                yield self.field("transformer", name, text, None)
        for part, name, texts in (
            ("vq_model", "_use_default_values", ('["norm_num_groups"]', '["a"]', "5", "[5]")),
            ("vq_model", "_class_name", ('"AutoencoderKL"', '"VQModel2"', '"../x"', '["a", "b"]')),
            ("vq_model", "_diffusers_version", ('"99"', '"x"', '"0.0.1"', '"1" * 9')),
            ("vq_model", "force_upcast", ("true", "1", "null", '"true"')),
            ("vq_model", "scaling_factor", ("2", '"a"', "NaN")),
            ("vq_model", "quantization_config", ('{"quant_method": "quanto"}', "[]", "null")),
            ("vq_model", "decoder", ("5",)),
            ("vq_model", "dtype", ('"float32"', '"x"')),
            ("cluster_map", "method", ('"\\ud800"', '"a\\nb"', '""', f'"{"m" * 4096}"', "null")),
            ("cluster_map", "num_clusters", ("32", "1", "11", "13")),
            ("cluster_map", "codebook_dim", ("9", "1", "131072")),
            ("cluster_map", "mapping", ("[1]", "5")),
            ("cluster_map", "device", ('"cuda"',)),
        ):
            for text in texts:
                yield self.field(part, name, text, None)

    def index(self) -> Iterator[Load]:
        """model_index.json: parts that are none, classes of others, names that lead elsewhere."""
        for name, texts in {
            "scheduler": ('["diffusers", "DDIMScheduler"]', '["os", "system"]', "[null, null]"),
            "safety_checker": ('["trap", "Trap"]', '["builtins", "exec"]'),
            "../up": ('["codeclade", "VQModel"]',),
            "a/b": ('["diffusers", "AutoencoderKL"]',),
            "self": ("5", '["codeclade", "VQModel"]'),
            "cls": ("5",),
            "kwargs": ("{}", "5"),
            "components": ("5", "{}"),
            "config": ("5",),
            "device": ('"cuda"',),
            "__init__": ("5",),
            "pretrained_model_name_or_path": ('"/etc"',),
            "trust_remote_code": ("true",),
            "custom_pipeline": ('"trap"', '"https://localhost:1/x.py"'),
            "cache_dir": ('"/"',),
            "_name_or_path": ('"../.."', "5"),
            "_diffusers_version": ('"99.0"', '"x"', "null"),
            "_ignore_files": ('["model.safetensors"]', "5"),
            "_module": ('"trap"', "[]"),
            "_class_name": (
                '"CodecladeTextPipeline"',
                '"DiTPipeline"',
                '"DiffusionPipeline"',
                '"PipelineFiles"',
                '"../x"',
                '"os.system"',
                '["pipeline", "CodecladePipeline"]',
                '["trap", "Trap"]',
                '["codeclade", "Codeclade\\u0050ipeline"]',
                '"C\\u043edecladePipeline"',
                '"\\ud800"',
            ),
            "vq_model": (
                '["codeclade", "VQModel", "x"]',
                '["diffusers", "VQModel"]',
                '["codeclade ", "VQModel"]',
                '["codeclade.components.vq_model", "VQModel"]',
                '["modeling_codeclade_vq_model", "VQModel"]',
                '["modeling_codeclade_../trap", "VQModel"]',
                '["diffusers_modules.local.trap", "VQModel"]',
                '["codeclade\\u0000", "VQModel"]',
                '{"0": "codeclade", "1": "VQModel"}',
                '["codeclade", "CodecladeTransformer"]',
            ),
            "refiner": ('["codeclade", "Refiner"]', "null", "[null]", '[null, "Refiner"]', "false"),
            "guidance_schedule": (
                '"linear"',
                '{"name": "linear"}',
                '{"name": "linear", "start": 1e7}',
                '{"name": "linear", "start": -1}',
                '{"name": "linear", "start": 5e-324}',
                '{"name": "linear", "start": true}',
                '{"name": "interval", "start": 0.9, "end": 0.1}',
                '{"name": "cosine", "power": -1000}',
                '{"name": "cosine_power", "power": 0}',
                '{"name": "cosine_power", "power": -3}',
                '{"name": "cosine_power", "power": 1e6}',
                '{"name": "step", "self": 5}',
                '{"name": "linear", "scale": 3, "step": 1}',
                '{"Name": "linear"}',
                '["linear"]',
                '"__class__"',
                "false",
                "0",
            ),
        }.items():
            for text in texts:
                change = partial(set_field, "", name, text)
                trapped = partial(with_trap, change)
                yield self.case(f"index {name}={text[:50]}", trapped, None, "index")

    def labels(self) -> Iterator[Load]:
        """Names of classes."""
        many = json.dumps({str(i): "x" for i in range(2**20 + 1)})
        for what, text, refused in (
            ("twice by two writings", '{"1": "a", "01": "b"}', None),
            ("Arabic digits", '{"\\u0661": "a"}', None),
            ("wide digits", '{"\\uff11": "a"}', None),
            ("a superscript", '{"\\u00b2": "a"}', True),
            ("a plus", '{"+1": "a"}', True),
            ("a space", '{" 1": "a"}', True),
            ("nine digits", '{"000000001": "a"}', True),
            ("a minus zero", '{"-0": "a"}', True),
            ("class 16", '{"16": "a"}', True),
            ("lines", '{"1": "a\\nb"}', None),
            ("the other direction", '{"1": "\\u202eabc"}', None),
            ("a surrogate", '{"1": "\\ud800"}', None),
            ("nothing", '{"1": ""}', None),
            ("one name for two", '{"1": "a", "2": "a"}', None),
            ("over a million", many, True),
            ("a key twice", '{"1": "a", "1": "b"}', True),
            ("a list", '["a", "b"]', True),
            ("null", "null", None),
            ("false", "false", True),
        ):
            change = partial(set_field, "", "id2label", text)
            yield self.case(f"id2label {what}", change, refused, "index")


def works_or_says(loaded) -> None:
    """Fails unless a pipeline makes an image, or refuses to in one sentence."""
    try:
        works(loaded)
    except ValueError as error:
        assert len(str(error)) <= LONGEST and "\n" not in str(error), "no sentence"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def replace(path: str, content: bytes | str, copy: Path) -> None:
    rewrite(copy / path, content)


def with_trap(change: Callable[[Path], object], copy: Path) -> None:
    """A change, and beside it code under every name that it may be looked for."""
    change(copy)
    code = TRAP.format(place=str(copy.parent / "code ran"))
    for name in ("trap.py", "pipeline.py", "modeling_codeclade_vq_model.py", "vq_model/trap.py"):
        rewrite(copy / name, code)
