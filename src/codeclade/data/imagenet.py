"""The 1000 ImageNet classes in the order of all LlamaGen-like models: WordNet ids, ascending.

That is the order of torchvision's ImageFolder and of Caffe, not Kaggle's (360 is the otter).
The names are the lemmas of WordNet 3.0 (Princeton University), kept in imagenet_classes.json.
"""

import json
from pathlib import Path


def synset_names() -> dict[str, str]:
    """Names by WordNet id ("n02099601"), in class order; synonyms are separated by commas."""
    return json.loads((Path(__file__).parent / "imagenet_classes.json").read_text())


def class_names() -> list[str]:
    """Name of every class: `class_names()[207]` is "golden retriever"."""
    return list(synset_names().values())
