"""A trained refiner becomes a component of an existing pipeline folder.

Whether the two fit is known from configs alone, so it is checked before a refiner is trained.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..components.labels import ids_by_name
from ..components.refiner import RefinerConfig
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeConfig
from ..data.atomic import write_json
from .initialization import class_row

INDEX = "model_index.json"
ENTRY = ["codeclade.components.refiner", "Refiner"]  # as `save_pretrained` of a pipeline writes it


def check_joins(config: RefinerConfig, class_names: Sequence[str], pipeline: str | Path) -> None:
    """Raise a ValueError unless a refiner of this config can become part of a pipeline folder.

    Args:
        config: of the refiner.
        class_names: what its class rows stand for.
        pipeline: folder of the pipeline whose tokenizer and cluster map it is trained with.
    """
    pipeline = Path(pipeline)
    if not (pipeline / INDEX).is_file():
        raise ValueError(f"{pipeline} is no folder of a pipeline here: it has no {INDEX}.")
    index = json.loads((pipeline / INDEX).read_text(encoding="utf-8"))
    theirs = CodecladeConfig.from_pretrained(pipeline / "transformer")
    if not scheme_class(theirs.scheme).predicts_clusters:
        raise ValueError(
            f"{pipeline} has scheme {theirs.scheme!r}, which predicts ids; a refiner is for "
            "pipelines that predict clusters."
        )
    # Sizes that are no one else's: clusters and codes are the map's, which is the pipeline's own.
    if config.grid_size != theirs.grid_size:
        raise ValueError(
            f"the codes have grid {config.grid_size}, but {pipeline} has {theirs.grid_size}."
        )
    if config.context_dim not in (None, theirs.hidden_size):
        raise ValueError(
            f"the refiner reads states of width {config.context_dim}, but the generator of "
            f"{pipeline} has {theirs.hidden_size}."
        )
    if not config.num_classes:
        return
    if config.num_classes != theirs.num_classes:
        raise ValueError(
            f"the codes have {config.num_classes} classes, but {pipeline} has "
            f"{theirs.num_classes}; use class_prefix=false or its own codes."
        )
    # The same classes in another order would refine every image as one of another class.
    known = ids_by_name(index.get("id2label") or {})
    for row, name in enumerate(class_names):
        if class_row(name, known) not in (None, row):
            raise ValueError(
                f"class {row} of the codes is {name!r}, which is class {class_row(name, known)} "
                f"of {pipeline}; encode with the pipeline's order of classes."
            )


def join_refiner(refiner: str | Path, pipeline: str | Path) -> None:
    """Put a copy of a refiner's folder into a pipeline's folder and name it in its index.

    A refiner that is there is replaced.
    """
    pipeline = Path(pipeline)
    # Folder first, index last: killed in between, the index names nothing that is not there.
    target, partial, old = (pipeline / name for name in ("refiner", ".refiner.new", ".refiner.old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(refiner, partial)
    if target.is_dir():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    index = json.loads((pipeline / INDEX).read_text(encoding="utf-8"))
    write_json(pipeline / INDEX, index | {"refiner": ENTRY}, indent=2)
