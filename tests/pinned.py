"""Calls whose ids are pinned: every scheme, edit, schedule and way of refining at fixed seeds.

    PYTHONPATH=src:tests python tests/pinned.py

writes tests/golden/pinned.json anew, where a change of any number is a change of what users get.
The greedy ids in it were written by codeclade 0.1.0 and must never change; the sampled ones were
written when 0.2 began to sample tokens by Gumbel noise. tests/golden/pushed_0_1/ was written once,
by 0.1.0, with `write_pushed`; `greedy_ids.json` in it by the last code that gave the ids of 0.1.0.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from builders import NAMES as LABELS
from builders import (
    REFINERS,
    SCHEMES,
    build_parts,
    build_refiner,
    build_scheme,
    build_t5,
    build_text_pipeline,
    build_tokenizer,
)
from codeclade import CodecladePipeline, CodecladeTextPipeline, bundled
from codeclade.hub.repository import read_repository

GOLDEN = Path(__file__).parent / "golden"
SCHEDULES = {
    "constant": "constant",
    "interval": {"name": "interval", "last_step": 6},
    "linear": {"name": "linear", "start": 1.5},
    "cosine_power": "cosine_power",
    "attention": {"name": "attention", "start": 1.5, "weight": 0.5},
}
PUSHED = ("token", "cluster", "cluster_token", "semantic_detail", "refiner", "text")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(name: str):
    """The pipeline of a name: a scheme, a refiner's method, "text", "text_cluster" or "bundled"."""
    if name == "bundled":
        pipe = CodecladePipeline.from_pretrained(bundled("0.1"), dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe
    if name == "text":
        return build_text_pipeline()
    if name == "text_cluster":
        return build_text_pipeline("cluster", refiner=build_refiner(**REFINERS["MASC"]))
    if name in REFINERS:
        return build_scheme("cluster", refiner=build_refiner(**REFINERS[name]))
    return build_scheme(name)


NAMES = (*SCHEMES, *REFINERS, "text", "text_cluster", "bundled")


def run(pipe, condition, seed: int = 1, **settings) -> torch.Tensor:
    settings = {"guidance_scale": 2.5, "output_type": "latent"} | settings
    return pipe(condition, generator=seeded(seed), **settings).images


def condition_of(name: str) -> list:
    """Two captions or two classes."""
    return ["a red dog", "the house on the beach"] if name.startswith("text") else [1, 2]


def plain_cases(name: str, pipe) -> dict[str, torch.Tensor]:
    """Ids of the pinned calls that sample whole images, by what is special about each."""
    condition = condition_of(name)
    return {
        "no guidance": run(pipe, condition, guidance_scale=1.0),
        "guidance": run(pipe, condition),
        "filters": run(pipe, condition, temperature=1.2, top_k=7, top_p=0.9),
        "greedy": run(pipe, condition, temperature=0),
        "clusters": run(pipe, condition, output_type="cluster"),
        "a seed an image": pipe(
            condition, generator=[seeded(3), seeded(4)], output_type="latent"
        ).images,
        "two a prompt": run(pipe, condition, num_images_per_prompt=2),
    }


def cases(name: str, pipe) -> dict[str, torch.Tensor]:
    """Ids of every pinned call, by what is special about it."""
    condition, found = condition_of(name), plain_cases(name, pipe)
    for schedule, value in SCHEDULES.items():
        found[f"schedule {schedule}"] = run(pipe, condition, guidance_schedule=value)
    if name in REFINERS or name == "text_cluster":
        for way in ("refiner", "member"):
            found[f"refine {way}"] = run(pipe, condition, refine=way)
    if not name.startswith("text"):
        found |= edits(name, pipe, found["guidance"], found["clusters"])
    else:
        found["negative"] = run(pipe, condition, negative_prompt="blue house")
    return found


def edits(name: str, pipe, ids: torch.Tensor, clusters: torch.Tensor) -> dict[str, torch.Tensor]:
    grid = pipe.transformer.config.grid_size
    spot = torch.zeros(grid, grid, dtype=torch.bool)
    spot[1 : grid - 1, 1 : grid - 1] = True
    side = grid * pipe.vq_model.downsample
    pixels = torch.rand(1, 3, side, side, generator=seeded(0))
    kept = {"latents": ids, "mask_image": spot}
    found = {
        "mask": run(pipe, [3, 0], seed=9, **kept),
        "mask and attention": run(
            pipe, [3, 0], seed=9, guidance_schedule=SCHEDULES["attention"], **kept
        ),
        "strength": run(pipe, [3, 0], seed=9, latents=ids, strength=0.5),
        "mask and strength": run(pipe, [3, 0], seed=9, **kept, strength=0.5),
        "image": run(pipe, [3, 0], seed=9, init_image=pixels, mask_image=spot),
    }
    call = {"class_labels": [1, 2], "output_type": "latent", "num_images_per_prompt": 2}
    found["redraw clusters"] = pipe.redraw(clusters=clusters, generator=seeded(5), **call).images
    found["redraw ids"] = pipe.redraw(latents=ids, generator=seeded(5), **call).images
    if pipe.transformer.config.num_stages == 2:
        found["kept clusters"] = run(pipe, [3, 0], seed=9, clusters=clusters)
    if name in REFINERS:
        call |= {"refine": "refiner", "clusters": clusters}
        found["redraw by the refiner"] = pipe.redraw(generator=seeded(5), **call).images
    return found


def build_pushed(name: str):
    """The smallest pipelines, since their weights are kept in this repository."""
    scheme = {"refiner": "cluster", "text": "token"}.get(name, name)
    vq = {"block_out_channels": (4, 4, 4), "latent_channels": 4, "norm_num_groups": 2}
    size = {"hidden_size": 16, "intermediate_size": 24}
    head = {"head_layers": 1, "head_window": 1} if name == "semantic_detail" else {}
    parts = build_parts(scheme, text=name == "text", vq=vq, **size, **head)
    if name == "text":
        encoder = {"tokenizer": build_tokenizer(), "text_encoder": build_t5()}
        return CodecladeTextPipeline(**parts, **encoder)
    if name == "refiner":
        parts["refiner"] = build_refiner(**REFINERS["MASC"] | {"context_dim": 16}, **size)
    return CodecladePipeline(**parts, id2label=LABELS)


def pushed_ids(name: str, pipe, **settings) -> torch.Tensor:
    """What a pushed pipeline is asked for: images, then the lower part of them again."""
    pipe.set_progress_bar_config(disable=True)
    if name == "text":
        return run(pipe, "a red dog", **settings)
    ids = run(pipe, [1, 2], guidance_schedule=SCHEDULES["attention"], **settings)
    mask = torch.arange(16).view(4, 4) >= 7
    changed = run(pipe, [3, 0], seed=9, latents=ids, mask_image=mask, **settings)
    return torch.cat([ids, changed])


def write_pushed(folder: Path) -> None:
    """The files of a push of a tiny pipeline of every kind, and the ids it makes.

    Code files are the same in most of them and stand once, in code/.
    """
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for name in PUSHED:
        pipe = build_pushed(name)
        found[name] = pushed_ids(name, pipe).tolist()
        with tempfile.TemporaryDirectory() as saved:
            pipe.save_pretrained(saved)
            for path, content in read_repository(saved).files.items():
                target = folder / name / path
                if path.endswith(".py"):
                    target = folder / code_file(name, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                raw = content if isinstance(content, bytes) else content.read_bytes()
                assert not target.exists() or target.read_bytes() == raw, target
                target.write_bytes(raw)
    (folder / "ids.json").write_text(json.dumps(found) + "\n")


def code_file(name: str, path: str) -> str:
    """Where code/ has the code file `path` of a pushed pipeline."""
    file = Path(path).name
    return f"code/text_{file}" if (name, file) == ("text", "pipeline.py") else f"code/{file}"


def assemble_pushed(name: str, folder: Path) -> None:
    """Put a pushed repository together in `folder`, every file where the push put it."""
    source = GOLDEN / "pushed_0_1"
    shutil.copytree(source / name, folder)
    index = json.loads((folder / "model_index.json").read_text())
    shutil.copy(source / code_file(name, "pipeline.py"), folder / "pipeline.py")
    for part, value in index.items():
        if isinstance(value, list) and str(value[0]).startswith("modeling_codeclade"):
            shutil.copy(source / "code" / f"{value[0]}.py", folder / part)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pinned = {}
    for one in NAMES:
        pinned[one] = {case: ids.tolist() for case, ids in cases(one, build(one)).items()}
    lines = [
        f" {json.dumps(one)}: {{\n"
        + ",\n".join(f"  {json.dumps(case)}: {json.dumps(ids)}" for case, ids in calls.items())
        + "\n }"
        for one, calls in pinned.items()
    ]
    (GOLDEN / "pinned.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
