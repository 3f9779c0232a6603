"""Model and dataset cards, rendered from what a folder holds; nothing is claimed that is not there.

Beside weights and configs a folder may hold `provenance.json` (written by `convert` and `cluster`),
`training.json` (by the training commands), `evaluation.json` (measured numbers with their
protocol), `recipe.yaml` and `samples.png`.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..components.cluster_map import ClusterMap
from .citations import cited_papers
from .repository import Part, Repository

SCHEMES = {
    "token": "codebook ids, one by one",
    "cluster": "clusters of codebook ids; members are drawn afterwards",
    "cluster_token": "a cluster, then an id of it, in one model",
    "semantic_detail": "pairs of a semantic and a detail code",
}
NOTES = {
    "VQModel": "VQ tokenizer: images to codebook ids and back.",
    "ClusterMap": "Cluster map: which cluster every id of a codebook belongs to.",
    "CodecladeTransformer": "Autoregressive generator over the codes of an image.",
    "Refiner": "Refiner: a grid of clusters to codebook ids.",
}
EVALUATION_KEYS = ("metric", "value", "dataset", "protocol")


def render_card(repository: Repository, repo_id: str, licence: str | None = None) -> str:
    """README.md of a repository, YAML metadata included.

    Args:
        repository: the checked folder.
        repo_id: "user/name", for the lines that load it.
        licence: a Hub licence name; None: what provenance.json says, else none is claimed.

    Raises:
        ValueError: an evaluation.json that leaves out the protocol of a number.
    """
    if repository.kind == "codes":
        return _codes_card(repository, repo_id, licence)
    found = {name: _json_file(repository, f"{name}.json") for name in ("provenance", "training")}
    results = read_evaluation(repository)
    sections = [
        _title(repository, repo_id),
        _picture(repository),
        _use(repository, repo_id),
        _contents(repository),
        _training(repository, found["training"]),
        _evaluation(results, found["training"]),
        _licence(found["provenance"], licence),
        "## Citation\n\n" + cited_papers(repository.parts, found["provenance"] or {}),
    ]
    metadata = _metadata(repository, repo_id, licence, found, results)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def check_front_matter(text: str, name: str) -> dict[str, Any]:
    """The YAML metadata at the start of a card.

    Raises:
        ValueError: metadata that is no YAML mapping, as the Hub would refuse it.
    """
    if not text.startswith("---\n"):
        return {}
    block = text[4:].split("\n---", 1)[0]
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of {name} is no valid YAML: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata of {name} must be a YAML mapping, got {block[:40]!r}.")
    return metadata


def read_evaluation(repository: Repository) -> list[dict[str, Any]]:
    """Results of evaluation.json, each a number with the protocol it was measured under."""
    results = _json_file(repository, "evaluation.json") or []
    for result in results:
        missing = [key for key in EVALUATION_KEYS if not result.get(key) and result.get(key) != 0]
        if missing:
            raise ValueError(
                f"evaluation.json has a result without {', '.join(missing)}; every number needs "
                f"{', '.join(EVALUATION_KEYS)}."
            )
    return results


def _json_file(repository: Repository, name: str) -> Any:
    path = repository.folder / name
    return json.loads(path.read_text()) if path.is_file() else None


def _metadata(
    repository: Repository, repo_id: str, licence: str | None, found: dict, results: list
) -> str:
    provenance = found["provenance"] or {}
    scheme = _config(repository, "transformer").get("scheme")
    method = _config(repository, "cluster_map").get("method")
    tags = ["codeclade", "autoregressive-image-generation", "vector-quantization"]
    tags += [tag for tag in (provenance.get("method", "").lower(), method, scheme) if tag]
    text = repository.class_name == "CodecladeTextPipeline"
    data = ModelCardData(
        license=licence or provenance.get("license"),
        license_name=None if licence else provenance.get("license_name"),
        license_link=None if licence else provenance.get("license_link"),
        library_name="transformers" if _is_transformers(repository) else "diffusers",
        pipeline_tag=("text-to-image" if text else "unconditional-image-generation")
        if repository.kind == "pipeline"
        else None,
        tags=list(dict.fromkeys(tags)),
        datasets=provenance.get("datasets"),
        model_name=repo_id.split("/")[-1],
        eval_results=[_eval_result(result) for result in results] or None,
    )
    return data.to_yaml().strip()


def _is_transformers(repository: Repository) -> bool:
    return repository.class_name in ("CodecladeTransformer", "Refiner")


def _eval_result(result: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="unconditional-image-generation",
        dataset_type=result.get("dataset_id") or result["dataset"],
        dataset_name=result["dataset"],
        dataset_split=result.get("split"),
        metric_type=result["metric"].lower().replace(" ", "_"),
        metric_name=f"{result['metric']} ({result['protocol']})",
        metric_value=result["value"],
    )


def _config(repository: Repository, part: str) -> dict[str, Any]:
    return repository.parts[part].config if part in repository.parts else {}


def _title(repository: Repository, repo_id: str) -> str:
    name = repo_id.split("/")[-1]
    if repository.kind == "model":
        return f"# {name}\n\n{NOTES[repository.class_name]}"
    config, vq = _config(repository, "transformer"), _config(repository, "vq_model")
    what = "caption" if config["text_dim"] else "class"
    side = config["grid_size"] * 2 ** (len(vq["block_out_channels"]) - 1)
    predicts = SCHEMES[config["scheme"]]
    return (
        f"# {name}\n\nImages of {side} x {side} pixels from a {what}: VQ tokenizer, "
        f"{'cluster map, ' if 'cluster_map' in repository.parts else ''}generator. "
        f"The generator predicts {predicts}."
    )


def _picture(repository: Repository) -> str:
    if not (repository.folder / "samples.png").is_file() and "samples.png" not in repository.files:
        return ""
    return "![Samples, one class a row](samples.png)"


def _use(repository: Repository, repo_id: str) -> str:
    cls = repository.class_name
    if repository.kind == "model":
        lines = f'from codeclade import {cls}\n\nmodel = {cls}.from_pretrained("{repo_id}")'
        if cls == "ClusterMap":
            lines = (
                f'from codeclade import ClusterMap\n\ncluster_map = ClusterMap.from_pretrained("'
                f'{repo_id}")\nclusters = cluster_map.mapping[ids]  # any shape'
            )
        return f"## Use\n\n```python\n{lines}\n```"
    labels = repository.index.get("id2label") or {}
    names = [labels[label].split(",")[0] for label in sorted(labels, key=int)]
    call = f'pipe("{names[0]}")' if names else "pipe(0)"
    if cls == "CodecladeTextPipeline":
        there = "text_encoder" in repository.parts
        call = 'pipe("a dog on a beach")' if there else "pipe(prompt_embeds=features)"
    text = f"""## Use

```python
from codeclade import {cls}

pipe = {cls}.from_pretrained("{repo_id}")
image = {call}.images[0]
```

Without codeclade, by diffusers and the code in this repository (pin `revision` to a commit you
have read):

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
```"""
    if names:
        shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" * (len(names) > 100))
        text += f"\n\nClasses ({len(names)}): {shown}."
    return text


def _contents(repository: Repository) -> str:
    rows = ["## Contents", "", "| part | what | parameters |", "| --- | --- | --- |"]
    for name, part in repository.parts.items():
        count = "" if part.class_name == "ClusterMap" else f"{part.parameters:,}"
        rows.append(f"| `{name}` | {_describe(repository, name, part)} | {count} |")
    if repository.kind == "pipeline":
        settings = ", ".join(
            f"{name.replace('_', ' ')} {repository.index[name]}"
            for name in ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")
            if repository.index.get(name) is not None
        )
        rows += ["", f"Sampling defaults: {settings}."]
    return "\n".join(rows)


def _describe(repository: Repository, name: str, part: Part) -> str:
    """One component in one line."""
    config = part.config
    if part.class_name == "VQModel":
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        details = config.get("detail_codebook_size")
        more = f" and {details:,} detail codes" if details else ""
        return (
            f"codebook of {config['codebook_size']:,} codes{more}, {config['codebook_dim']} "
            f"dimensions, compared by cosine; one token for {factor} x {factor} pixels"
        )
    if part.class_name == "ClusterMap":
        model = repository.kind == "model"
        return describe_map(repository.folder if model else repository.folder / name)
    if part.class_name == "CodecladeTransformer":
        return (
            f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, "
            f"{config['num_attention_heads']} heads; predicts {SCHEMES[config['scheme']]} "
            f"(vocabulary {config['vocab_size']:,}) on a grid of {config['grid_size']} x "
            f"{config['grid_size']}"
        )
    if part.class_name == "Refiner":
        return (
            f"{config['num_hidden_layers']} layers, width {config['hidden_size']}; "
            f"{config['num_clusters']:,} clusters to {config['codebook_size']:,} ids"
        )
    return part.class_name


def describe_map(folder: Path) -> str:
    """Size and cluster statistics of a saved ClusterMap in one line."""
    cluster_map = ClusterMap.from_pretrained(folder)
    sizes = cluster_map.sizes
    tree = "with the full merge tree" if len(cluster_map.merges) else "no merge tree"
    return (
        f"{cluster_map.codebook_size:,} codes of {cluster_map.config.codebook_dim} dimensions in "
        f"{cluster_map.num_clusters:,} clusters by {cluster_map.config.method}; "
        f"{int(sizes.min())} to {int(sizes.max())} members, median {int(sizes.median())}, "
        f"{int((sizes == 1).sum()):,} of one member; {tree}"
    )


def _training(repository: Repository, training: dict | None) -> str:
    recipe = repository.folder / "recipe.yaml"
    if training:
        settings = yaml.safe_dump(training["recipe"], sort_keys=False).strip()
        return (
            f"## Training\n\n{training['steps']:,} steps in {training['seconds'] / 60:,.0f} "
            f"minutes, {training['machine']}.\n\n<details><summary>Recipe of the "
            f"{training['stage']}</summary>\n\n```yaml\n{settings}\n```\n\n</details>"
        )
    if recipe.is_file():
        return "## Training\n\nThe recipe is in [recipe.yaml](recipe.yaml)."
    return ""


def _evaluation(results: list[dict], training: dict | None) -> str:
    rows = [
        f"| {result['metric']} | {result['value']}{result.get('unit', '')} | {result['dataset']} | "
        f"{result['protocol']} |"
        for result in results
    ]
    logged = (training or {}).get("logged", {})
    text = "## Evaluation\n\n"
    if rows:
        text += "| metric | value | data | protocol |\n| --- | --- | --- | --- |\n"
        text += "\n".join(rows)
    if logged:
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in logged.items())
        text += ("\n\n" if rows else "") + f"At the end of training: {numbers}."
    return text if rows or logged else text + "Nothing was measured for this repository."


def _licence(provenance: dict | None, licence: str | None) -> str:
    lines = ["## Licence and provenance", ""]
    if provenance and provenance.get("statement"):
        lines.append(provenance["statement"])
    if provenance and provenance.get("files"):
        lines += ["", "Made from:", ""]
        lines += [f"- `{one['name']}` ({one['bytes']:,} bytes)" for one in provenance["files"]]
    if not (licence or (provenance or {}).get("license")):
        lines.append("No licence was stated for these weights; ask their owner.")
    lines += ["", "The code in this repository is codeclade's (MIT)."]
    return "\n".join(lines)


def _codes_card(repository: Repository, repo_id: str, licence: str | None) -> str:
    """Card of a dataset repository of code shards."""
    folder = repository.folder
    splits = [s for s in ("train", "validation") if (folder / s / "codes.json").is_file()] or [""]
    headers = {s: json.loads((folder / s / "codes.json").read_text()) for s in splits}
    first = next(iter(headers.values()))
    pair = first["detail_codebook_size"]
    rows = "\n".join(
        f"| {split or 'all'} | {h['images']:,} | {h['views']} | {len(h['shards'])} |"
        for split, h in headers.items()
    )
    classes = first["class_names"]
    metadata = {
        "pretty_name": repo_id.split("/")[-1],
        "tags": ["codeclade", "image-codes", "vector-quantization"],
    } | ({"license": licence} if licence else {})
    tokens = first["grid_size"] ** 2
    shape = f"(n, V, {tokens}{', 2' if pair else ''})"
    codes = f"{first['codebook_size']:,} codes" + (f" and {pair:,} detail codes" if pair else "")
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {repo_id.split("/")[-1]}

Images as codes of a VQ tokenizer ({codes}, {first["grid_size"]} x {first["grid_size"]} tokens), so
that generators train without the images.

```sh
codeclade train-generator --codes {repo_id} --tokenizer TOKENIZER --recipe recipe.yaml --out run
```

| split | images | views | shards |
| --- | --- | --- | --- |
{rows}

`codes.json` says what made the shards, the codebook's fingerprint included: training refuses
another tokenizer. Every `codes-*.safetensors` holds `ids` {shape}, V random views of every image
in raster order, and `labels` (n,), indices of the class names.

Classes ({len(classes)}): {", ".join(classes[:100])}{" ..." if len(classes) > 100 else ""}.

{"" if licence else "No licence was stated; the terms of the images apply."}
"""
