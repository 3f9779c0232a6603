"""Features of the captions beside code shards, made once, as LlamaGen has them (arXiv 2406.06525).

A T5 encoder reads every caption; training then needs neither the encoder nor its memory. The format
is in data/captioned.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.atomic import new_file, write_json
from ..data.captioned import TEXT_HEADER
from ..data.codes import Codes, codes_folder
from .processes import all_processes
from .recipe import PRECISIONS, check_settings

STORED = torch.float16  # of features, which T5 gives in float32 and training reads in bfloat16


@dataclass(kw_only=True)
class TextRecipe:
    """Settings of `codeclade encode-text`.

    Raises:
        ValueError: a count below 1, or an unknown precision.
    """

    text_encoder: str  # folder or Hub id of a T5 encoder with its tokenizer
    prefix_length: int = 120  # features of a caption, at most; longer ones are cut
    batch_size: int = 64  # captions that go through the encoder at once
    mixed_precision: str = "no"  # no, fp16, bf16

    def __post_init__(self):
        check_settings(self, "prefix_length", "batch_size")


def encode_text(recipe: TextRecipe, codes: str | Path) -> None:
    """Write features of all captions into folders of code shards; several processes share them.

    Finished shards of an interrupted run with the same recipe are kept.

    Args:
        codes: folder with train/ and validation/, encoded with a `caption_column`.

    Raises:
        ValueError: codes without captions, or an encoder that is not there.
    """
    folders = [codes_folder(codes) / split for split in ("train", "validation")]
    shards = [Codes(folder) for folder in folders]
    for one in shards:
        one.captions(0)  # what is missing is said before the encoder is loaded
    encoder = TextEncoder(recipe)
    for one in shards:
        _encode_split(recipe, encoder, one)


class TextEncoder:
    """A T5 encoder and its tokenizer, on the device of this process."""

    def __init__(self, recipe: TextRecipe):
        from transformers import AutoTokenizer, T5EncoderModel

        self.length, self.precision = recipe.prefix_length, PRECISIONS[recipe.mixed_precision]
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(recipe.text_encoder)
            model = T5EncoderModel.from_pretrained(recipe.text_encoder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text_encoder={recipe.text_encoder} is no folder or repository with a T5 encoder "
                f"and its tokenizer ({' '.join(str(error).split())[:80]})."
            ) from error
        device = all_processes().device if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(device)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[Tensor]:
        """Features (n, C) of every caption, n up to the length of the prefix."""
        tokens = self.tokenizer(
            captions,
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        device, dtype = self.model.device.type, self.precision
        with torch.autocast(device, dtype, enabled=dtype is not None):
            output = self.model(tokens.input_ids, attention_mask=tokens.attention_mask)
        found = output.last_hidden_state.to("cpu", STORED)
        masks = tokens.attention_mask.bool().cpu()
        return [row[mask] for row, mask in zip(found, masks, strict=True)]


def _encode_split(recipe: TextRecipe, encoder: TextEncoder, codes: Codes) -> None:
    # As with codes: the header says what is being made, and under its final name that all is there.
    processes, folder = all_processes(), codes.folder
    header = {
        "text_encoder": recipe.text_encoder,
        "prefix_length": recipe.prefix_length,
        "text_dim": encoder.model.config.d_model,
        "mixed_precision": recipe.mixed_precision,
        "shards": [f"text-{i:05d}.safetensors" for i in range(len(codes.shards))],
    }
    partial, final = folder / "text.partial.json", folder / TEXT_HEADER
    keep = any(path.is_file() and _read(path) == header for path in (partial, final))
    processes.wait_for_everyone()
    if processes.is_main_process:
        final.unlink(missing_ok=True)
        write_json(partial, header)
    processes.wait_for_everyone()

    # Every process takes every n-th shard, so that none is written twice.
    mine = slice(processes.process_index, None, processes.num_processes)
    hidden = not processes.is_main_process
    for number, name in tqdm(list(enumerate(header["shards"]))[mine], "text", disable=hidden):
        if keep and (folder / name).is_file():
            continue
        # Padding is not kept: a caption has as many rows as it has words.
        captions, rows = codes.captions(number), []
        for start in range(0, len(captions), recipe.batch_size):
            rows += encoder(captions[start : start + recipe.batch_size])
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        with new_file(folder / name) as file:
            save_file({"features": torch.cat(rows), "lengths": lengths}, file)
    processes.wait_for_everyone()
    if processes.is_main_process:
        partial.replace(final)
    processes.wait_for_everyone()


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
