"""Experiment trackers by name, through accelerate."""

from importlib.util import find_spec

# Name of the setting: the Python package that it needs. Those of accelerate.
TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
}


def tracker_name(wanted: str) -> str | None:
    """The tracker to use; None for no tracker.

    Args:
        wanted: one of TRACKERS, "none", or empty for tensorboard where it is installed.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    if wanted == "none":
        return None
    if wanted == "":
        return "tensorboard" if find_spec("tensorboard") else None
    if wanted not in TRACKERS:
        raise ValueError(f"tracker is {wanted!r}; it must be one of none, {', '.join(TRACKERS)}.")
    if find_spec(TRACKERS[wanted]) is None:
        raise ValueError(
            f"tracker={wanted} needs the package {TRACKERS[wanted]}, which is not installed: "
            f"pip install {TRACKERS[wanted]}, or tracker=none."
        )
    return wanted
