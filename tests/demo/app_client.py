"""What tests of the app's endpoints share."""

import json
import urllib.error
import urllib.request

import numpy as np
import torch
from gradio_client import Client
from PIL import Image

from codeclade.data.pixels import to_pixels

GENERATE = {
    "name": "lion",
    "count": 1,
    "guidance_scale": 3,
    "guidance_schedule": "constant",
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "seed": 7,
}


def connect(address: str) -> Client:
    return Client(address, verbose=False, analytics_enabled=False)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(gallery: list[dict]) -> list[np.ndarray]:
    return [np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery]


def ids_of(path, pipe) -> torch.Tensor:
    """Ids (1, G, G) of the centered square of a picture file, by the pipeline's own parts."""
    image = Image.open(path).convert("RGB")
    left = (image.width - image.height) // 2
    box = (left, 0, left + image.height, image.height)
    image = image.resize((64, 64), Image.Resampling.LANCZOS, box)
    pixels = to_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    with torch.no_grad():
        return pipe.vq_model.encode(pixels).ids


def post(address: str, endpoint: str, data: list) -> str:
    """The last event of a raw API call, as curl would make it."""
    url = f"{address}/gradio_api/call/{endpoint}"
    request = urllib.request.Request(
        url, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        return answer.read().decode()
