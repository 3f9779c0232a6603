"""Photographs to measure against: splits, classes, and what is left out."""

import pytest
import torch

from codeclade.data.imagenet import class_names, synset_names
from codeclade.evaluation.reference import Fingerprint, match_classes, open_photographs


def test_a_folder_without_splits_is_used_whole(photos):
    found = open_photographs(str(photos), 16)
    assert (len(found.images), found.split, found.left_out) == (20, "validation", 5)
    found = open_photographs(str(photos / "train"), 16)
    assert (len(found.images), found.split, found.left_out) == (5, "all", 0)
    found = open_photographs(str(photos), 16, "train", ["tabby", "lion"])
    assert (len(found.images), found.left_out, found.data) == (2, 23, "photos")
    (photos / "validation").rename(photos / "test")
    found = open_photographs(str(photos), 16)
    assert (len(found.images), found.split) == (20, "test")
    assert len(open_photographs(str(photos), 16, "train").images) == 5
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test, all"):
        open_photographs(str(photos), 16, "dev")


def test_a_fingerprint_is_of_the_images_in_any_order():
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    found = []
    for parts in ([images], [images[3:], images[:3]], [images[:4]], [images.view(5, 3, 2, 8)]):
        fingerprint = Fingerprint()
        for part in parts:
            fingerprint.add(part)
        found.append(str(fingerprint))
    assert found[0] == found[1] and len(set(found)) == 3


def test_classes_are_matched_by_synonym_and_wordnet_id():
    assert match_classes(["b, c", "A"], ["a", "c"]) == {"A": "a", "b, c": "c"}
    assert match_classes(["n01443537", "n02099601"], ["golden retriever", "goldfish, x"]) == {
        "n02099601": "golden retriever",
        "n01443537": "goldfish, x",
    }
    every = match_classes(list(synset_names()), class_names())  # with two cranes
    assert list(every.items()) == list(synset_names().items())
    with pytest.raises(ValueError, match=r"the data has no class 'yeti'; it has cat, dog, \.\.\."):
        match_classes(["cat", "dog"], ["yeti"])
    with pytest.raises(ValueError, match="two classes of the pipeline are the same"):
        match_classes(["cat, tabby"], ["cat", "tabby"])
