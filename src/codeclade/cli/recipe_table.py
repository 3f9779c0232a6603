"""What the recipes say of their models, as text: the table in hub_configs/README.md and more."""

import shlex

from ..data.component_configs import component_configs, count_parameters
from ..data.families import Family, family_names, read_family

HEAD = """| recipe | size | parameters | predicts | grid | sampling | published | published files |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def model_table() -> str:
    """The Markdown table of all models, and the commands that convert published weights."""
    families = [read_family(name) for name in family_names()]
    rows = [row for family in families for row in _rows(family)]
    commands = [command for family in families for command in convert_commands(family)]
    about = [
        f"- {one.about().title}: {one.about().summary} {one.about().license_note}".strip()
        for one in families
    ]
    convert = ["Published weights convert with:", "", "```sh", *commands, "```"]
    return "\n".join([HEAD, *rows, "", *about, "", *convert])


def describe(family: Family) -> str:
    """A recipe in words: what it is, its sizes, and the commands that convert published weights."""
    about = family.about()
    source = f", {about.paper}" if about.paper else ""
    lines = [f"{about.title}{source}. {about.summary}"]
    lines += [about.license_note] if about.license_note else []
    lines += [""]
    for size in family.sizes or [None]:
        name, cells = size or family.name, _cells(family, size)
        lines += [f"{name}: {cells[0]} parameters, predicts {cells[1]}, grid {cells[2]}"]
        published = f"; published: {cells[4]}" if cells[4] else ""
        lines += [f"    {cells[3]}{published}; weights: {cells[5]}"]
    commands = convert_commands(family)
    if commands:
        where = f" (files at {about.hosted})" if about.hosted else ""
        lines += ["", f"Published weights convert with{where}:", *commands]
    lines += ["", f"Sections: {', '.join(family.sections)}; the file is {family.path}."]
    return "\n".join(lines)


def convert_commands(family: Family) -> list[str]:
    """`codeclade convert` of every size whose generator was published."""
    commands = []
    for size in family.sizes or [None]:
        about = family.about(size)
        # Some sizes are described in a paper while only their tokenizer was published, or nothing.
        if about.converter and "gpt" in about.weights:
            words = ["codeclade", "convert", about.converter]
            for flag, name in about.weights.items():
                words += [f"--{flag}", name]
            side = family.merged("encode", size)["image_size"]
            words += ["--image-size", str(side), "--out", f"{family.name}-{size}"]
            commands.append(shlex.join(words))
    return commands


def _rows(family: Family) -> list[str]:
    link = f"[{family.name}]({family.name}.yaml)"
    return [
        f"| {' | '.join([link, size or '', *_cells(family, size)])} |"
        for size in family.sizes or [None]
    ]


def _cells(family: Family, size: str | None) -> list[str]:
    """Parameters, what is predicted, grid, sampling, published numbers and weights of a size."""
    configs, about = component_configs(family, size), family.about(size)
    transformer, side = configs["transformer"], configs["transformer"]["grid_size"]
    # A family's sizes share one tokenizer, which would tell nothing about a row.
    files = [name for flag, name in about.weights.items() if flag != "vq"]
    elsewhere = about.hosted if about.hosted and not about.converter else "none published"
    return [
        f"{count_parameters('transformer', transformer):,}",
        _predicts(transformer, configs["vq_model"]),
        f"{side} x {side}",
        _sampling(family, size, about.guidance_note),
        _published(about.published, about.protocol),
        ", ".join(files) or elsewhere,
    ]


def _predicts(transformer: dict, vq_model: dict) -> str:
    size, coarse = transformer["vocab_size"], transformer["coarse_vocab_size"]
    return {
        "token": f"ids of {size:,}",
        "cluster": f"clusters, {size:,} of {vq_model['codebook_size']:,} ids",
        "cluster_token": f"a cluster of {coarse}, then an id of {size}",
        "semantic_detail": f"pairs: {coarse} semantic x {size:,} detail codes",
    }[transformer["scheme"]]


def _sampling(family: Family, size: str | None, note: str) -> str:
    """The sampling defaults that differ from plain draws."""
    given = family.merged("generator", size)
    schedule, scale = given.get("guidance_schedule") or {}, given.get("guidance_scale", 2.0)
    text = f"guidance {scale}"
    # This schedule alone has two ends; of the others the name says the shape.
    if isinstance(schedule, dict) and schedule.get("name") == "attention":
        text = f"guidance {schedule['start']} to {scale}, attention weight {schedule['weight']}"
    elif schedule:
        text += f", schedule {schedule}"
    if given.get("temperature", 1.0) != 1.0:
        text += f", temperature {given['temperature']}"
    if given.get("top_k"):
        text += f", top-k {given['top_k']}"
    return f"{text} ({note})" if note else text


def _published(numbers: dict[str, str], protocol: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in numbers.items() if name != "note")
    if not values:
        return numbers.get("note", "")
    notes = [note for note in (numbers.get("note"), protocol) if note]
    return f"{values} ({'; '.join(notes)})" if notes else values
