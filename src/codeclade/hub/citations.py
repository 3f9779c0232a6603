"""The papers behind a repository and this package itself, in BibTeX."""

from typing import Any

from .. import __version__
from ..checkpoints.papers import PAPERS

TITLE = "codeclade: clustered codebooks for autoregressive image generation"
AUTHORS = "The codeclade developers"


def cited_keys(parts: dict[str, Any], published_as: str | None = None) -> list[str]:
    """Keys of PAPERS whose methods the components use.

    Args:
        parts: a repository's components (`class_name`, `config`) by name.
        published_as: the project that published the weights, where one did.
    """
    configs = {part.class_name: part.config for part in parts.values()}
    # Every component follows LlamaGen's architecture, so it is always cited. A project without a
    # paper here gives a key that the last line drops.
    keys = {"llamagen", (published_as or "").lower()}
    method = configs.get("ClusterMap", {}).get("method", "")
    if method.startswith(("masc", "dcpe")):  # one construction, published twice
        keys |= {"masc", "dcpe"}
    if method.startswith("balanced"):
        keys.add("iar")
    if configs.get("CodecladeTransformer", {}).get("scheme") == "semantic_detail":
        keys.add("iar2")
    if configs.get("VQModel", {}).get("detail_codebook_size"):
        keys.add("iar2")
    refiner = configs.get("Refiner")
    if refiner:
        # Direction says whose refiner it is; one that reads the generator's states is MASC's too.
        keys.add("dcpe" if refiner["causal"] else "ctf")
        keys |= {"masc"} if refiner["context_dim"] else set()
    return [key for key in PAPERS if key in keys]


def cited_papers(parts: dict[str, Any], published_as: str | None = None) -> str:
    """BibTeX of the papers of `cited_keys`, and of this package last."""
    entries = [_bibtex(*PAPERS[key]) for key in cited_keys(parts, published_as)]
    entries.append(
        f"@software{{codeclade,\n  title = {{{TITLE}}},\n  author = {{{{{AUTHORS}}}}},\n"
        f"  version = {{{__version__}}},\n  license = {{MIT}}\n}}"
    )
    return "```bibtex\n" + "\n".join(entries) + "\n```"


def _bibtex(key: str, title: str, authors: str, number: str) -> str:
    return (
        f"@article{{{key},\n  title = {{{title}}},\n  author = {{{authors}}},\n"
        f"  journal = {{arXiv preprint arXiv:{number}}},\n  year = {{20{number[:2]}}}\n}}"
    )
