"""Whole published files at tiny size, and the commands that read them."""

import random
from pathlib import Path

import torch
from safetensors.torch import save_file

from builders import build_transformer, build_vq
from codeclade.checkpoints.iar2 import FAMILY as IAR2
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

Case = tuple[str, list[str], bool]
CODES, CLUSTERS = 64, 24
VQ = {
    "block_out_channels": (32, 32),
    "latent_channels": 32,
    "norm_num_groups": 32,
    "codebook_dim": 8,
}


class Published:
    """Whole files in a folder; mutated ones are put beside them."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random = folder, random.Random(seed)
        self.count = 0
        vq = build_vq(codebook_size=CODES, **VQ)
        self.vq = LLAMAGEN.tokenizer.published_weights(vq)
        gpt = build_transformer(vocab_size=CODES, num_classes=10)
        self.gpt = LLAMAGEN.generator.published_weights(gpt)
        clusters = build_transformer(vocab_size=CLUSTERS, num_classes=10, scheme="cluster")
        self.clusters = LLAMAGEN.generator.published_weights(clusters)
        self.index = torch.arange(CODES) % CLUSTERS
        pairs = {"codebook_size": 16, "detail_codebook_size": 40}
        self.vq2 = IAR2.tokenizer.published_weights(build_vq(**VQ, **pairs))
        for name in ("vq", "gpt", "clusters", "vq2"):
            torch.save({"model": getattr(self, name)}, folder / f"{name}.pt")
            save_file(getattr(self, name), folder / f"{name}.safetensors")
        torch.save(self.index, folder / "index.pt")

    def new(self, ending: str) -> Path:
        self.count += 1
        return self.folder / f"m{self.count}{ending}"

    def torch_file(self, content, **options) -> Path:
        path = self.new(".pt")
        torch.save(content, path, **options)
        return path

    def llamagen(self, gpt=None, vq=None, *more) -> list[str]:
        paths = {"--vq": vq or self.folder / "vq.pt", "--gpt": gpt or self.folder / "gpt.pt"}
        given = [str(part) for pair in paths.items() for part in pair]
        return ["convert", "llamagen", *given, "--image-size", "8", "--heads", "2", *more]

    def dcpe(self, index) -> list[str]:
        paths = ["--vq", self.folder / "vq.pt", "--gpt", self.folder / "clusters.pt"]
        paths += ["--idx-to-cluster", index, "--image-size", "8", "--heads", "2"]
        return ["convert", "dcpe", *map(str, paths)]

    def iar(self, mapping) -> list[str]:
        paths = ["--vq", self.folder / "vq.pt", "--gpt", self.folder / "gpt.pt"]
        return ["convert", "iar", *map(str, [*paths, "--mapping", mapping]), "--heads", "2"]

    def cluster(self, source, *more) -> list[str]:
        return ["cluster", str(source), "--clusters", "4", *more]
