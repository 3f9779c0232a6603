"""What is refused and what is kept when parts and pipelines are saved."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any


def refuse_pickle(safe_serialization: bool) -> None:
    """Raise a ValueError where `save_pretrained` is asked for a pickle."""
    if not safe_serialization:
        raise ValueError(
            "safe_serialization=False would write a pickle, which can execute code and is not "
            "loaded here; weights are saved as safetensors."
        )


def keep_code(pipeline: Any, folder: Path) -> None:
    """Copy code that came with a repository into a saved pipeline, and name it in the index.

    diffusers saves weights and configs alone, and an index that names modules of its own cache.
    """
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        if not type(part).__module__.startswith("diffusers_modules."):
            continue
        file = Path(inspect.getfile(type(part)))
        shutil.copyfile(file, (folder if part is pipeline else folder / name) / file.name)
        # transformers looks for the code of a subfolder's model in the folder above it.
        if getattr(type(part), "config_class", None) is not None:
            shutil.copyfile(file, folder / file.name)
        index[name] = [file.stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
