import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sgmgm import pipeline as pipelines
from sgmgm import workflow
from sgmgm.classifier import Classifier
from sgmgm.pipeline import Pipeline, read_card, write_card
from sgmgm.smoothing import ToastSmoother
from sgmgm.tokenizer import VQTokenizer
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import CheckpointError, InputError

PASSES = {"none": 1, "sharpened": 1, "cfg": 2, "spatial": 1, "spatial-embeddings": 2, "sag": 2,
          "auto": 2, "self": 2, "self+cfg": 3}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(trained):
    """The trained pipeline, but one that listens to its class: 60 steps do not teach it that."""
    pipe = Pipeline.from_pretrained(trained, "cpu")
    draw = torch.Generator().manual_seed(0)
    pipe.transformer.embed.word_embeddings.weight.data[64:74].normal_(generator=draw)
    for layer in pipe.transformer.transformer_layers:
        layer.attention.value.weight.data.mul_(10)
    return pipe


def sentence(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "Traceback" not in text
    return text


# ----------------------------------------------------------------------------------- the pipeline


def test_labels_in_images_out(pipe):
    samples = pipe([3, 0, 9], steps=4)
    assert samples.images.shape == (3, 3, 32, 32) and samples.images.dtype == torch.float32
    assert samples.images.min() >= 0 and samples.images.max() <= 1
    assert samples.labels.tolist() == [3, 0, 9]
    assert samples.trajectory.canvases.shape == (4, 3, 64)
    assert samples.images.equal(pipe.tokenizer.decode(samples.trajectory.tokens))


def test_labels_may_be_names_numbers_arrays_or_tensors(pipe):
    tensor = torch.tensor([2, 0])
    expected = pipe(tensor, steps=2).trajectory.tokens
    assert tensor.tolist() == [2, 0]
    mixed = [np.int64(2), torch.tensor(0)]
    for labels in (["fish", "house"], [2, "house"], (2, 0), np.array([2, 0]), mixed, iter((2, 0))):
        assert pipe(labels, steps=2).trajectory.tokens.equal(expected)
    assert pipe("fish", steps=2).trajectory.tokens.equal(expected[:1])
    for label in (2, np.int64(2), torch.tensor(2)):
        assert pipe(label, steps=np.int64(2)).trajectory.tokens.equal(expected[:1])
    for label in (True, np.bool_(1), torch.tensor(True), [np.bool_(1)]):
        with pytest.raises(InputError, match="unknown class"):
            pipe(label, steps=2)


def test_no_class_is_a_label_too(pipe, monkeypatch):
    """The network learnt "no class" for classifier-free guidance; its number is C."""
    assert pipe.labels([None, "none", 3]).tolist() == [10, 10, 3]
    free = pipe([None, "none"], seeds=[7, 7], steps=4, guidance="self", scale=0.5)
    named = pipe([0], seeds=[7], steps=4, guidance="self", scale=0.5)
    assert free.labels.tolist() == [10, 10] and free.images[0].equal(free.images[1])
    assert not free.images[:1].equal(named.images)
    (part,) = pipe.stream([None, 2], steps=1)
    assert part.labels.tolist() == [10, 2]
    monkeypatch.setattr(pipe.card, "classes", ["none", *pipe.card.classes[1:]])
    assert pipe.labels(["none", None]).tolist() == [0, 10]  # a class of this name comes first


def test_a_text_is_a_name_before_it_is_a_number(pipe, monkeypatch):
    assert (
        pipe.labels(["3", 3, np.int64(3), torch.tensor(3), np.str_("fish")]).tolist()[:4] == [3] * 4
    )
    monkeypatch.setattr(pipe.card, "classes", [*"123456789", "ten"])
    assert pipe.labels(["1", 1, "ten"]).tolist() == [0, 1, 9]
    with pytest.raises(InputError, match="unknown class '0': give 0..9 or one of 1, 2"):
        pipe.labels(["0"])


def test_an_image_depends_on_its_seed_and_label_alone(pipe):
    labels, seeds = [0, 1, 2, 3, 4, 5], [5, 99, 7, 1, 0, 2**40]
    whole = pipe(labels, seeds=seeds, steps=5).trajectory.tokens
    for i in (0, 3, 5):
        assert pipe(labels[i], seeds=[seeds[i]], steps=5).trajectory.tokens.equal(whole[i : i + 1])
    assert not pipe(0, seeds=[6], steps=5).trajectory.tokens.equal(whole[:1])
    sure = [pipe(label, seeds=[5], steps=5).trajectory.confidence for label in (0, 1)]
    assert not sure[0].equal(sure[1])


def test_a_stream_is_one_batch_cut_in_pieces(pipe):
    labels = [i % 10 for i in range(11)]
    whole = pipe(labels, seeds=range(7, 18), steps=3)
    parts = list(pipe.stream(labels, first_seed=7, batch_size=4, steps=3))
    assert [len(part.labels) for part in parts] == [4, 4, 3]
    assert torch.cat([p.trajectory.tokens for p in parts]).equal(whole.trajectory.tokens)
    assert torch.cat([p.labels for p in parts]).equal(whole.labels)
    torch.testing.assert_close(
        torch.cat([p.images for p in parts]), whole.images, atol=1e-5, rtol=0
    )


def test_in_painting_keeps_what_is_given(pipe):
    tokens = pipe([1, 1], steps=3).trajectory.tokens
    canvas = tokens.clone()
    canvas[:, 32:] = pipe.transformer.config.mask_id
    before = canvas.clone()
    painted = pipe([4, 5], canvas=canvas, seeds=[8, 9], steps=3).trajectory.tokens
    assert painted[:, :32].equal(tokens[:, :32]) and not painted.equal(tokens)
    assert canvas.equal(before)
    one = pipe([4, 5], canvas=canvas[:1], seeds=[8, 9], steps=3).trajectory.tokens
    assert one[0].equal(painted[0])
    full = pipe([4, 5], canvas=tokens, steps=3, schedule="exponential").trajectory.tokens
    assert full.equal(tokens)


@pytest.mark.parametrize("name", PASSES)
def test_network_passes_are_counted(name, pipe):
    assert pipe([1, 2, 3], steps=3, guidance=name).nfe == 3 * PASSES[name]


def test_settings_reach_the_sampler(pipe):
    plain = pipe([1, 2], steps=3).trajectory
    for change in ({"temperature": 100.0}, {"order": "random"}, {"order": "halton"},
                   {"anneal": "compounding"}, {"schedule": "linear"}, {"steps": 4},
                   {"guidance": "cfg", "scale": 30.0},
                   {"guidance": "self", "scale": 30.0, "smoother": "smoother-lora"}):  # fmt: skip
        other = pipe([1, 2], **{"steps": 3, **change}).trajectory
        same = other.tokens.shape == plain.tokens.shape and other.kept.shape == plain.kept.shape
        assert not (same and other.tokens.equal(plain.tokens) and other.kept.equal(plain.kept))
    smoothers = [pipe([1, 2], steps=3, guidance="self", scale=30.0, smoother=name).trajectory
                 for name in ("smoother", "smoother-lora")]  # fmt: skip
    assert not smoothers[0].tokens.equal(smoothers[1].tokens)
    ways = [pipe([1, 2], steps=3, guidance="cfg", scale=30.0, scale_schedule=name).trajectory
            for name in ("constant", "interval")]  # fmt: skip
    assert not ways[0].tokens.equal(ways[1].tokens)
    zero = pipe([1, 2], steps=3, guidance="self", scale=0.0).trajectory
    assert zero.tokens.equal(plain.tokens)


def test_the_card_holds_the_defaults(pipe, own):
    card = read_card(own)
    assert card.dataset == "sprites" and card.preset == "smoke" and len(card.classes) == 10
    assert pipe([0]).trajectory.canvases.shape[0] == card.sampling.steps == 6
    write_card(own, replace(card, sampling=card.sampling.updated(steps=2)))
    assert Pipeline.from_pretrained(own, "cpu")([0]).trajectory.canvases.shape[0] == 2
    assert card.sampling.steps == 6


def test_bfloat16_gives_images_too(trained, monkeypatch):
    """Computed in software where the processor has none."""
    halved = partial(pipelines.fast.FastGuidance, dtype=torch.bfloat16)
    monkeypatch.setattr(pipelines.fast, "FastGuidance", halved)
    monkeypatch.setattr(pipelines, "has_bf16", lambda device: True)
    samples = Pipeline.from_pretrained(trained, "cpu", bf16=True)([0, 1], steps=3)
    assert samples.images.dtype == torch.float32 and samples.images.isfinite().all()


def test_shipped_names_are_found(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "shipped" / "toys")
    monkeypatch.setattr(pipelines, "SHIPPED", tmp_path / "shipped")
    assert Pipeline.from_pretrained("toys", "cpu").card.dataset == "sprites"
    assert "or one of toys." in sentence(lambda: Pipeline.from_pretrained("games"))
    monkeypatch.setattr(pipelines, "SHIPPED", tmp_path / "site-packages")  # without a repository
    text = sentence(lambda: Pipeline.from_pretrained("sprites"))
    assert "none came with this installation: they are in data/checkpoints of its repo" in text


def test_a_card_of_an_earlier_or_a_later_version(own):
    path = own / "pipeline.json"
    card = json.loads(path.read_text())
    del card["sampling"]["order"]
    path.write_text(json.dumps(card | {"colour": "red"}))
    with pytest.warns(UserWarning, match=r"pipeline.json: colour is unknown here and left out\.$"):
        assert read_card(own).sampling.order == "confidence"


def test_folders_with_odd_names(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "Mödell {a} 100% – 模型")
    assert Pipeline.from_pretrained(str(folder), "cpu")([0], steps=1).nfe == 1


# ----------------------------------------------------------------- what can be wrong with a folder


@pytest.mark.parametrize(
    "card, fragment",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a pipeline's"),
        ("3", "is not a pipeline's"),
        ("{}", "is not a pipeline's"),
        ('{"dataset": "x", "preset": "y", "classes": ["a"]}', "belong together"),
        ('{"dataset": "x", "preset": "y", "classes": [], "sampling": {}}', "list of names"),
        ('{"dataset": "x", "preset": "y", "classes": 7, "sampling": {}}', "list of names"),
        ('{"dataset": "x", "preset": "y", "classes": ["a"], "sampling": {"s": 1}}', "no field"),
        (
            '{"dataset": "x", "preset": "y", "classes": ["a"], "sampling": {"order": "odd"}}',
            "order",
        ),
        ('{"dataset": "x", "preset": "y", "classes": ["a"], "sampling": {}}', "belong together"),
    ],
)
def test_a_card_that_is_none(card, fragment, own):
    (own / "pipeline.json").write_text(card)
    assert fragment in sentence(lambda: Pipeline.from_pretrained(own, "cpu"))


def test_a_card_that_is_no_text(own):
    (own / "pipeline.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as JSON" in sentence(lambda: Pipeline.from_pretrained(own, "cpu"))


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_a_part_is_missing(part, own):
    """The sentence names the command; no network is asked for a repository of that name."""
    shutil.rmtree(own / part)
    text = sentence(lambda: Pipeline.from_pretrained(own, "cpu"))
    assert f"first run `sgmgm train {part} --dataset sprites --preset smoke --out {own}`" in text


def test_parts_of_two_systems_do_not_mix(own):
    MaskedTransformer(TransformerConfig(16, 24, 1, 2, 32, 64, 10)).save_pretrained(
        own / "transformer"
    )
    assert "made for 16 tokens, 64 codes and 10 classes, not 64 tokens" in sentence(
        lambda: Pipeline.from_pretrained(own, "cpu")
    )
    MaskedTransformer(TransformerConfig(64, 24, 1, 2, 32, 32, 10)).save_pretrained(
        own / "transformer"
    )
    assert "made for 64 tokens, 32 codes" in sentence(lambda: Pipeline.from_pretrained(own, "cpu"))


@pytest.mark.parametrize("guidance, part", [("self", "smoother"), ("auto", "weak")])
def test_a_helper_is_missing(guidance, part, own):
    shutil.rmtree(own / part)
    pipe = Pipeline.from_pretrained(own, "cpu")
    text = sentence(lambda: pipe([0], steps=1, guidance=guidance))
    assert f"`sgmgm train {part} --dataset sprites --preset smoke --out {own}`" in text
    text = sentence(lambda: pipe([0], steps=1, guidance="self", smoother="mine"))
    assert "sgmgm train smoother --name mine" in text


def test_a_smoother_may_have_any_name(own):
    (own / "smoother").rename(own / "control arm")
    pipe = Pipeline.from_pretrained(own, "cpu")
    assert pipe([0], steps=2, guidance="self", smoother="control arm").nfe == 4


def test_a_smoother_of_another_transformer(own):
    other = MaskedTransformer(TransformerConfig(64, 24, 1, 2, 32, 64, 10))
    ToastSmoother.for_transformer(other).save_pretrained(own / "smoother")
    pipe = Pipeline.from_pretrained(own, "cpu")
    assert "another transformer" in sentence(lambda: pipe([0], steps=1, guidance="self"))


# ------------------------------------------------------------------------------ one model's folder


@pytest.mark.parametrize("kind, part", [(Classifier, "classifier"), (VQTokenizer, "tokenizer"),
                                        (MaskedTransformer, "transformer"),
                                        (ToastSmoother, "smoother")])  # fmt: skip
def test_round_trip(kind, part, trained, tmp_path):
    model = kind.from_pretrained(trained / part)
    assert not model.training
    model.save_pretrained(tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    weights, copies = model.state_dict(), again.state_dict()
    assert weights.keys() == copies.keys()
    assert all(weights[key].equal(copies[key]) for key in weights)
    assert {f.name for f in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors"}


def test_half_precision_on_disk_is_read_into_single(trained, tmp_path):
    model = MaskedTransformer.from_pretrained(trained / "transformer")
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    again = MaskedTransformer.from_pretrained(tmp_path).state_dict()
    for key, value in model.state_dict().items():
        assert again[key].dtype == torch.float32
        assert again[key].equal(value.bfloat16().float())


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b"")


def flip_header(path):
    data = bytearray(path.read_bytes())
    data[30] ^= 0xFF
    path.write_bytes(data)


def huge_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def folder_instead(path):
    path.unlink()
    path.mkdir()


def pickled(path):
    torch.save({"a": torch.zeros(2)}, path)


def wrong_shape(path):
    tensors = load_file(path)
    name = "mlm_layer.mlm_dense.bias"
    save_file(tensors | {name: torch.zeros(len(tensors[name]) + 1)}, path)


def surplus(path):
    save_file(load_file(path) | {"surplus.weight": torch.zeros(2)}, path)


def one_less(path):
    tensors = load_file(path)
    del tensors["mlm_layer.to_logits.bias"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    "damage, fragment",
    [
        (remove, "does not exist"),
        (truncate, "is damaged"),
        (truncate_header, "is damaged"),
        (empty, "is damaged"),
        (flip_header, "is damaged"),
        (huge_header, "is damaged"),
        (folder_instead, "does not exist"),
        (pickled, "is damaged"),
        (wrong_shape, "mlm_layer.mlm_dense.bias"),
        (surplus, "surplus.weight"),
        (one_less, "mlm_layer.to_logits.bias"),
    ],
)
def test_weights_that_cannot_be_used(damage, fragment, own):
    damage(own / "transformer" / "model.safetensors")
    text = sentence(lambda: MaskedTransformer.from_pretrained(own / "transformer"))
    assert fragment in text and "transformer" in text


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"hidden_size": None}, "hidden_size cannot be None"),
        ({"hidden_size": "48"}, "hidden_size cannot be '48'"),
        ({"hidden_size": 48.0}, "hidden_size cannot be 48.0"),
        ({"hidden_size": True}, "hidden_size cannot be True"),
        ({"hidden_size": 0}, "hidden_size cannot be 0"),
        ({"hidden_size": -48}, "hidden_size cannot be -48"),
        ({"hidden_size": 52}, "does not fit"),
        ({"hidden_size": 10**9}, "does not fit"),
        ({"hidden_size": 10**12}, "impossible sizes"),
        ({"hidden_size": 10**30}, "impossible sizes"),
        ({"num_hidden_layers": 3}, "transformer_layers.2"),
        ({"num_hidden_layers": 10**9}, "far more weights"),
        ({"num_vq_tokens": 65}, "position_embeddings"),
        ({"num_attention_heads": 0}, "num_attention_heads cannot be 0"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"dropout": 7}, "impossible sizes"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps cannot be 'tiny'"),
    ],
)
def test_sizes_that_cannot_be(changes, fragment, own):
    """Nothing is allocated for them: 10^9 x 10^9 weights would not go unnoticed."""
    path = own / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert fragment in sentence(lambda: MaskedTransformer.from_pretrained(path.parent))


@pytest.mark.parametrize(
    "changes", [{"channel_mult": []}, {"channel_mult": 3}, {"channel_mult": [1, "a", 2]},
                {"channel_mult": [1, 0, 2]}, {"channel_mult": [1] * 10**4}, {"norm_groups": 0},
                {"num_res_blocks": 10**9}, {"num_embeddings": 0}, {"commitment_cost": None},
                {"resolution": 33}, {"resolution": 10**30}]
)  # fmt: skip
def test_tokenizer_sizes_that_cannot_be(changes, own):
    path = own / "tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sentence(lambda: Pipeline.from_pretrained(own, "cpu"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"hidden_size"', "{}", "[" * 3000])
def test_a_config_that_is_none(text, own):
    path = own / "transformer" / "config.json"
    path.write_text(text)
    assert "config.json" in sentence(lambda: MaskedTransformer.from_pretrained(path.parent))


def test_a_config_is_missing(own):
    (own / "transformer" / "config.json").unlink()
    text = sentence(lambda: MaskedTransformer.from_pretrained(own / "transformer"))
    assert "config.json does not exist" in text


def test_another_kind_of_model(own):
    text = sentence(lambda: VQTokenizer.from_pretrained(own / "transformer"))
    assert "it names no field of a TokenizerConfig" in text


def test_a_packed_pipeline_is_small_whole_and_guarded(trained, tmp_path):
    """float16 weights draw nearly the same pictures; a changed file is refused by its name."""
    packed = tmp_path / "packed"
    workflow.pack(trained, packed, "cpu")
    sizes = [(p / "transformer" / "model.safetensors").stat().st_size for p in (trained, packed)]
    assert sizes[1] < 0.6 * sizes[0]
    assert (packed / "reference.safetensors").is_file()
    for guidance in ("none", "self", "auto"):
        kwargs = {"seeds": [1, 2], "guidance": guidance, "order": "halton"}
        before = Pipeline.from_pretrained(trained, "cpu")([0, 1], **kwargs)
        after = Pipeline.from_pretrained(packed, "cpu")([0, 1], **kwargs)
        agreement = (before.trajectory.tokens == after.trajectory.tokens).float().mean()
        assert agreement > 0.9
    with pytest.raises(CheckpointError, match="exists"):
        workflow.pack(trained, packed, "cpu")
    file = packed / "smoother" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="smoother/model.safetensors .*SHA-256"):
        Pipeline.from_pretrained(packed, "cpu")


def test_packing_what_ships_gives_what_ships(tmp_path):
    out = tmp_path / "again"
    workflow.pack("sprites", out, "cpu")
    shipped = pipelines.SHIPPED / "sprites"
    for part in ("classifier", "tokenizer", "transformer"):
        weights = f"{part}/model.safetensors"
        again, before = load_file(out / weights), load_file(shipped / weights)
        assert again.keys() == before.keys()
        assert all(again[name].equal(before[name]) for name in before)
    # the reference too, although the shipped one would have served
    assert (out / "reference.safetensors").is_file()
