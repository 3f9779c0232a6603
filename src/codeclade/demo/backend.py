"""The pipeline behind the app: classes, settings, tokens to pictures and back, clusters.

Every value that comes from a client is checked here or in bounds.py before it reaches the pipeline.
"""

import copy
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import ClusterMap, CodecladePipeline
from ..components.guidance import SCHEDULES
from ..components.labels import similar_names
from ..components.optimization import has_bfloat16_products, optimize
from ..data.pixels import to_pixels
from ..evaluation.patches import code_patches
from ..evaluation.replacement import decode_all, encode_all
from .bounds import MAX_IMAGES, MAX_SEED, number, one_of, short_text
from .listeners import on_gpu
from .pictures import enlarge, same, square
from .streaming import stream

CUTS = 8  # of the merge tree that are kept


class Backend:
    """A pipeline as the tabs use it.

    Args:
        pipe: any class-conditional pipeline; `map` is its cluster map on the CPU, None where it
            has no clusters over the codebook. Of captions: see captions.py.
    """

    captions = False  # whether a text says what to draw, and not a class
    condition_name = "class_labels"  # of the pipeline's argument

    def __init__(self, pipe: CodecladePipeline):
        config = pipe.transformer.config
        self.pipe, self.scheme, self.grid = pipe, config.scheme, config.grid_size
        self.steps, self.side = config.num_tokens, config.grid_size * pipe.vq_model.downsample
        self.pairs = pipe.vq_model.detail_codebook_size is not None
        self.map = self._cluster_map()
        self.codebook = pipe.vq_model.codebook.detach().float().cpu()
        self.lock = threading.Lock()  # a pipeline keeps its guidance scale while it runs
        self._cuts: dict[int, ClusterMap] = {}
        self._patches: dict[int, Image.Image] = {}
        self._decode_patches = on_gpu(self._patch_pixels)
        self.find_ids = on_gpu(self._ids_array)
        # Sampling is random and bears bfloat16; in the tokenizer it would change ids and pixels.
        # Where a processor has to emulate it, it takes two to three times as long as float32.
        if torch.cuda.is_available():
            pipe.to("cuda")
            self._sample_in(torch.bfloat16)
        elif not has_bfloat16_products():
            self._sample_in(torch.float32)
        # Visitors wait for one image or a few at a time.
        if pipe.device.type == "cpu" and torch.backends.mkldnn.is_available():
            optimize(pipe.transformer, "single")

    def _sample_in(self, dtype: torch.dtype) -> None:
        """Let the generator compute in a dtype; features of captions come in the same one."""
        for part in (self.pipe.transformer, self.pipe.components.get("text_encoder")):
            if part is not None:
                part.to(dtype)

    # Classes

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Classes to choose from: what is shown, and the text that `label` understands."""
        count, names = self.pipe.transformer.config.num_classes, self.pipe.labels
        found = []
        for label in range(count):
            name = self.pipe.config.id2label.get(str(label), "")
            # A name that two classes share is shown with its number, or nobody could choose the
            # second.
            clear = len(set(names.get(name.strip().lower(), []))) == 1
            found.append((name, name) if clear else (f"{name or 'class'} ({label})", str(label)))
        return found

    def label(self, name: Any) -> int:
        """Class id of a name or number from a client.

        Raises:
            ValueError: an unknown class; the message has the nearest names.
        """
        name = short_text("class name", name)
        plain, names = name.strip().lower(), self.pipe.labels
        # A number is one only where no class is called so; isdigit alone takes digits of all
        # scripts.
        if plain.isascii() and plain.isdigit() and plain not in names:
            return self.pipe.get_label_ids(int(plain))[0]
        if plain in names or not names:
            return self.pipe.get_label_ids(name)[0]
        raise ValueError(f"there is no class {name.strip()!r}{self._suggestion(plain)}")

    def _suggestion(self, wanted: str) -> str:
        """End of the sentence on an unknown class: names that are meant, or what there is."""
        meant = similar_names(wanted, self.pipe.labels)
        if meant:
            return f"; did you mean {', '.join(meant)}?"
        some = [self.name_of(label) for label in range(min(3, len(self.choices)))]
        return f" among the {len(self.choices)}, such as {', '.join(some)}."

    def choice(self, label: int) -> str:
        """The text of a class in the menu."""
        return self.choices[label][1]

    @property
    def photo_label(self) -> int:
        """Class of the example photo; the first one where the pipeline does not have it."""
        return min(self.pipe.labels.get("espresso", [0]))

    @property
    def first_label(self) -> int:
        """Class of the images that the app opens with; cups can be told in any small pipeline."""
        return self.photo_label

    def name_of(self, label: int) -> str:
        """First name of a class."""
        return self.pipe.config.id2label.get(str(label), f"class {label}").split(",")[0]

    # Sampling

    @property
    def default_guidance(self) -> float:
        scale = self.pipe.config.guidance_scale
        return float(scale[0] if isinstance(scale, (list, tuple)) else scale)

    @property
    def schedules(self) -> list[str]:
        """Guidance schedules that this transformer can follow."""
        inputs = inspect.signature(self.pipe.transformer.forward).parameters
        attends = "output_condition_attention" in inputs
        return [name for name in SCHEDULES if attends or name != "attention"]

    @property
    def default_schedule(self) -> str:
        given = self.pipe.config.guidance_schedule or "constant"
        return given["name"] if isinstance(given, dict) else given

    def schedule(self, name: Any) -> str | dict:
        """A schedule with the pipeline's own parameters, or with published or plain ones."""
        name, given = one_of("guidance schedule", name, self.schedules), None
        # The parameters of a schedule go with its name: one that the client picks gets its own.
        if name == self.default_schedule:
            given = self.pipe.config.guidance_schedule
        if name == "interval" and not given:
            return {"name": name, "last_step": self.steps // 2}
        return given or name

    def settings(self, guidance_scale, guidance_schedule, temperature, top_k, top_p) -> dict:
        """Sampling arguments of a pipeline call, checked."""
        codes = self.pipe.transformer.config.vocab_size
        temperature = number("temperature", temperature, 0, 5)
        # 0 means the arg-max; logits divided by what is nearly 0 can overflow.
        if 0 < temperature < 0.01:
            raise ValueError("temperature must be 0, or 0.01 to 5.")
        return {
            "guidance_scale": number("guidance scale", guidance_scale, 0, 20),
            "guidance_schedule": self.schedule(guidance_schedule),
            "temperature": temperature,
            "top_k": number("top-k", top_k, 0, max(codes, 1000), integer=True),
            "top_p": number("top-p", top_p, 0.01, 1),
        }

    def generator(self, seed: Any) -> torch.Generator:
        """Random numbers of a seed from a client."""
        return torch.Generator().manual_seed(number("seed", seed, 0, MAX_SEED, integer=True))

    def count(self, value: Any, most: int = MAX_IMAGES) -> int:
        """A number of images from a client."""
        return number("number of images", value, 1, most, integer=True)

    def sample(self, label: int, count: int, seed: int, settings: dict) -> Iterator[tuple]:
        """Images of a class: (tokens known, images, ids), ids (B, G, G) only with the last."""

        def show(tokens, known):
            return known, self.pipe.preview(tokens, known, self.generator(seed)), None

        def run(**callback):
            ids = self.pipe(
                label,
                num_images_per_prompt=count,
                generator=self.generator(seed),
                output_type="ids",
                **settings,
                **callback,
            ).images
            # On ZeroGPU results pass between processes, where tensors would share memory.
            return self.steps, self.decode(ids), ids.cpu().numpy()

        return stream(self, run, show)

    # Tokens and pictures

    @property
    def device(self) -> torch.device:
        return self.pipe.vq_model.codebook.device

    def encode(self, image: Image.Image) -> torch.Tensor:
        """Ids (1, G, G) or (1, G, G, 2) of a picture, cropped to a square."""
        pixels = self.pixels(image).to(self.device, self.pipe.vq_model.dtype)
        return encode_all(self.pipe.vq_model, pixels)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Pixels (1, 3, S, S) in [-1, 1] of a picture, cropped to a square."""
        array = np.array(square(image, self.side))
        return to_pixels(torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0))

    def decode(self, ids: torch.Tensor) -> list[Image.Image]:
        """Pictures of ids (B, G, G) or (B, G, G, 2)."""
        pixels = decode_all(self.pipe.vq_model, ids.to(self.device)).float()
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")

    def ids_of(self, image: Image.Image, made: dict | None) -> torch.Tensor:
        """Ids (1, G, G, ...): those an image of `made` is of, else by the tokenizer."""
        # Encoding a decoded picture may give other ids than it was made of; where they are known,
        # edits start from the true ones. The page sends the enlarged picture back, clients the
        # plain one.
        made = made or {"ids": [], "images": []}
        for ids, own in zip(made["ids"], made["images"], strict=True):
            if any(same(image, shown) for shown in (own, enlarge(own))):
                return torch.from_numpy(ids).unsqueeze(0)
        return self.encode(image).cpu()

    def _ids_array(self, image: Image.Image, made: dict | None) -> np.ndarray:
        """`ids_of` in a form that can leave a process that is about to end."""
        return self.ids_of(image, made).numpy()

    def some_label(self) -> int:
        """A random class."""
        return int(torch.randint(self.pipe.transformer.config.num_classes, ()))

    def example(self) -> dict:
        """An image of some class, as generated images are remembered."""
        label = self.some_label()
        *_, (_, images, ids) = self.sample(label, 1, int(torch.randint(MAX_SEED, ())), {})
        return {"ids": ids, "images": images, "label": label}

    # Clusters

    def _cluster_map(self) -> ClusterMap | None:
        """The map over the (semantic) codebook, from the transformer where it has the clusters."""
        if self.pipe.cluster_map is not None:
            return copy.deepcopy(self.pipe.cluster_map).cpu()
        if not self.pipe.transformer.scheme.holds_clusters:
            return None
        # Two-stage generators hold clusters of their own, which those shown must agree with.
        cluster_of = self.pipe.transformer.token_embedding.cluster_of.cpu()
        return ClusterMap.from_labels(cluster_of, self.pipe.vq_model.codebook, method="transformer")

    @property
    def cluster_bounds(self) -> tuple[int, int]:
        """Smallest and largest number of clusters that the map can be cut into."""
        if self.map is None:
            return 1, 1
        merges, codes = len(self.map.merges), self.map.codebook_size
        return (codes - merges, codes) if merges else (self.map.num_clusters,) * 2

    def cut(self, clusters: Any) -> ClusterMap:
        """The map with a number of clusters from a client.

        Raises:
            ValueError: a pipeline without clusters, or a number its tree cannot give.
        """
        if self.map is None:
            raise ValueError("this pipeline has no cluster map, so there are no clusters to show.")
        count = number("number of clusters", clusters, *self.cluster_bounds, integer=True)
        if count == self.map.num_clusters:
            return self.map
        cut = self._cuts.get(count)  # another thread may drop it from the dictionary any time
        # A cut costs a pass over the tree, and the slider asks for the same few again and again.
        if cut is None:
            cut = self._cuts[count] = self.map.cut(count)
            for oldest in list(self._cuts)[:-CUTS]:
                self._cuts.pop(oldest, None)
        return cut

    def patches(self, ids: list[int]) -> list[Image.Image]:
        """What each id looks like, decoded once and kept."""
        # Decoded together; what is kept is at most one small patch for each code.
        missing = sorted(set(ids) - self._patches.keys())
        if missing:
            for code, pixels in zip(missing, self._decode_patches(missing), strict=True):
                self._patches[code] = Image.fromarray(pixels)
        return [self._patches[code] for code in ids]

    def _patch_pixels(self, ids: list[int]) -> np.ndarray:
        """What ids look like among other codes, (n, f, f, 3) uint8."""
        patches = code_patches(self.pipe.vq_model, torch.tensor(ids))
        return patches.permute(0, 2, 3, 1).contiguous().numpy()
