"""Smoothing: what is blurred, what is selected, and that the plain model stays as it is."""

import pytest
import torch
import torch.nn.functional as F

from sgmgm.guidance import make_guidance
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
from sgmgm.utils.errors import CheckpointError, InputError


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = TransformerConfig(16, 32, 2, 4, 64, codebook_size=24, num_classes=3, dropout=0.0)
    return MaskedTransformer(config).eval()


@pytest.fixture
def batch(model):
    generator = torch.Generator().manual_seed(1)
    canvas = torch.randint(0, 24, (4, 16), generator=generator)
    canvas[:, ::2] = model.config.mask_id
    return canvas, torch.tensor([0, 1, 2, 0])


def test_kernel_is_a_gaussian():
    kernel = gaussian_kernel(1.5)
    assert kernel.sum() == pytest.approx(1) and len(kernel) % 2
    middle = len(kernel) // 2
    assert (kernel[middle] / kernel[middle + 1]).log() == pytest.approx(1 / (2 * 1.5**2))


def test_blur_equals_a_padded_convolution():
    grid = torch.randn(2, 25, 3)
    image = grid.unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    k = gaussian_kernel(0.8)
    r = len(k) // 2
    padded = F.pad(image, (r, r, r, r), mode="replicate")
    weight = torch.outer(k, k).expand(3, 1, -1, -1)
    expected = F.conv2d(padded, weight, groups=3).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(blur(grid, 0.8), expected)


def test_blur_keeps_constants_and_refuses_what_is_no_grid():
    assert torch.allclose(blur(torch.full((1, 16, 2), 3.0)), torch.tensor(3.0))
    with pytest.raises(InputError, match="square grid"):
        blur(torch.zeros(1, 15, 2))
    with pytest.raises(InputError, match="sigma"):
        blur(torch.zeros(1, 16, 2), 0)


def test_blurred_ids_are_other_codes():
    tokens = torch.tensor([[0, 1000] * 8])
    assert set(blur_ids(tokens).flatten().tolist()).isdisjoint({0, 1000})


def test_blurred_embeddings_of_a_blank_canvas_change_nothing(model):
    canvas, labels = model.blank, torch.tensor([1])
    smooth = blur_embeddings(model, canvas, labels).logits
    torch.testing.assert_close(smooth, model(canvas, labels).logits)


def test_toast_selection_drops_what_points_away_from_the_anchor(model):
    smoother = ToastSmoother.for_transformer(model).eval()
    labels = torch.tensor([2])
    anchor = smoother.cls_anchor_gen(labels)
    hidden = torch.cat((anchor, -anchor, 2 * anchor), 1)
    selected = smoother.select(hidden, labels)
    torch.testing.assert_close(selected[:, 0], anchor[:, 0])  # the channel selection starts as 1
    assert not selected[:, 1].any()
    torch.testing.assert_close(selected[:, 2], 2 * anchor[:, 0])


def test_toast_sees_the_canvas_only_through_pass_one(model, batch):
    canvas, labels = batch
    smoother = ToastSmoother.for_transformer(model).eval()
    with torch.no_grad():
        for decoder in smoother.decoders:
            decoder.linear2.weight.zero_()  # no way down: pass 2 is a blank canvas
        hidden = model(canvas, labels).hidden
        no_class = torch.full_like(labels, 3)
        # with a signal of zero the values still get their bias a second time
        for layer in model.transformer_layers:
            layer.attention.value.bias.zero_()
        smoothed = smoother(model, hidden, labels).logits
        blank = model(model.blank.expand(4, -1), no_class).logits
    torch.testing.assert_close(smoothed, blank)


def test_toast_trains_without_touching_the_transformer(model, batch):
    canvas, labels = batch
    smoother = ToastSmoother.for_transformer(model).train()
    model.requires_grad_(False)
    out = smoother(model, model(canvas, labels).hidden, labels)
    (out.logits.square().mean() + out.reconstruction).backward()
    assert all(p.grad is not None for p in smoother.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert smoother.eval()(model, model(canvas, labels).hidden, labels).reconstruction == 0


def test_a_fresh_lora_is_the_plain_model_and_leaves_it_alone(model, batch):
    plain = model(*batch).logits
    names = set(model.state_dict())
    smoother = LoraSmoother(model, rank=2).eval()
    assert torch.equal(smoother(*batch).logits, plain)
    for name, parameter in smoother.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(smoother(*batch).logits, plain)
    assert torch.equal(model(*batch).logits, plain)
    assert set(model.state_dict()) == names
    trained = [n for n, p in smoother.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("act", ["merge_adapter", "merge_and_unload", "unload"])
def test_a_merged_adapter_is_refused(act, model, batch):
    """It is in the shared weights: plain and smoothed would be equal, and guidance nothing."""
    smoother = LoraSmoother(model, rank=2).eval()
    for name, parameter in smoother.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    plain = model(*batch).logits
    guided = make_guidance("self", model, 1.0, smoother=smoother)
    assert not guided(*batch).allclose(plain)
    getattr(smoother.peft, act)()
    with pytest.raises(InputError, match="adapter was merged into the weights") as caught:
        guided(*batch)
    assert str(caught.value).endswith("again.") and "\n" not in str(caught.value)
    if act == "merge_adapter":  # taken back, it serves again
        smoother.peft.unmerge_adapter()
        torch.testing.assert_close(model(*batch).logits, plain, atol=1e-4, rtol=1e-4)
        assert not guided(*batch).allclose(plain)


def test_smoothers_come_back_from_their_folders(model, batch, tmp_path):
    canvas, labels = batch
    hidden = model(canvas, labels).hidden
    toast = ToastSmoother.for_transformer(model, keep_class=True).eval()
    toast.save_pretrained(tmp_path / "toast")
    lora = LoraSmoother(model, rank=2).eval()
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    lora.save_pretrained(tmp_path / "lora")
    again = load_smoother(tmp_path / "toast", model)
    assert again.config.keep_class
    assert torch.equal(again(model, hidden, labels).logits, toast(model, hidden, labels).logits)
    again = load_smoother(tmp_path / "lora", model).eval()
    assert torch.equal(again(canvas, labels).logits, lora(canvas, labels).logits)
    files = {f.suffix for f in (tmp_path / "lora").iterdir()}
    assert files <= {".json", ".safetensors", ".md"}


def test_a_smoother_of_another_transformer_is_refused(model, tmp_path):
    ToastSmoother.for_transformer(model).save_pretrained(tmp_path)
    other = MaskedTransformer(TransformerConfig(16, 32, 3, 4, 64, 24, 3))
    with pytest.raises(CheckpointError, match="another transformer"):
        load_smoother(tmp_path, other)
