"""Model cards, rendered from what a folder holds; nothing is claimed that is not there.

Beside weights and configs a folder may hold `provenance.json` (written by `convert` and `cluster`),
`training.json` (by the training commands), `evaluation.json` (by `evaluate`: numbers with their
protocol), `recipe.yaml` and `samples.png`. Class names and other text from these files is escaped:
it shows as text and never as Markdown.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..components.cluster_map import ClusterMap
from ..components.labels import ids_by_name
from ..components.schemes import SCHEMES
from ..data.hub_ids import is_hub_id
from ..data.records import EvaluationRecord, Provenance, TrainingRecord
from .citations import cited_papers
from .repository import CONFIG_CLASSES, SEARCH, Part, Repository, variant_of

TAGS = ("codeclade", "autoregressive-image-generation", "vector-quantization")  # of all cards
NOTES = {
    "VQModel": "VQ tokenizer: images to codebook ids and back.",
    "ClusterMap": "Cluster map: which cluster every id of a codebook belongs to.",
    "CodecladeTransformer": "Autoregressive generator over the codes of an image.",
    "Refiner": "Refiner: a grid of clusters to codebook ids.",
}
LONGEST = 300  # characters of a text from a file


def render_card(repository: Repository, repo_id: str, license: str | None = None) -> str:
    """README.md of a repository, YAML metadata included.

    Args:
        repository: the checked folder.
        repo_id: "user/name", for the lines that load it.
        license: a Hub license name; None: what provenance.json says, else none is claimed.
    """
    # In the order of a reader's questions: what is it, how does it look, how is it run, can it be
    # trusted. A section with nothing to say is empty text and drops out below.
    sections = [
        _title(repository, repo_id),
        _picture(repository),
        _use(repository, repo_id),
        _contents(repository),
        _training(repository),
        _evaluation(repository.evaluation, repository.training),
        _search(repository),
        _license(repository.provenance, license),
        "## Citation\n\n" + cited_papers(repository.parts, repository.provenance.method),
    ]
    metadata = _metadata(repository, repo_id, license)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def inline(text: Any, longest: int = LONGEST) -> str:
    """Text as one line that Markdown and HTML leave alone, cut at `longest` characters."""
    text = " ".join(str(text).split())
    text = text if len(text) <= longest else text[:longest] + " ..."
    # & goes first, as what replaces the others holds one. An underscore inside a word is left
    # alone, because Markdown does the same and names stay readable in the source.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#]|\b_|_\b)", r"\\\1", text)


def check_front_matter(text: str, name: str) -> dict[str, Any]:
    """The YAML metadata at the start of a card.

    Raises:
        ValueError: metadata that is no YAML mapping, as the Hub would refuse it.
    """
    if not text.startswith("---\n"):
        return {}
    # The line break before the block is kept, so that an empty block ends where it begins.
    block, end, _ = text[3:].partition("\n---")
    if not end:
        raise ValueError(f"the metadata of {name} has no end; close it with a line of ---.")
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of {name} is no valid YAML: {error}") from None
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata of {name} must be a YAML mapping, got {block[:40]!r}.")
    return metadata


def _metadata(repository: Repository, repo_id: str, license: str | None) -> str:
    provenance, training = repository.provenance, repository.training
    scheme = _config(repository, "transformer").get("scheme")
    method = _config(repository, "cluster_map").get("method")
    tags = [*TAGS]
    tags += [tag for tag in ((provenance.method or "").lower(), method, scheme) if tag]
    tags += ["refiner"] if "refiner" in repository.parts else []
    datasets = [str(one) for one in provenance.datasets or []]
    datasets += [training.data] if training and is_hub_id(training.data) else []
    task = _task(repository)
    # A license given by hand replaces the stored one with its name and link: half of each would be
    # a license that nobody granted.
    data = ModelCardData(
        license=license or provenance.license,
        license_name=None if license else provenance.license_name,
        license_link=None if license else provenance.license_link,
        library_name=_library(repository),
        pipeline_tag=task if repository.kind == "pipeline" else None,
        tags=list(dict.fromkeys(tags)),
        datasets=datasets or None,
        model_name=repo_id.split("/")[-1],
        eval_results=[_eval_result(one, task) for one in repository.evaluation] or None,
    )
    return data.to_yaml().strip()


def _task(repository: Repository) -> str:
    text = repository.class_name == "CodecladeTextPipeline"
    return "text-to-image" if text else "unconditional-image-generation"


def _library(repository: Repository) -> str:
    """The library whose usual lines load the repository."""
    if repository.kind == "pipeline":
        return "diffusers"
    return "transformers" if repository.class_name in CONFIG_CLASSES else "codeclade"


def _eval_result(result: EvaluationRecord, task: str) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=result.dataset_id or result.dataset,
        dataset_name=result.dataset,
        dataset_split=result.split,
        metric_type=result.metric.lower().replace(" ", "_"),
        metric_name=f"{result.metric} ({result.protocol})",
        metric_value=result.value,
    )


def _config(repository: Repository, part: str) -> dict[str, Any]:
    return repository.parts[part].config if part in repository.parts else {}


def _title(repository: Repository, repo_id: str) -> str:
    name = repo_id.split("/")[-1]
    if repository.kind == "model":
        return f"# {name}\n\n{NOTES[repository.class_name]}"
    config, vq = _config(repository, "transformer"), _config(repository, "vq_model")
    what = "caption" if config.get("text_dim") else "class"
    side = config["grid_size"] * 2 ** (len(vq["block_out_channels"]) - 1)
    parts = {"cluster_map": "cluster map", "transformer": "generator", "refiner": "refiner"}
    held = ", ".join(word for name, word in parts.items() if name in repository.parts)
    # Weights of a later version may have a scheme that this one cannot describe: its bare word is
    # better than no card.
    scheme = SCHEMES.get(config["scheme"])
    predicts = scheme.description if scheme else config["scheme"]
    if scheme and scheme.predicts_clusters:
        refined = "refiner" in repository.parts
        predicts += ", which the refiner turns into ids" if refined else "; members are drawn after"
    return (
        f"# {name}\n\nImages of {side} x {side} pixels from a {what}: VQ tokenizer, {held}. "
        f"The generator predicts {predicts}."
    )


def _picture(repository: Repository) -> str:
    return "![Samples, one class a row](samples.png)" if "samples.png" in repository.files else ""


def _use(repository: Repository, repo_id: str) -> str:
    cls = repository.class_name
    # Where only a variant was saved, loading without its name finds no file: the lines below are to
    # be copied, so they must run.
    variant = next(
        filter(None, (variant_of(part.folder) for part in repository.parts.values())), ""
    )
    given = f'"{repo_id}"' + (f', variant="{variant}"' if variant else "")
    # One component is loaded by its class; nothing else is needed.
    if repository.kind == "model":
        lines = f"from codeclade import {cls}\n\nmodel = {cls}.from_pretrained({given})"
        if cls == "ClusterMap":
            lines = (
                "from codeclade import ClusterMap\n\n"
                f"cluster_map = ClusterMap.from_pretrained({given})\n"
                "clusters = cluster_map.to_clusters(ids)  # of any shape"
            )
        return f"## Use\n\n```python\n{lines}\n```"
    # A pipeline loads with codeclade, and without it by the code beside the weights.
    text = f"""## Use

```python
from codeclade import {cls}

pipe = {cls}.from_pretrained({given})
image = {_call(repository)}.images[0]
```

Without codeclade, by diffusers and the code in this repository (pin `revision` to a commit you
have read):

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({given}, trust_remote_code=True)
```

(diffusers saves no code: what is saved from there loads where codeclade is installed.)"""
    # The names that a call takes; a hundred of them are enough to see what they are like.
    labels = repository.index.get("id2label") or {}
    if labels:
        names = [inline(labels[label].split(",")[0]) for label in sorted(labels, key=int)]
        more = f" and {len(names) - 100} more" if len(names) > 100 else ""
        text += f"\n\nClasses ({len(names)}): {', '.join(names[:100])}{more}."
    return text


def _call(repository: Repository) -> str:
    """A call that runs, with the first class whose name is clear."""
    if repository.class_name == "CodecladeTextPipeline":
        there = "text_encoder" in repository.parts
        return 'pipe("a dog on a beach")' if there else "pipe(prompt_embeds=features)"
    labels = repository.index.get("id2label") or {}
    # A name that several classes share, or that needs quoting, would make the first line that
    # anybody copies an error.
    clear = {name: ids for name, ids in ids_by_name(labels).items() if len(set(ids)) == 1}
    for label in sorted(labels, key=int):
        name = labels[label].split(",")[0].strip()
        if name.lower() in clear and re.fullmatch(r"[\w .'-]{1,60}", name):
            return f"pipe({json.dumps(name, ensure_ascii=False)})"
    return "pipe(0)"


def _contents(repository: Repository) -> str:
    rows = ["## Contents", "", "| part | what | parameters |", "| --- | --- | --- |"]
    for name, part in repository.parts.items():
        # The numbers of a map are a table and were not trained.
        count = "" if part.class_name == "ClusterMap" else f"{part.parameters:,}"
        rows.append(f"| `{name}` | {_describe(part)} | {count} |")
    if repository.kind == "pipeline":
        names = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")
        settings = ", ".join(
            f"{name.replace('_', ' ')} {inline(repository.index[name])}"
            for name in names
            if repository.index.get(name) is not None
        )
        rows += ["", f"Sampling defaults: {settings}."]
    return "\n".join(rows)


def _describe(part: Part) -> str:
    """One component in one line."""
    # Every class of component is described by other fields of its config.
    config, size = part.config, ""
    if part.class_name in CONFIG_CLASSES:
        size = f"{config['num_hidden_layers']} layers, width {config['hidden_size']}"
    if part.class_name == "VQModel":
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        details = config.get("detail_codebook_size")
        more = f" and {details:,} detail codes" if details else ""
        return (
            f"codebook of {config['codebook_size']:,} codes{more}, {config['codebook_dim']} "
            f"dimensions, compared by cosine; one token for {factor} x {factor} pixels"
        )
    # The config does not say how even the clusters are, so the map itself is read; it is small.
    if part.class_name == "ClusterMap":
        return describe_map(part.folder)
    if part.class_name == "CodecladeTransformer":
        scheme = SCHEMES.get(config["scheme"])
        predicts = scheme.description if scheme else inline(config["scheme"])
        return (
            f"{size}, {config['num_attention_heads']} heads; predicts "
            f"{predicts} (vocabulary "
            f"{config['vocab_size']:,}) on a grid of {config['grid_size']} x {config['grid_size']}"
        )
    if part.class_name == "Refiner":
        ways = ("causal (DCPE)", "bidirectional (CTF)")[not config.get("causal", True)]
        reads = ", reads the generator's states (MASC)" if config.get("context_dim") else ""
        return (
            f"{size}, {ways}{reads}; {config['num_clusters']:,} clusters to "
            f"{config['codebook_size']:,} ids"
        )
    return inline(part.class_name)


def describe_map(folder: Path) -> str:
    """Size and cluster statistics of a saved ClusterMap in one line."""
    cluster_map = ClusterMap.from_pretrained(folder, variant=variant_of(folder))
    sizes = cluster_map.sizes
    tree = "with the full merge tree" if len(cluster_map.merges) else "no merge tree"
    return (
        f"{cluster_map.codebook_size:,} codes of {cluster_map.config.codebook_dim} dimensions in "
        f"{cluster_map.num_clusters:,} clusters by {inline(cluster_map.config.method)}; "
        f"{int(sizes.min())} to {int(sizes.max())} members, median {int(sizes.median())}, "
        f"{int((sizes == 1).sum()):,} of one member; {tree}"
    )


def _training(repository: Repository) -> str:
    # A pipeline's own record is of its generator; the others stand beside their components.
    told = [_trained(repository.training)] if repository.training else []
    told += [_trained(part.training) for part in repository.parts.values() if part.training]
    if not told and "recipe.yaml" in repository.files:
        told = ["The recipe is in [recipe.yaml](recipe.yaml)."]
    return "\n\n".join(["## Training", *told]) if told else ""


def _trained(training: TrainingRecord) -> str:
    """One stage of training, with its recipe folded away."""
    # A recipe is text of unknown origin: the fence is longer than any run of backticks in it, so
    # nothing in the recipe ends the block. Settings left empty are not choices.
    chosen = {k: v for k, v in training.recipe.items() if v not in ("", None, [], {})}
    settings = yaml.safe_dump(chosen, sort_keys=False).strip()
    fence = "`" * (1 + max(map(len, re.findall("`{3,}", settings)), default=2))
    minutes, seconds = divmod(round(training.seconds), 60)
    time = f"{minutes:,} minutes" if minutes > 1 else f"{60 * minutes + seconds} seconds"
    stage = inline(training.stage)
    images = "streamed images" if training.images is None else f"{training.images:,} images"
    return (
        f"{stage.capitalize()}: trained on {images} of {training.classes:,} "
        f"classes from {inline(training.data)}, {training.steps:,} steps in {time}, "
        f"{inline(training.machine)}.\n\n<details><summary>Recipe of the "
        f"{stage}</summary>\n\n{fence}yaml\n{settings}\n{fence}\n\n</details>"
    )


def _evaluation(results: list[EvaluationRecord], training: TrainingRecord | None) -> str:
    rows = [
        f"| {inline(result.metric)} | {result.value} {inline(result.unit or '')} | "
        f"{inline(result.dataset)} | {inline(result.protocol, 3 * LONGEST)} |"
        for result in results
    ]
    # The last numbers of a log are no evaluation, as they have no protocol: they are said apart and
    # stay out of the table and of the metadata.
    logged = training.logged if training else {}
    text = "## Evaluation\n\n"
    if rows:
        text += "| metric | value | data | protocol |\n| --- | --- | --- | --- |\n"
        text += "\n".join(rows)
    if logged:
        numbers = ", ".join(
            f"{inline(key.replace('_', ' '))} {value:.4g}" for key, value in logged.items()
        )
        text += ("\n\n" if rows else "") + f"At the end of training: {numbers}."
    return text if rows or logged else text + "Nothing was measured for this repository."


def _search(repository: Repository) -> str:
    """The settings that `evaluate --search` tried."""
    points, curve = SEARCH
    if points not in repository.files:
        return ""
    text = f"Sampling settings that were tried on few images are in [{points}]({points})."
    picture = f"![Distance of every point]({curve})\n\n" if curve in repository.files else ""
    return f"## Search\n\n{picture}{text}"


def _license(provenance: Provenance, license: str | None) -> str:
    lines = ["## License and provenance", ""]
    if provenance.statement:
        lines += [" ".join(map(inline, provenance.statement.splitlines())), ""]
    if provenance.files:
        lines += ["Made from:", ""]
        lines += [f"- {inline(one.name)} ({one.bytes:,} bytes)" for one in provenance.files]
        lines += [""]
    # Nothing is claimed by default: a license is the owner's word and not this program's.
    named = license or provenance.license
    if named:
        lines += [f"License of the weights: {inline(named)}.", ""]
    else:
        lines += ["No license was stated for these weights; ask their owner.", ""]
    return "\n".join([*lines, "The code in this repository is codeclade's (MIT)."])
