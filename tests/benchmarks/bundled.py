"""Numbers of the bundled pipeline's card: reconstruction, likelihood, recognisable classes.

    python tests/benchmarks/bundled.py --data zh-plus/tiny-imagenet

Class accuracy: EfficientNet-Lite0 (ImageNet weights, extra `eval`) on images enlarged to 224
pixels, arg-max among the pipeline's classes; photographs and their reconstructions for comparison.
"""

import argparse
import platform

import torch
import torch.nn.functional as F

from codeclade import CodecladePipeline, bundled
from codeclade.hub.imagenet import synset_names
from codeclade.training.codes import Codes
from codeclade.training.data import load_images, plain_batches, to_pixels
from codeclade.training.generator import baselines, validation_loss
from codeclade.training.losses import EfficientNetFeatures
from codeclade.training.run import load_recipe
from codeclade.training.tokenizer import TokenizerRecipe, evaluate_tokenizer

RECIPE = "hub_configs/tiny-imagenet-64/recipe.yaml"


@torch.no_grad()
def accuracy(classifier, pixels, labels, indices) -> float:
    """Share of images (B, 3, S, S) in [-1, 1] whose label is the arg-max among `indices`."""
    right = 0
    for part, wanted in zip(pixels.split(64), labels.split(64), strict=True):
        logits = classifier(F.interpolate(part, size=224, mode="bicubic").clamp(-1, 1))
        right += (logits[:, indices].argmax(1) == wanted).sum().item()
    return right / len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--codes", help="what encode wrote; adds the likelihoods")
    parser.add_argument("--images", type=int, default=16, help="generated images a class")
    arguments = parser.parse_args()
    pipe = CodecladePipeline.from_pretrained(bundled())
    names = list(pipe.config.id2label.values())
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    recipe = load_recipe(TokenizerRecipe, "tokenizer", RECIPE, [])
    classes = {own: name for own, name in recipe.classes.items() if name in names}
    wordnet = [wnid for wnid, name in sorted(classes.items(), key=lambda c: names.index(c[1]))]
    held_out = load_images(arguments.data, "validation", 64, {w: classes[w] for w in wordnet})
    print("tokenizer:", evaluate_tokenizer(pipe.vq_model, held_out))
    if arguments.codes:
        mapping = pipe.cluster_map.mapping
        loss = validation_loss(pipe.transformer, Codes(f"{arguments.codes}/validation"), mapping)
        print(
            "generator:",
            {"validation_loss": loss, **baselines(Codes(f"{arguments.codes}/train"), mapping)},
        )
    known = list(synset_names())
    indices = [known.index(wnid) for wnid in wordnet]
    classifier = EfficientNetFeatures().net
    batches = list(plain_batches(held_out, 64))
    pixels = to_pixels(torch.cat([images for images, _ in batches]))
    labels = torch.cat([part for _, part in batches])
    with torch.no_grad():
        decoded = torch.cat([pipe.vq_model(part) for part in pixels.split(64)])
    print(
        f"class accuracy, {len(names)} classes, {len(pixels)} photographs:",
        accuracy(classifier, pixels, labels, indices),
    )
    print("their reconstructions:", accuracy(classifier, decoded, labels, indices))
    wanted = torch.arange(len(names)).repeat_interleave(arguments.images)
    for scale in (1.0, 2.0, 3.0, 4.0):
        made = (
            pipe(
                list(range(len(names))),
                guidance_scale=scale,
                output_type="pt",
                num_images_per_prompt=arguments.images,
                generator=torch.Generator().manual_seed(0),
            ).images
            * 2
            - 1
        )
        print(
            f"generated, guidance {scale}, {len(made)} images:",
            accuracy(classifier, made, wanted, indices),
        )


if __name__ == "__main__":
    main()
