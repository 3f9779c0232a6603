"""`codeclade push`: a folder to the Hugging Face Hub."""

import argparse
from pathlib import Path

from .arguments import add_verb
from .generate import class_sheet, load_pipeline, some_classes

PUSH_EXAMPLES = """codeclade push runs/generator/pipeline user/my-pipeline --dry-run
  codeclade push runs/generator/pipeline user/my-pipeline --space user/my-demo
  codeclade push runs/cluster_map user/masc-8192 --license mit
  codeclade push runs/codes user/my-codes --private"""


def add_push(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "push",
        _push,
        "publish a pipeline, component or code shards on the Hugging Face Hub",
        PUSH_EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", help="what was saved, converted or trained")
    parser.add_argument("repository", metavar="USER/NAME", help="created if it is not there")
    parser.add_argument("--private", action="store_true", help="where the repository is new")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--space", metavar="USER/NAME", help="also a Gradio Space that shows it")
    parser.add_argument("--license", metavar="NAME", help="of the weights, for the card: mit, ...")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--no-samples", action="store_true", help="draw no sample sheet")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, send nothing")


def _push(arguments: argparse.Namespace) -> None:
    from ..hub.push import check_access, prepare, publish

    # All that can be wrong is found offline first; then the Hub is asked, then samples are drawn.
    name, folder = arguments.repository, Path(arguments.folder)
    repository = prepare(folder, name, arguments.license)
    if arguments.space:
        _check_space(arguments, repository)
    wanted = repository.class_name == "CodecladePipeline" and not arguments.no_samples
    draw = wanted and "samples.png" not in repository.files
    if draw and not arguments.dry_run:
        check_access(name)
        sheet = _sample_sheet(arguments.folder)
        repository = prepare(folder, name, arguments.license, {"samples.png": sheet})
    # What would be sent, for a dry run; what stays here is said in any case.
    sizes = repository.sizes()
    if arguments.dry_run:
        _list_sizes(sizes, name, draw, arguments.space)
    _say_names("left out, as no repository file", repository.left_out)
    if arguments.dry_run:
        return
    # The pipeline goes before the Space that loads it.
    done = publish(repository, name, arguments.private, arguments.create_pr, arguments.message)
    print(f"published {done.url} ({len(sizes)} files, {sum(sizes.values()):,} bytes)")
    _say_names("deleted there, as stale", done.deleted)
    if arguments.space:
        from ..hub.space import push_space

        print(f"published {push_space(arguments.space, name, arguments.private).url}")
        if arguments.private:
            print("the Space needs a secret HF_TOKEN that may read the pipeline: see its settings")


def _list_sizes(sizes: dict[str, int], name: str, draw: bool, space: str | None) -> None:
    """Print what a push would send."""
    print("\n".join(f"{size:>15,}  {file}" for file, size in sizes.items()))
    drawn = "; samples.png will be drawn" if draw else ""
    print(f"{sum(sizes.values()):>15,}  in {len(sizes)} files for {name}{drawn}")
    if space:
        print(f"{'':>15}  and the app for the Space {space}")


def _say_names(what: str, names: list[str]) -> None:
    """Print a line about these files, if there are any."""
    if names:
        print(f"{what}: {', '.join(names)}")


def _check_space(arguments: argparse.Namespace, repository) -> None:
    """Raise a ValueError unless a Space can show what is pushed."""
    from ..hub.push import check_repo_id

    check_repo_id(arguments.space)
    if repository.class_name != "CodecladePipeline":
        raise ValueError(
            f"--space shows class-conditional pipelines, not a {repository.class_name}."
        )
    if arguments.create_pr:
        raise ValueError("--space shows what is on main; push without --create-pr first.")


def _sample_sheet(folder: str) -> bytes:
    """PNG file of four images of each of some classes, default settings, seed 0."""
    import io

    import torch

    pipeline = load_pipeline(folder, None)
    pipeline.set_progress_bar_config(desc="samples")
    labels = some_classes(pipeline)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(labels, num_images_per_prompt=4, generator=generator).images
    # Small images are enlarged on the sheet, or a card would show stamps.
    scale = max(1, 128 // images[0].width)
    class_sheet(pipeline, labels, images, scale).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()
