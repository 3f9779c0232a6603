"""`codeclade convert`: published files to loadable pipeline folders, and back."""

import importlib
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeclade import CodecladePipeline, CodecladeTextPipeline, Refiner, VQModel
from codeclade.checkpoints.dcpe import FAMILY as DCPE
from codeclade.checkpoints.iar2 import FAMILY as IAR2
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from codeclade.checkpoints.llamagen import GUIDANCE
from codeclade.cli import main
from codeclade.components.refiner import RefinerConfig
from codeclade.data.imagenet import class_names, synset_names

CODES, CLUSTERS, GRID = 64, 24, 4
HEADS = ["--heads", "2"]
KNOWN = {0: "tench", 207: "golden retriever", 360: "otter", 574: "golf ball", 985: "daisy"}


def published_vq(tiny_vq, **changes):
    """A tokenizer whose channels the converter can know: groups of 32."""
    fields = {
        "block_out_channels": (32, 32),
        "latent_channels": 32,
        "norm_num_groups": 32,
        "codebook_size": CODES,
        "codebook_dim": 8,
    }
    return tiny_vq(**(fields | changes))


@pytest.fixture
def files(tmp_path, tiny_vq, tiny_transformer) -> dict[str, Path]:
    """Published files of all kinds at tiny size: 8 x 8 pixels, 4 x 4 tokens."""
    folder = tmp_path / "published"
    folder.mkdir()
    codebook = published_vq(tiny_vq)
    parts = {
        "vq": LLAMAGEN.tokenizer.published_weights(codebook),
        "gpt": LLAMAGEN.generator.published_weights(
            tiny_transformer(vocab_size=CODES, num_classes=1000)
        ),
        "few": LLAMAGEN.generator.published_weights(tiny_transformer(vocab_size=CODES)),
        "clusters": LLAMAGEN.generator.published_weights(
            tiny_transformer(vocab_size=CLUSTERS, num_classes=1000, scheme="cluster")
        ),
        "text": LLAMAGEN.generator.published_weights(
            tiny_transformer(vocab_size=CODES, num_classes=0, text_dim=12, prefix_length=6)
        ),
    }
    for name, weights in parts.items():
        torch.save({"model": weights, "steps": 1}, folder / f"{name}.pt")
    index = torch.arange(CODES) % CLUSTERS
    torch.save(torch.cat([index, index])[CODES:], folder / "idx.pt")
    torch.manual_seed(0)
    refiner = Refiner(
        RefinerConfig(CODES, CLUSTERS, GRID, 1000, hidden_size=32, num_attention_heads=2,
                      intermediate_size=48)
    )  # fmt: skip
    torch.nn.init.normal_(refiner.head.weight)
    torch.save({"model": DCPE.refiner.published_weights(refiner)}, folder / "refine.pt")
    return {path.stem: path for path in folder.iterdir()}


def llamagen(files, out, gpt="gpt", size="8", *more) -> list[str]:
    arguments = ["--vq", files["vq"], "--gpt", files[gpt], "--image-size", size, "--out", out]
    return ["convert", "llamagen", *map(str, arguments), *HEADS, *more]


def load(out, kind=CodecladePipeline):
    pipe = kind.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def refused(arguments, out, capsys) -> str:
    """The one sentence a refused command prints; nothing may be left of its output."""
    before = sorted(path.name for path in Path(out).parent.iterdir())
    assert main([str(argument) for argument in arguments]) == 2
    assert sorted(path.name for path in Path(out).parent.iterdir()) == before
    message = capsys.readouterr().err.strip()
    assert message.startswith("codeclade convert: ") and "\n" not in message
    return message


def test_imagenet_names_are_in_wordnet_order():
    names, ids = class_names(), list(synset_names())
    assert len(names) == len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert all(len(one) == 9 and one[0] == "n" and one[1:].isdecimal() for one in ids)
    assert {i: names[i].split(",")[0] for i in KNOWN} == KNOWN
    assert ids[207] == "n02099601"


def test_llamagen_becomes_a_pipeline_that_says_what_it_is(files, tmp_path, capsys):
    out = tmp_path / "pipe"
    assert main(llamagen(files, out)) == 0
    assert str(out) in capsys.readouterr().out
    pipe = load(out)
    assert pipe.get_label_ids(["otter", "golden retriever", 0]) == [360, 207, 0]
    images = pipe("daisy", output_type="pt", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 3, 8, 8)
    weights = torch.load(files["gpt"])["model"]
    assert_same(LLAMAGEN.generator.published_weights(pipe.transformer), weights)
    provenance = json.loads((out / "provenance.json").read_text())
    assert (provenance["method"], provenance["license"]) == ("LlamaGen", "mit")
    sizes = {file["name"]: file["bytes"] for file in provenance["files"]}
    assert sizes["gpt.pt"] == Path(files["gpt"]).stat().st_size
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("method", "width", "scale"),
    [
        ("llamagen", 768, 2.0),
        ("llamagen", 1024, 2.0),
        ("llamagen", 1280, 1.75),
        ("llamagen", 1536, 1.75),
        ("llamagen", 3200, 1.65),
        ("dcpe", 768, 2.0),
        ("dcpe", 1024, 1.85),
        ("dcpe", 1280, 1.85),
        ("iar", 768, 2.25),
    ],
)
def test_guidance_is_that_of_the_published_evaluation(method, width, scale):
    module = importlib.import_module(f"codeclade.checkpoints.{method}")
    assert module.GUIDANCE[width] == scale


def test_defaults_reach_the_pipeline(files, tmp_path, monkeypatch):
    monkeypatch.setitem(GUIDANCE, 32, 1.625)
    main(llamagen(files, tmp_path / "pipe"))
    config = load(tmp_path / "pipe").config
    assert (config.guidance_scale, config.temperature, config.top_k, config.top_p) == (
        1.625, 1.0, 0, 1.0,
    )  # fmt: skip


def test_other_classes_get_no_imagenet_names(files, tmp_path):
    main(llamagen(files, tmp_path / "pipe", "few"))
    pipe = load(tmp_path / "pipe")
    assert pipe.config.id2label == {}
    assert pipe(4, output_type="latent").images.shape == (1, GRID, GRID)


def test_a_text_generator_becomes_a_text_pipeline(files, tmp_path):
    assert main(llamagen(files, tmp_path / "pipe", "text")) == 0
    pipe = load(tmp_path / "pipe", CodecladeTextPipeline)
    assert (pipe.config.guidance_scale, pipe.config.top_k) == (7.5, 1000)
    images = pipe(prompt_embeds=torch.randn(1, 4, 12), output_type="pt").images
    assert images.shape == (1, 3, 8, 8)
    provenance = json.loads((tmp_path / "pipe" / "provenance.json").read_text())
    assert "image-text pairs" in provenance["statement"]


def dcpe(files, out, *more) -> list[str]:
    arguments = ["--vq", files["vq"], "--gpt", files["clusters"], "--idx-to-cluster", files["idx"]]
    arguments += ["--image-size", "8", "--out", out]
    return ["convert", "dcpe", *map(str, arguments), *HEADS, *map(str, more)]


def test_dcpe_with_its_index_and_refine_net(files, tmp_path):
    out = tmp_path / "pipe"
    assert main(dcpe(files, out, "--refiner", files["refine"])) == 0
    pipe = load(out)
    assert pipe.transformer.config.scheme == "cluster"
    index = torch.load(files["idx"])
    assert torch.equal(pipe.cluster_map.mapping, index)
    ids = pipe("otter", output_type="latent").images
    assert ids.max() >= CLUSTERS  # ids, not clusters
    assert_same(DCPE.refiner.published_weights(pipe.refiner), torch.load(files["refine"])["model"])
    assert main(dcpe(files, tmp_path / "plain")) == 0
    assert load(tmp_path / "plain").refiner is None


def test_dcpe_parts_must_fit(files, tmp_path, capsys):
    out = tmp_path / "pipe"
    net = torch.load(files["refine"])["model"] | {"tok_embeddings.weight": torch.zeros(25, 32)}
    torch.save(net, files["refine"])
    more = "--refiner", files["refine"]
    assert "refiner turns 25 clusters into 64 ids" in refused(dcpe(files, out, *more), out, capsys)
    torch.save(torch.arange(CODES) % 7, files["idx"])
    assert "predicts 24" in refused(dcpe(files, out), out, capsys)
    torch.save(torch.arange(10), files["idx"])
    assert "has shape (10,), but there are 64 codes" in refused(dcpe(files, out), out, capsys)
    torch.save(torch.zeros(CODES), files["idx"])
    assert "not one row of integers" in refused(dcpe(files, out), out, capsys)


def chain_order(codebook: Tensor) -> Tensor:
    """mapping[old] = new along a greedy nearest-neighbor chain, as IAR orders each block."""
    unit = F.normalize(codebook, dim=-1)
    order, free = [0], set(range(1, len(unit)))
    while free:
        left = sorted(free)
        order.append(left[int((unit[left] @ unit[order[-1]]).argmax())])
        free.discard(order[-1])
    return torch.tensor(order).argsort()


def iar(files, out, vq, *more) -> list[str]:
    arguments = ["--vq", vq, "--gpt", files["gpt"], "--image-size", "8", "--out", out]
    return ["convert", "iar", *map(str, arguments), *HEADS, *map(str, more)]


def test_iar_takes_the_reordered_tokenizer_or_the_mapping(files, tmp_path, capsys, tiny_vq):
    weights = torch.load(files["vq"])["model"]
    key = "quantize.embedding.weight"
    # Points along a curve: in order, neighbors are close, as in a codebook of 16384.
    angle = torch.linspace(0, 5, CODES)
    curve = torch.stack([f(angle * k) for k in (1, 2, 3, 4) for f in (torch.sin, torch.cos)], 1)
    weights[key] = curve[torch.randperm(CODES, generator=torch.Generator().manual_seed(0))]
    original, reordered, mapping = (tmp_path / f"published/{n}.pt" for n in ("o", "r", "m"))
    torch.save({"model": weights}, original)
    permutation = chain_order(weights[key])
    torch.save(torch.cat([permutation, permutation])[CODES:], mapping)
    new = torch.empty_like(weights[key])
    new[permutation] = weights[key]
    torch.save({"model": weights | {key: new}}, reordered)

    assert main(iar(files, tmp_path / "a", reordered)) == 0
    assert main(iar(files, tmp_path / "b", original, "--mapping", mapping)) == 0
    first, second = load(tmp_path / "a"), load(tmp_path / "b")
    assert torch.equal(first.vq_model.codebook, new)
    assert torch.equal(second.vq_model.codebook, new)
    assert first.cluster_map.num_clusters == 1  # one block of 128 at most

    out = tmp_path / "c"
    assert "is not in IAR's order" in refused(iar(files, out, original), out, capsys)
    twice = refused(iar(files, out, reordered, "--mapping", mapping), out, capsys)
    assert "in IAR's order already" in twice
    torch.save(torch.zeros(CODES, dtype=torch.int64), mapping)
    wrong = refused(iar(files, out, original, "--mapping", mapping), out, capsys)
    assert "no permutation of the 64 codes" in wrong


def test_iar2_becomes_a_pipeline_and_goes_back(tmp_path, tiny_vq, tiny_transformer):
    vq_model = published_vq(tiny_vq, codebook_size=16, detail_codebook_size=40)
    transformer = tiny_transformer(
        scheme="semantic_detail",
        coarse_vocab_size=16,
        vocab_size=40,
        num_classes=1000,
        positions_per_cell=2,
        head_layers=1,
    )
    weights = {
        "vq": IAR2.tokenizer.published_weights(vq_model),
        "gpt": IAR2.generator.published_weights(transformer),
    }
    torch.save({"model": weights["vq"], "optimizer_main": {}}, tmp_path / "0485000.pt")
    torch.save(weights["gpt"], tmp_path / "IAR2-B.pth")
    paths = ["--vq", tmp_path / "0485000.pt", "--gpt", tmp_path / "IAR2-B.pth", "--out"]
    arguments = [*paths, tmp_path / "pipe", "--image-size", 8, *HEADS]
    assert main(["convert", "iar2", *map(str, arguments)]) == 0
    pipe = load(tmp_path / "pipe")
    assert pipe.config.guidance_scale == 3.0
    assert pipe.config.guidance_schedule == {"name": "attention", "start": 1.75, "weight": 0.05}
    assert pipe("otter", output_type="latent").images.shape == (1, GRID, GRID, 2)
    assert (
        main(["convert", "to-llamagen", str(tmp_path / "pipe"), "--out", str(tmp_path / "b")]) == 0
    )
    for name, expected in weights.items():
        assert_same(load_file(tmp_path / "b" / f"{name}.safetensors"), expected)


@pytest.mark.parametrize("pt", [False, True], ids=["safetensors", "pt"])
def test_back_to_the_published_names_byte_for_byte(pt, files, tmp_path):
    main(dcpe(files, tmp_path / "pipe", "--refiner", files["refine"]))
    back = tmp_path / "back"
    more = ["--pt"] if pt else []
    assert main(["convert", "to-llamagen", str(tmp_path / "pipe"), "--out", str(back), *more]) == 0
    suffix = "pt" if pt else "safetensors"
    names = {path.name for path in back.iterdir()}
    assert names == {f"{n}.{suffix}" for n in ("vq", "gpt", "idx_to_cluster", "refiner")}
    for name, source in (("vq", "vq"), ("gpt", "clusters"), ("refiner", "refine")):
        expected = torch.load(files[source])["model"]
        path = back / f"{name}.{suffix}"
        assert_same(torch.load(path)["model"] if pt else load_file(path), expected)
    names = {"vq": "vq", "clusters": "gpt", "idx": "idx_to_cluster"}
    again = {key: back / f"{name}.{suffix}" for key, name in names.items()}
    assert main(dcpe(again, tmp_path / "again")) == 0
    assert torch.equal(load(tmp_path / "again").cluster_map.mapping, torch.load(files["idx"]))


def test_text_generators_go_back_too(files, tmp_path):
    main(llamagen(files, tmp_path / "pipe", "text"))
    main(["convert", "to-llamagen", str(tmp_path / "pipe"), "--out", str(tmp_path / "back")])
    assert_same(load_file(tmp_path / "back/gpt.safetensors"), torch.load(files["text"])["model"])


def test_an_existing_folder_is_replaced_only_when_asked_and_harmless(files, tmp_path, capsys):
    out = tmp_path / "pipe"
    main(llamagen(files, out))
    before = (out / "transformer/model.safetensors").read_bytes()
    assert "is not empty" in refused(llamagen(files, out, "few"), out, capsys)
    assert (out / "transformer/model.safetensors").read_bytes() == before
    (out / "thesis.tex").write_text("years of work")
    message = refused(llamagen(files, out, "few", "8", "--overwrite"), out, capsys)
    assert "holds thesis.tex, which would be lost" in message
    (out / "thesis.tex").unlink()
    broken = dict(files, gpt=files["vq"])
    refused(llamagen(broken, out, "gpt", "8", "--overwrite"), out, capsys)
    assert (out / "transformer/model.safetensors").read_bytes() == before
    assert main(llamagen(files, out, "few", "8", "--overwrite")) == 0
    assert load(out).transformer.config.num_classes == 5
    assert "there is no folder" in refused(llamagen(files, tmp_path / "no/pipe"), out, capsys)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(llamagen(files, tmp_path / "file"), out, capsys)


@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_a_symbolic_link_is_no_output(target, files, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / target)
    for more in ([], ["--overwrite"]):
        out = tmp_path / "link"
        message = refused(llamagen(files, out, "gpt", "8", *more), out, capsys)
        assert "is a symbolic link; give the folder itself" in message
    assert (tmp_path / "elsewhere" / "kept.txt").read_text() == "years of work"


class Trap:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "executed")


def damage(files, how: str, target: Path) -> None:
    """Spoil the generator's file."""
    gpt = files["gpt"]
    weights = torch.load(gpt)["model"]
    if how == "missing":
        gpt.unlink()
    elif how == "truncated":
        gpt.write_bytes(gpt.read_bytes()[:5000])
    elif how == "malicious":
        torch.save({"model": weights, "extra": Trap(target)}, gpt)
    elif how == "malicious, plain":
        gpt.write_bytes(pickle.dumps(Trap(target), protocol=2))
    elif how == "wrong shape":
        weights["layers.1.attention.wo.weight"] = torch.zeros(32, 31)
        save_file(weights, gpt.with_suffix(".safetensors"))
        files["gpt"] = gpt.with_suffix(".safetensors")
    elif how == "other network":
        torch.save({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, gpt)
    elif how == "one key more":
        torch.save(weights | {"layers.0.lora.weight": torch.zeros(2)}, gpt)
    elif how == "other codebook":
        weights["tok_embeddings.weight"] = weights["output.weight"] = torch.zeros(63, 32)
        torch.save(weights, gpt)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "there is no checkpoint file {gpt}"),
        ("truncated", "{gpt} is truncated or damaged"),
        ("malicious", "{gpt} holds Python objects beside tensors; refused"),
        ("malicious, plain", "{gpt} holds Python objects beside tensors; refused"),
        ("wrong shape", "{gpt}: layers.1.attention.wo.weight has shape (32, 31)"),
        ("other network", "{gpt}: this is no LlamaGen generator checkpoint: missing tok_embedd"),
        (
            "one key more",
            "{gpt}: this is no LlamaGen generator checkpoint: unexpected layers.0.lora",
        ),
        ("other codebook", "predicts 63"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(how, sentence, files, tmp_path, capsys):
    out, target = tmp_path / "pipe", tmp_path / "published" / "executed.txt"
    damage(files, how, target)
    message = refused(llamagen(files, out), out, capsys)
    assert sentence.format(gpt=files["gpt"]) in message
    assert not target.exists()


@pytest.mark.parametrize("size", ["7", "0", "-8"])
def test_an_image_size_that_does_not_fit_is_refused(size, files, tmp_path, capsys):
    out = tmp_path / "pipe"
    message = refused(llamagen(files, out, "gpt", size), out, capsys)
    assert (
        f"image size {size} does not fit this tokenizer: give a positive multiple of 2" in message
    )


def test_the_tokenizer_alone(files, tmp_path, capsys):
    out = tmp_path / "vq"
    assert main(["convert", "llamagen", "--vq", str(files["vq"]), "--out", str(out)]) == 0
    weights = torch.load(files["vq"])["model"]
    assert_same(LLAMAGEN.tokenizer.published_weights(VQModel.from_pretrained(out)), weights)
    arguments = ["convert", "llamagen", "--vq", files["vq"], "--gpt", files["gpt"], "--out"]
    assert "give --image-size" in refused([*arguments, tmp_path / "p"], tmp_path / "p", capsys)


def test_an_unknown_width_asks_for_the_heads(files, tmp_path, capsys):
    arguments = llamagen(files, tmp_path / "pipe")[: -len(HEADS)]
    message = refused(arguments, tmp_path / "pipe", capsys)
    assert "width 32 is no published size" in message


def test_an_unknown_kind_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "vqgan", "--out", "x"])
    assert stopped.value.code == 2
    assert "llamagen" in capsys.readouterr().err


def test_to_llamagen_needs_a_pipeline(tmp_path, capsys):
    arguments = ["convert", "to-llamagen", tmp_path, "--out", tmp_path / "back"]
    assert "is no pipeline folder" in refused(arguments, tmp_path / "back", capsys)


def test_converted_files_name_no_path_of_this_machine(files, tmp_path):
    main(llamagen(files, tmp_path / "pipe"))
    for path in (tmp_path / "pipe").rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(), path.name
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    assert index["id2label"]["207"] == "golden retriever"
