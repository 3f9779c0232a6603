"""Numbers of a tokenizer, of a pipeline's images and of a generator's likelihood, as records.

Every record has its protocol, its standard error where one is known, and for distances the floor:
the same number of one half of the photographs against the other. What is measured of single images,
and without some of them, is kept beside the records, so that two measurements of the same images
can be compared in pairs.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.cluster_maps import make_cluster_map
from ..components.cluster_map import ClusterMap
from ..components.pipeline import CodecladePipeline
from ..components.vq_model import VQModel
from ..data.codes import Codes
from ..data.pixels import to_pixels
from ..data.records import EvaluationRecord
from ..metrics.clip_score import ClipScore
from ..metrics.image_quality import QUALITIES
from ..metrics.lpips import Lpips
from ..metrics.networks import FeatureNetwork
from .compare import CLIP
from .feature_sets import Distance, FeatureSet, scores, set_distances, share_error
from .likelihood import likelihood, tree_partitions
from .protocol import Protocol, machine_name, type_name
from .reconstruction import Reconstruction, reconstruct
from .reference import Photographs, imagenet_indices
from .resize import resize_words
from .sampling import Pipeline, SampleParts, class_names_of, image_side

CLIP_SCORE = "100 max(cos, 0), mean over prompts of the mean over their images"


@dataclass
class Measurement:
    """Records of one run; by name of the metric values of single images, and deviations of what
    is of a whole set (see `Distance`)."""

    records: list[EvaluationRecord] = field(default_factory=list)
    per_image: dict[str, Tensor] = field(default_factory=dict)
    deviations: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        protocol: Protocol,
        words: str,
        unit: str = "",
        error: float | None = None,
        floor: float | None = None,
    ) -> None:
        """Add one number; `words` is its protocol for readers."""
        torch_version = protocol.versions["torch"]
        self.records.append(
            EvaluationRecord(
                metric=name,
                value=float(f"{value:.6g}"),
                unit=unit,
                dataset=protocol.data,
                split=protocol.split,
                protocol=f"{words}; torch {torch_version}, {protocol.machine}, {protocol.dtype}",
                conditions=protocol.to_json(),
                standard_error=None if error is None else float(f"{error:.3g}"),
                floor=None if floor is None else float(f"{floor:.4g}"),
            )
        )

    def add_distance(
        self,
        one: Distance,
        protocol: Protocol,
        words: str,
        prefix: str = "",
        floor: float | None = None,
    ) -> None:
        """Add one number on a set of images."""
        name, protocol = prefix + one.name, protocol.using(estimator=one.estimator)
        self.add(name, one.value, protocol, words, "", one.standard_error, floor)
        if one.deviations is not None:
            self.deviations[name] = one.deviations

    def add_images(self, name: str, values: Tensor, protocol: Protocol, words: str) -> None:
        """Add the mean of values (n,), one an image or a prompt."""
        self.per_image[name] = values
        # An exact reconstruction has an infinite PSNR, which no mean survives.
        exact = int(values.isinf().sum())
        values = values[values.isfinite()]
        if exact:
            words += f", {exact:,} exact ones left out"
            if not len(values):
                return
            protocol = protocol.using(estimator="mean over the images that are not exact")
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        mean = float(values.mean())
        unit = QUALITIES[name].unit if name in QUALITIES else ""
        self.add(name, mean, protocol, words, unit, error)


def measure_tokenizer(
    vq_model: VQModel,
    photographs: Photographs,
    network: FeatureNetwork | None,
    lpips: Lpips | None = None,
    size: int | None = None,
    batch_size: int = 32,
    quick: bool = False,
) -> Measurement:
    """Reconstructions, their distance to the photographs, and the use of the codebook.

    Args:
        size: side at which images are compared; None: that of the photographs.
        quick: a first look, see `measure_pipeline`; uses no network.
    """
    side = photographs.images.image_size
    network = None if quick else network
    found = reconstruct(vq_model, photographs, size or side, batch_size, network, lpips)
    measured = Measurement()
    _add_reconstruction(measured, found, photographs, vq_model, size or side, quick)
    return measured


def measure_pipeline(
    pipe: Pipeline,
    photographs: Photographs | None,
    parts: SampleParts,
    network: FeatureNetwork | None,
    lpips: Lpips | None = None,
    batch_size: int = 32,
    clip: ClipScore | None = None,
    quick: bool = False,
) -> Measurement:
    """Reconstructions of the pipeline's tokenizer, and its generated images against photographs.

    Args:
        photographs, network: None, both, where images are compared with their captions alone.
        parts: generated images, all of them there.
        clip: of a pipeline that takes captions.
        quick: a first look at few images: only what does not depend on how many there are.
    """
    # Classes whose names are ImageNet's can be told by a classifier of ImageNet.
    sampling, classes, own = parts.sampling, None, []
    if not sampling.prompts and getattr(network, "name", "").startswith("EfficientNet"):
        own = class_names_of(pipe)
        classes = imagenet_indices(own)
    measured, halves, rebuilt = Measurement(), [], None
    side = image_side(pipe)
    size = sampling.size or side
    protocol = Protocol(
        data=sampling.prompts.name if sampling.prompts else "",
        quick=quick or None,
        images=len(parts),
        sampled_size=side,
        evaluated_size=size,
        dtype=type_name(pipe.transformer.dtype),
        machine=machine_name(pipe.device),
    )
    if photographs is not None:
        found = reconstruct(pipe.vq_model, photographs, size, batch_size, network, lpips, classes)
        protocol = _add_reconstruction(measured, found, photographs, pipe.vq_model, size, quick)
        halves, rebuilt = found.halves, found.rebuilt

    # The generated images, a part at a time.
    samples = FeatureSet(network, classes) if network else None
    likeness: list[Tensor] = []
    for images, labels in parts.batches():
        for some, theirs in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            if samples is not None:
                samples.add(to_pixels(some), theirs)
            if clip is not None:
                captions = [sampling.prompts.texts[i] for i in theirs.tolist()]
                likeness.append(clip(to_pixels(some), captions).double())
    protocol = _sampling_protocol(protocol, pipe, parts)
    words = _sampling_words(protocol, sampling.seed)
    if clip is not None:
        own_protocol = protocol.using(
            network=clip.name, network_fingerprint=clip.fingerprint, estimator=CLIP_SCORE
        )
        words_of_clip = f"{clip.name}, {CLIP_SCORE}, {words}"
        # Images of one prompt are alike, so what is independent are the prompts.
        of_prompts = group_means(torch.cat(likeness), parts.labels)
        measured.add_images(CLIP, of_prompts, own_protocol, words_of_clip)
    if samples is None:
        return measured
    protocol = protocol.using(network=network.name, network_fingerprint=network.fingerprint)
    _add_distances(measured, samples, halves, protocol, words, "")
    for one in [] if quick else scores(samples):
        measured.add_distance(one, protocol, f"{one.estimator}, {words}")

    # Class accuracy beside that of reconstructions and photographs.
    if classes is not None:
        photos = halves[0].joined(halves[1])
        others = f"reconstructions {100 * rebuilt.accuracy:.1f} %, photographs "
        others += f"{100 * photos.accuracy:.1f} %, chance {100 / len(own):.1f} %"
        error = 100 * share_error(samples.accuracy, samples.count)
        name = f"Class accuracy-{network.name}"
        measured.add(
            name, 100 * samples.accuracy, protocol,
            f"{network.name} among {len(own)} classes, {words}; {others}", " %", error,
        )  # fmt: skip
        measured.per_image[name] = 100 * torch.cat(samples.hits).double()
    return measured


def group_means(values: Tensor, labels: Tensor) -> Tensor:
    """Means (g,) of values (n,) with the same label (n,), in the order of the labels there are."""
    found, of, counts = labels.unique(return_inverse=True, return_counts=True)
    return values.new_zeros(len(found)).index_add(0, of, values) / counts


def _sampling_protocol(protocol: Protocol, pipe: Pipeline, parts: SampleParts) -> Protocol:
    """The protocol with everything that decided the generated images."""
    sampling, judge = parts.sampling, parts.judge
    prompts = sampling.prompts
    return protocol.using(
        images=len(parts),
        classes=None if prompts else sampling.classes,
        prompts=prompts and prompts.name,
        prompts_fingerprint=prompts and prompts.fingerprint,
        seeds=sampling.seeds,
        resize=resize_words(protocol.sampled_size, protocol.evaluated_size, sampling.plain_resize),
        draws=judge and sampling.draws,
        judge=judge and judge.network.name,
        judge_fingerprint=judge and judge.network.fingerprint,
        dtype=type_name(pipe.transformer.dtype),
        machine=machine_name(pipe.device),
        **sampling.settings(pipe),
    )


def measure_likelihood(
    pipe: CodecladePipeline, codes: Codes, name: str, limit: int | None = None, batch_size: int = 16
) -> Measurement:
    """Nats per position of held-out codes, for ids and for clusters of several sizes.

    Args:
        name: of the code shards, as records give it.
        limit: images at most.
    """
    codes.check_tokenizer(pipe.vq_model)
    # Clusters to score: cuts of the map's own tree, or of the codebook's where there is none.
    cluster_map: ClusterMap | None = pipe.cluster_map
    cuts, method = {}, None
    if not pipe.transformer.scheme.detail_codes:
        tree = cluster_map
        if tree is None or len(tree.merges) < tree.codebook_size - 1:
            codebook = pipe.vq_model.codebook.detach().float().cpu()
            tree, _ = make_cluster_map(codebook, "masc", max(1, len(codebook) // 2))
        cuts, method = tree_partitions(tree), tree.config.method
    # One pass over the codes scores ids and all cuts alike.
    found = likelihood(pipe.transformer, codes, cluster_map, cuts, batch_size, limit, pipe.refiner)
    device = pipe.transformer.device
    protocol = Protocol(
        data=name,
        split=codes.header.get("split"),
        data_fingerprint=_codes_fingerprint(codes, found.images),
        images=found.images,
        left_out=len(codes) - found.images,
        estimator="negative log-likelihood of the first view, mean over positions",
        dtype=type_name(pipe.transformer.dtype),
        machine=machine_name(device),
    )
    measured = Measurement()
    # A cut is part of the estimator: numbers of other trees are not compared with it.
    for part, values in found.per_image.items():
        words = f"nats per position of {found.images:,} images of codes, teacher forcing"
        own = protocol
        if part in cuts:
            words += f", cut of the {method} tree"
            own = protocol.using(estimator=f"{protocol.estimator}, cut of the {method} tree")
        elif pipe.refiner is not None:
            # With or without a refiner, nats per id are those of the draw, and compared as such.
            refined = part == "refined"
            words += (
                f", an id {'by the refiner' if refined else 'as a uniform member of its cluster'}"
            )
            if refined:
                own = protocol.using(estimator=f"{protocol.estimator}, an id by the refiner")
        measured.add_images(f"Nats per {_unit_of(part)}", values, own, words)
    return measured


def _codes_fingerprint(codes: Codes, images: int) -> str:
    """sha256 over the ids and labels of the first views of the images that were scored."""
    digest, seen = hashlib.sha256(), 0
    for ids, labels in codes.first_views(256):
        digest.update(ids[: images - seen].numpy().tobytes())
        digest.update(labels[: images - seen].numpy().tobytes())
        seen += len(ids)
        if seen >= images:
            break
    return digest.hexdigest()[:16]


def _unit_of(part: str) -> str:
    """What one position of a likelihood is, in the singular."""
    if part.startswith("N/"):
        return f"cluster, K = {part}"
    known = {"ids": "id", "refined": "id by the refiner", "pairs": "pair"}
    return known.get(part, f"{part} code")


def _add_reconstruction(
    measured: Measurement,
    found: Reconstruction,
    photographs: Photographs,
    vq_model: VQModel,
    size: int,
    quick: bool,
) -> Protocol:
    """Add what `reconstruct` found; the protocol of it.

    Args:
        quick: leave out the use of the codebook and the distance, which depend on the count.
    """
    count, side = len(photographs.images), photographs.images.image_size
    protocol = Protocol(
        data=photographs.data,
        split=photographs.split,
        data_fingerprint=found.fingerprint,
        reference_images=count,
        left_out=photographs.left_out,
        quick=quick or None,
        images=count,
        sampled_size=side,
        evaluated_size=size,
        resize=resize_words(side, size),
        dtype=type_name(vq_model.dtype),
        machine=machine_name(vq_model.device),
    )
    # What is measured image by image: its mean is right for any number of images.
    told = _photographs(count, protocol)
    words = f"8-bit, mean over {told} of {size} pixels"
    for name, values in found.per_image.items():
        measured.add_images(name, values, protocol, words)
    if quick:
        return protocol
    # What is of the set: how much of the codebook is used, and how far apart the sets are.
    words = f"{told}, center crops"
    uses = {"Codebook": found.use, "Detail codebook": found.detail_use}
    for name, use in uses.items():
        if use is not None:
            measured.add(f"{name} usage", 100 * use.usage, protocol, words, " %")
            measured.add(f"{name} perplexity", use.perplexity, protocol, words)
    if found.rebuilt is not None:
        words = f"reconstructions of {told}"
        _add_distances(measured, found.rebuilt, found.halves, protocol, words, "r")
    return protocol


def _add_distances(
    measured: Measurement,
    samples: FeatureSet,
    halves: list[FeatureSet],
    protocol: Protocol,
    words: str,
    prefix: str,
) -> None:
    """Add all distances of a set to the photographs, each beside its floor.

    Args:
        prefix: of the names: "r" for reconstructions, as in rFID; of these the Fréchet distances
            alone are given.
    """
    # Two photographs a half are the fewest that have a covariance.
    if min(samples.count, *(half.count for half in halves)) < 2:
        return
    network, reference = samples.network, halves[0].joined(halves[1])
    quick = bool(protocol.quick)
    protocol = protocol.using(network=network.name, network_fingerprint=network.fingerprint)
    floors = {one.name: one.value for one in set_distances(*halves[::-1], quick, errors=False)}
    for one in set_distances(samples, reference, quick):
        biased = "Fréchet" in one.estimator
        if prefix and not biased:
            continue
        said = f"{network.name} features, {words}; "
        said += f"{_photographs(reference.count, protocol)}; {one.estimator}"
        said += "; not FID" if biased and network.distance_name != "FID" else ""
        floor = floors.get(one.name)
        if floor is not None:
            said += f"; floor {floor:.3g}: {halves[1].count:,} photographs against the other "
            said += f"{halves[0].count:,}"
            # Why images can lie below their floor, which readers would take for a mistake.
            if prefix:
                said += ", fewer and not of the same pictures, so reconstructions may lie below it"
            elif biased:
                said += ", which being fewer makes it too high"
        measured.add_distance(one, protocol, said, prefix, floor)


def _photographs(count: int, protocol: Protocol) -> str:
    """As in "800 validation photographs"; sources without splits are used whole."""
    split = "" if protocol.split == "all" else f"{protocol.split} "
    return f"{count:,} {split}photographs"


def _sampling_words(protocol: Protocol, seed: int) -> str:
    """How images were generated, for readers."""
    scale = protocol.guidance_scale
    scale = ", ".join(f"{x:g}" for x in scale) if isinstance(scale, (list, tuple)) else f"{scale:g}"
    words = f"{protocol.images:,} generated images, guidance {scale}, seed {seed}"
    if protocol.guidance_schedule:
        words += f", schedule {protocol.guidance_schedule}"
    words += f", temperature {protocol.temperature:g}, top-k {protocol.top_k}"
    words += f", top-p {protocol.top_p:g}, "
    words += f"prompts of {protocol.prompts}" if protocol.prompts else f"{protocol.classes} classes"
    if protocol.judge:
        words += f", best of {protocol.draws} by {protocol.judge}'s class probability"
    if protocol.resize:
        words += f", {protocol.sampled_size} to {protocol.evaluated_size} pixels {protocol.resize}"
    return words


def dataset_name(source: str) -> str:
    """A source's name without its place on this machine."""
    return Path(source).name if Path(source).exists() else source
