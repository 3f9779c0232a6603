"""The codeclade Space: choose a class, watch the image appear row by row.

Runs on CPU with the bundled pipeline, and on ZeroGPU where the `spaces` package is present. Set
CODECLADE_PIPELINE to a folder or Hub id to show another pipeline.
"""

import os
import queue
import threading

import gradio as gr
import torch

from codeclade import CodecladePipeline, bundled

try:
    from spaces import GPU
except ImportError:  # outside a ZeroGPU Space

    def GPU(function):
        return function


MAX_IMAGES, MAX_SEED = 8, 2**31 - 1

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = CodecladePipeline.from_pretrained(os.environ.get("CODECLADE_PIPELINE") or bundled()).to(
    device
)
pipe.set_progress_bar_config(disable=True)
lock = threading.Lock()  # a pipeline keeps its guidance scale while it runs
names = [pipe.config.id2label[str(i)] for i in range(pipe.transformer.config.num_classes)]


def show(images, name: str) -> list[tuple]:
    """Gallery entries, enlarged with sharp pixels where the images are small."""
    factor = max(1, 256 // images[0].width)
    size = images[0].width * factor, images[0].height * factor
    return [(image.resize(size, 0), name) for image in images]


@GPU
def generate(name, guidance_scale, temperature, top_k, top_p, seed, count):
    """Generate images of a class; yields the gallery after every row of tokens."""
    try:
        count, seed = int(count), int(seed)
        if not 1 <= count <= MAX_IMAGES:
            raise ValueError(f"number of images {count} must be 1 to {MAX_IMAGES}.")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed {seed} must be 0 to {MAX_SEED}.")
        label = pipe.get_label_ids(name)[0]
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error)) from None
    pictures: queue.Queue = queue.Queue()

    def after_token(pipeline, step, token, kwargs):
        grid = pipeline.transformer.config.grid_size
        if (step + 1) % grid == 0:
            uniforms = torch.zeros(kwargs["latents"].shape)
            pictures.put(pipeline._to_output(kwargs["latents"], uniforms, "pil"))
        return {}

    def work():
        try:
            with lock:
                result = pipe(
                    label,
                    guidance_scale=guidance_scale,
                    temperature=temperature,
                    top_k=int(top_k),
                    top_p=top_p,
                    num_images_per_prompt=count,
                    generator=torch.Generator().manual_seed(seed),
                    callback_on_step_end=after_token,
                )
            pictures.put(result.images)
            pictures.put(None)
        except Exception as error:
            pictures.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (images := pictures.get()) is not None:
        if isinstance(images, Exception):
            raise gr.Error(str(images)) from None
        yield show(images, name)


with gr.Blocks(title="codeclade") as demo:
    gr.Markdown(
        "# codeclade\nClass-conditional images, predicted cluster by cluster of a codebook."
    )
    with gr.Row():
        with gr.Column():
            name = gr.Dropdown(names, value=names[0], label="Class", filterable=True)
            count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images")
            seed = gr.Number(7, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
            guidance = gr.Slider(
                1, 8, value=pipe.config.guidance_scale, step=0.25, label="Guidance"
            )
            with gr.Accordion("Sampling", open=False):
                temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
                top_k = gr.Slider(0, 500, value=0, step=1, label="Top-k (0: all)")
                top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p")
            with gr.Row():
                start, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
        gallery = gr.Gallery(label="Images", columns=4, format="png", object_fit="contain")
    inputs = [name, guidance, temperature, top_k, top_p, seed, count]
    running = start.click(generate, inputs, gallery, api_name="generate", concurrency_limit=1)
    stop.click(None, cancels=[running])

demo.queue(default_concurrency_limit=1, max_size=20)

if __name__ == "__main__":
    demo.launch()
