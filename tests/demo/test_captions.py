"""The app of a pipeline that takes captions: a text field where classes would be."""

import numpy as np
import pytest
from gradio_client import handle_file

from builders import build_t5, build_text_pipeline, build_tokenizer
from codeclade.demo import build
from codeclade.demo.app import create, heading
from codeclade.demo.captions import CaptionBackend
from demo.app_client import GENERATE, arrays, connect, seeded
from demo.server import served

PROMPT = "a red dog on the beach"


@pytest.mark.parametrize(
    "scheme", ["cluster", pytest.param("cluster_token", marks=pytest.mark.slow)]
)
def test_every_tab_takes_a_text(scheme, picture):
    pipe = build_text_pipeline(scheme)
    with served(build(CaptionBackend(pipe))) as address:
        client = connect(address)
        asked = {**GENERATE, "name": PROMPT, "count": 2}
        *_, last = list(client.submit(**asked, api_name="/generate"))
        drawn = pipe(
            PROMPT, guidance_scale=3.0, top_k=0, num_images_per_prompt=2, generator=seeded()
        )
        for image, made in zip(arrays(last[0]), drawn.images, strict=True):
            assert np.array_equal(image, np.asarray(made))
        assert last[1] == f"{PROMPT}, seed 7, guidance 3"
        file = handle_file(picture)
        gallery, note = client.predict(file, PROMPT, 2, 5, api_name="/redraw")
        assert len(gallery) == 4 and "tokens changed" in note
        image = {"background": file, "layers": [], "composite": None}
        gallery, note = client.predict(image, PROMPT, 0.5, 3, 5, api_name="/edit")
        assert len(gallery) == 3 and "tokens changed" in note
        for text, words in ((" ", "Say in the prompt"), ("a" * 501, "at most 500 characters")):
            with pytest.raises(Exception, match=words):
                client.predict(**{**GENERATE, "name": text}, api_name="/generate")


def test_fields_and_words_are_of_captions(tmp_path, monkeypatch):
    build_text_pipeline(encoder=False).save_pretrained(tmp_path / "bare")
    monkeypatch.setenv("CODECLADE_PIPELINE", str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="holds no text encoder; name one"):
        create()
    build_t5().save_pretrained(tmp_path / "t5")
    build_tokenizer().save_pretrained(tmp_path / "t5")
    monkeypatch.setenv("CODECLADE_TEXT_ENCODER", str(tmp_path / "t5"))
    fields = [block for block in create().blocks.values() if hasattr(block, "label")]
    labels = [block.label for block in fields]
    assert "Prompt" in labels and "Class" not in labels
    assert "Images of what a text says, 16 x 16" in heading(CaptionBackend(build_text_pipeline()))
