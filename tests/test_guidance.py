import math

import pytest
import torch

from sgmgm.guidance import GUIDANCES, SCALE_SCHEDULES, count_passes, make_guidance
from sgmgm.smoothing import (
    LoraSmoother,
    ToastSmoother,
    blur,
    blur_embeddings,
    blur_ids,
    gaussian_kernel,
    load_smoother,
)
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import InputError

CONFIG = TransformerConfig(16, 32, 3, 4, 48, 20, 5, dropout=0.1)
PASSES = {"none": 1, "sharpened": 1, "cfg": 2, "spatial": 1, "spatial-embeddings": 2, "sag": 2,
          "auto": 2, "self": 2, "self+cfg": 3}  # fmt: skip


def network(seed, config=CONFIG):
    torch.manual_seed(seed)
    model = MaskedTransformer(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    return model


def disturbed(module, amount=0.3):
    """No adapter changes anything while it is fresh; this one does."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(amount * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module")
def model():
    return network(0)


@pytest.fixture(scope="module")
def weak():
    return network(1, TransformerConfig(16, 16, 1, 2, 24, 20, 5))


@pytest.fixture(scope="module")
def toast(model):
    torch.manual_seed(2)
    return disturbed(ToastSmoother.for_transformer(model, tg_factor=3))


@pytest.fixture(scope="module")
def lora(model):
    torch.manual_seed(3)
    return disturbed(LoraSmoother(model, rank=2))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def inputs(batch=4):
    draw = torch.Generator().manual_seed(5)
    canvas = torch.randint(20, (batch, 16), generator=draw)
    canvas[torch.rand(batch, 16, generator=draw) < 0.5] = CONFIG.mask_id
    return canvas, torch.arange(batch) % 5


@pytest.mark.parametrize("kind", ["toast", "lora"])
@pytest.mark.parametrize("name", GUIDANCES)
def test_scale_zero_is_the_plain_prediction_to_the_last_bit(name, kind, model, weak, request):
    smoother = request.getfixturevalue(kind)
    canvas, labels = inputs()
    before = canvas.clone(), labels.clone()
    guidance = make_guidance(name, model, 0.0, weak=weak, smoother=smoother)
    plain, _ = guidance.both(canvas, labels)
    assert guidance(canvas, labels).equal(plain)
    # a batch of 2 B may be summed in another order than a batch of B, hence not `equal`
    torch.testing.assert_close(plain, model(canvas, labels).logits, atol=1e-5, rtol=1e-5)
    if "cfg" not in name:
        assert plain.equal(model(canvas, labels).logits)
    assert canvas.equal(before[0]) and labels.equal(before[1])


@pytest.mark.parametrize("name", GUIDANCES)
def test_one_formula_for_every_kind(name, model, weak, toast):
    canvas, labels = inputs()
    guidance = make_guidance(name, model, 1.7, weak=weak, smoother=toast)
    plain, smooth = guidance.both(canvas, labels)
    guided = guidance(canvas, labels)
    assert guided.shape == (4, 16, 20) and guided.dtype == torch.float32
    if smooth is None:
        assert name == "none" and guided.equal(plain)
    else:
        assert not smooth.allclose(plain)
        torch.testing.assert_close(guided, smooth + 2.7 * (plain - smooth), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["toast", "lora"])
@pytest.mark.parametrize("name", GUIDANCES)
def test_passes_are_those_of_the_methods_table(name, kind, model, weak, request):
    smoother = request.getfixturevalue(kind)
    canvas, labels = inputs()
    guidance = make_guidance(name, model, 1.0, weak=weak, smoother=smoother)
    with count_passes(model, weak, smoother) as passes:
        guidance(canvas, labels)
        guidance(canvas, labels)
    assert passes.rows / len(labels) / 2 == PASSES[name] == guidance.passes
    model(canvas, labels)
    assert passes.rows / len(labels) / 2 == PASSES[name]  # the counter is gone


def test_the_table_names_every_guidance():
    assert PASSES.keys() == GUIDANCES.keys()


def test_spatial_smoothing_is_a_blur_of_sigma_1(model):
    canvas, labels = inputs()
    plain, smooth = make_guidance("spatial", model).both(canvas, labels)
    torch.testing.assert_close(smooth, blur(plain, 1.0))
    _, smooth = make_guidance("spatial-embeddings", model).both(canvas, labels)
    torch.testing.assert_close(smooth, blur_embeddings(model, canvas, labels, 1.0).logits)


def test_classifier_free_guidance_takes_the_class_away(model):
    canvas, labels = inputs()
    plain, smooth = make_guidance("cfg", model).both(canvas, labels)
    no_class = torch.full_like(labels, 5)
    torch.testing.assert_close(smooth, model(canvas, no_class).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain, model(canvas, labels).logits, atol=1e-5, rtol=1e-5)


def test_autoguidance_asks_the_weaker_model(model, weak):
    canvas, labels = inputs()
    _, smooth = make_guidance("auto", model, weak=weak).both(canvas, labels)
    assert smooth.equal(weak(canvas, labels).logits)


def test_self_attention_guidance_masks_the_most_attended_tokens(model):
    canvas, labels = inputs()
    seen = []
    handle = model.embed.word_embeddings.register_forward_hook(lambda m, a, o: seen.append(a[0]))
    try:
        _, smooth = make_guidance("sag", model).both(canvas, labels)
    finally:
        handle.remove()
    assert len(seen) == 2 and seen[0][:, 1:].equal(canvas)
    x = model.embed(model.embed_tokens(canvas, labels))
    for layer in model.transformer_layers[:-1]:
        x = layer(x)
    received = model.transformer_layers[-1].attention.weights(x).mean((1, 2))[:, 1:]
    salient = received > received.mean(1, keepdim=True)
    assert 0 < salient.sum() < salient.numel()
    expected = torch.where(salient, CONFIG.mask_id, canvas)
    assert seen[1][:, 1:].equal(expected) and seen[1][:, 0].equal(labels + 20)
    assert smooth.equal(model(expected, labels).logits)


def test_self_guidance_asks_the_smoother(model, toast, lora):
    canvas, labels = inputs()
    plain = model(canvas, labels)
    _, smooth = make_guidance("self", model, smoother=toast).both(canvas, labels)
    assert smooth.equal(toast(model, plain.hidden, labels).logits)
    _, smooth = make_guidance("self", model, smoother=lora).both(canvas, labels)
    assert smooth.equal(lora(canvas, labels).logits)


def test_two_guidances_add_up(model, toast):
    canvas, labels = inputs()
    plain = model(canvas, labels).logits
    steps = [make_guidance(name, model, 1.5, smoother=toast)(canvas, labels) - plain
              for name in ("cfg", "self")]  # fmt: skip
    together = make_guidance("self+cfg", model, 1.5, smoother=toast)(canvas, labels)
    torch.testing.assert_close(together, plain + sum(steps), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------- scale schedules


def test_scale_schedules():
    known = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0])
    found = {name: SCALE_SCHEDULES[name](known).tolist() for name in SCALE_SCHEDULES}
    assert found["constant"] == [1.0] * 7
    assert found["linear"] == pytest.approx([0, 0.2, 0.4, 1.0, 1.6, 1.8, 2.0])
    assert found["interval"] == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", SCALE_SCHEDULES)
def test_each_images_scale_follows_its_own_canvas(name, model):
    canvas, labels = inputs()
    canvas[0] = CONFIG.mask_id
    canvas[1, :8], canvas[1, 8:] = 3, CONFIG.mask_id
    canvas[2] = 3
    guidance = make_guidance("cfg", model, 2.0, name)
    plain, smooth = guidance.both(canvas, labels)
    known = (canvas < 20).float().mean(1)
    scale = 2.0 * SCALE_SCHEDULES[name](known)[:, None, None]
    torch.testing.assert_close(
        guidance(canvas, labels), plain + scale * (plain - smooth), atol=1e-5, rtol=1e-5
    )


# ----------------------------------------------------------------------------- spatial smoothing


def test_the_kernel_is_a_gaussian():
    kernel = gaussian_kernel(1.0)
    assert len(kernel) == 7 and kernel.sum().item() == pytest.approx(1)
    assert kernel.equal(kernel.flip(0))
    assert (kernel[4] / kernel[3]).item() == pytest.approx(math.exp(-0.5))


def test_blur_is_a_convolution_with_repeated_edges():
    grid = torch.randn(2, 25, 3, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(0.8)
    radius = len(kernel) // 2
    image = grid.unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(image, [radius] * 4, mode="replicate")
    weight = torch.outer(kernel, kernel)[None, None].expand(3, 1, -1, -1)
    expected = (
        torch.nn.functional.conv2d(padded, weight, groups=3).permute(0, 2, 3, 1).flatten(1, 2)
    )
    torch.testing.assert_close(blur(grid, 0.8), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blur(torch.ones(1, 16, 2)), torch.ones(1, 16, 2))


def test_blurred_ids_are_other_codes():
    tokens = torch.tensor([[0, 1000] * 8])
    blurred = blur_ids(tokens)
    assert blurred.dtype == torch.int64 and blurred.shape == tokens.shape
    assert not set(blurred.flatten().tolist()) & {0, 1000}


def test_blurred_embeddings_leave_the_class_sharp(model, monkeypatch):
    canvas, labels = inputs()
    seen = []
    monkeypatch.setattr(model, "hidden_states", lambda w: seen.append(w) or torch.zeros(4, 17, 32))
    blur_embeddings(model, canvas, labels)
    words = model.embed_tokens(canvas, labels)
    assert seen[0][:, 0].equal(words[:, 0])
    torch.testing.assert_close(seen[0][:, 1:], blur(words[:, 1:]))


# ---------------------------------------------------------------------------- semantic smoothers


def test_a_fresh_lora_is_plain_and_leaves_the_model_alone(model):
    canvas, labels = inputs()
    names = [name for name, _ in model.named_modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model(canvas, labels).logits
    smoother = LoraSmoother(model, rank=2).eval()
    assert smoother(canvas, labels).logits.equal(plain)
    disturbed(smoother)
    assert not smoother(canvas, labels).logits.allclose(plain)
    assert model(canvas, labels).logits.equal(plain)
    assert [name for name, _ in model.named_modules()] == names
    assert all(v.equal(weights[k]) for k, v in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()}
    assert shared < {p.data_ptr() for p in smoother.parameters()}  # shared, not copied


def test_smoothers_come_back_from_their_folders(model, toast, lora, tmp_path):
    canvas, labels = inputs()
    plain = model(canvas, labels)
    toast.save_pretrained(tmp_path / "toast")
    lora.save_pretrained(tmp_path / "lora")
    again = load_smoother(tmp_path / "toast", model).eval()
    assert again(model, plain.hidden, labels).logits.equal(
        toast(model, plain.hidden, labels).logits
    )
    again = load_smoother(tmp_path / "lora", model).eval()
    assert again(canvas, labels).logits.equal(lora(canvas, labels).logits)
    suffixes = {f.suffix for f in tmp_path.rglob("*") if f.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}


def test_toast_sees_the_canvas_through_pass_one_only(model, toast):
    """Pass 2 starts from a blank canvas: the same hidden states give the same answer."""
    canvas, labels = inputs()
    hidden = model(canvas, labels).hidden
    answer = toast(model, hidden, labels)
    assert answer.logits.shape == (4, 16, 20) and answer.hidden.shape == (4, 17, 32)
    assert not answer.logits.allclose(toast(model, hidden.roll(1, 0), labels).logits)
    assert not answer.logits.allclose(toast(model, hidden, (labels + 1) % 5).logits)


def test_toast_selects_tokens_by_their_likeness_to_the_anchor(model):
    torch.manual_seed(0)
    smoother = ToastSmoother.for_transformer(model)
    labels = torch.tensor([2])
    anchor = smoother.cls_anchor_gen(labels)
    hidden = torch.cat((anchor, -anchor, 3 * anchor), 1)
    selected = smoother.select(hidden, labels)  # the channel selection starts as identity
    torch.testing.assert_close(selected, torch.cat((anchor, 0 * anchor, 3 * anchor), 1))


@pytest.mark.parametrize(
    "call, fragment",
    [
        (
            lambda m: make_guidance("magic", m),
            "unknown guidance 'magic': choose one of none, sharpened, cfg",
        ),
        (lambda m: make_guidance("cfg", m, math.nan), "guidance scale must be finite, not nan"),
        (lambda m: make_guidance("cfg", m, math.inf), "guidance scale must be finite, not inf"),
        (lambda m: make_guidance("cfg", m, 1.0, "steep"), "unknown scale schedule 'steep'"),
        (lambda m: make_guidance("auto", m), "needs weak="),
        (lambda m: make_guidance("self", m), "needs smoother="),
        (lambda m: gaussian_kernel(0), "sigma must be above 0"),
        (lambda m: gaussian_kernel(math.nan), "sigma must be above 0"),
        (lambda m: blur(torch.zeros(1, 15, 2)), "needs a square grid; 15 positions are none"),
    ],
)
def test_bad_arguments_give_one_sentence(call, fragment, model):
    with pytest.raises(InputError) as caught:
        call(model)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text
