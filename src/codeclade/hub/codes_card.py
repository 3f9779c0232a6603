"""Dataset cards of code shards."""

import yaml

from .card import TAGS, inline
from .repository import Repository


def render_codes_card(repository: Repository, repo_id: str, license: str | None = None) -> str:
    """README.md of a dataset repository of code shards, YAML metadata included.

    Args:
        repository: the checked folder.
        repo_id: "user/name".
        license: a Hub license name; None claims none.
    """
    # Splits come from one tokenizer and one recipe, so the first header speaks for all; the table
    # shows what differs.
    headers = repository.codes
    first = next(iter(headers.values()))
    details = first.detail_codebook_size
    metadata = {
        "pretty_name": repo_id.split("/")[-1],
        "library_name": "codeclade",
        "tags": [*TAGS, "image-codes"],
        "viewer": False,  # safetensors are no table
    } | ({"license": license} if license else {})
    # The shapes are written out because the shards are the only documentation that a reader without
    # codeclade has.
    tokens, side = first.grid_size**2, first.grid_size
    shape = f"(n, V, {tokens}{', 2' if details else ''})"
    codes = f"{first.codebook_size:,} codes"
    codes += f" and {details:,} detail codes" if details else ""
    # Where the images came from and what their classes are called is text of others: escaped.
    # Beyond a hundred names nobody reads on, and ImageNet's thousand would bury the rest.
    data = inline(first.recipe.get("data", "unknown origin"))
    rows = "\n".join(
        f"| {split or 'all'} | {one.images:,} | {one.views} | {len(one.shards)} |"
        for split, one in headers.items()
    )
    names = ", ".join(map(inline, first.class_names[:100]))
    more = " ..." if len(first.class_names) > 100 else ""
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {repo_id.split("/")[-1]}

Images of {data} as codes of a VQ tokenizer ({codes}, {side} x {side} tokens), so that
generators train without the images.

```sh
codeclade train-generator --codes {repo_id} --tokenizer TOKENIZER --recipe recipe.yaml --out run
```

| split | images | views | shards |
| --- | --- | --- | --- |
{rows}

`codes.json` says what made the shards, the codebook's fingerprint included: training refuses
another tokenizer. Every `codes-*.safetensors` holds `ids` {shape}, V random views of every image
in raster order, and `labels` (n,), indices of the class names.

Classes ({len(first.class_names)}): {names}{more}.

{"" if license else "No license was stated; the terms of the images apply."}
"""
