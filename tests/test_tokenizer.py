import math

import pytest
import torch
import torch.nn.functional as F

from sgmgm.tokenizer import Quantizer, TokenizerConfig, VQTokenizer, psnr
from sgmgm.utils.errors import InputError

CONFIG = TokenizerConfig(
    resolution=16,
    hidden_channels=8,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    z_channels=4,
    quantized_embed_dim=4,
    num_embeddings=32,
    norm_groups=4,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQTokenizer(CONFIG).eval()


def pictures(batch=3):
    return torch.rand(batch, 3, 16, 16, generator=seeded())


def test_grid_and_shapes(tokenizer):
    assert CONFIG.grid == 4 and CONFIG.num_tokens == 16 and tokenizer.num_codes == 32
    images = pictures()
    before = images.clone()
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < 32
    again = tokenizer.decode(tokens)
    assert again.shape == images.shape and again.dtype == torch.float32
    assert again.min() >= 0 and again.max() <= 1
    assert images.equal(before)


def test_many_images_are_decoded_in_parts(tokenizer, monkeypatch):
    tokens = tokenizer.encode(pictures(5))
    whole, parts = tokenizer.decode(tokens), []
    monkeypatch.setattr(VQTokenizer, "LARGEST", 2 * CONFIG.hidden_channels * 16**2)
    tokenizer.decoder.register_forward_hook(lambda net, given, made: parts.append(len(made)))
    torch.testing.assert_close(tokenizer.decode(tokens), whole)
    assert parts == [2, 2, 1]


def test_training_pass_and_use_agree(tokenizer):
    images = pictures()
    with torch.no_grad():
        reconstruction, quantized = tokenizer(images)
    assert quantized.tokens.equal(tokenizer.encode(images))
    assert quantized.states.shape == quantized.encoded.shape == (3, 4, 4, 4)
    torch.testing.assert_close(
        reconstruction.clamp(0, 1), tokenizer.decode(quantized.tokens), atol=1e-5, rtol=0
    )


def test_tokens_are_row_major():
    """A quantizer whose codes are the grid positions gives 0, 1, 2, ... along the rows."""
    quantizer = Quantizer(CONFIG)
    positions = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"))
    positions = torch.cat((positions, torch.zeros(2, 4, 4)))  # (D = 4, h, w)
    quantizer.embedding.weight.data[:16] = positions.flatten(1).T
    quantizer.embedding.weight.data[16:] = 99.0
    assert quantizer(positions[None]).tokens.tolist() == [list(range(16))]


def test_the_nearest_code_is_chosen():
    quantizer = Quantizer(CONFIG)
    torch.nn.init.normal_(quantizer.embedding.weight, generator=seeded(1))
    encoded = torch.randn(5, 4, 4, 4, generator=seeded(2))
    flat = encoded.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = torch.cdist(flat.double(), quantizer.embedding.weight.double()).argmin(1)
    assert quantizer(encoded).tokens.flatten().equal(nearest)


def test_gradients_go_straight_through():
    quantizer = Quantizer(CONFIG)
    encoded = torch.randn(2, 4, 4, 4, generator=seeded(), requires_grad=True)
    out = quantizer(encoded)
    codes = F.embedding(out.tokens.view(2, 4, 4), quantizer.embedding.weight).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.states, codes)
    weight = torch.randn(2, 4, 4, 4, generator=seeded(1))
    (out.states * weight).sum().backward()
    torch.testing.assert_close(encoded.grad, weight)
    assert quantizer.embedding.weight.grad is None


def test_the_nearest_code_is_the_nearest_under_autocast_too():
    quantizer = Quantizer(CONFIG)
    encoded = torch.randn(8, 4, 8, 8, generator=seeded()) / 32  # as near as the first codes are
    with torch.autocast("cpu", torch.bfloat16):
        rounded = quantizer(encoded).tokens
    assert rounded.equal(quantizer(encoded).tokens)


def test_the_quantizers_loss_moves_codes_and_encoder():
    quantizer = Quantizer(CONFIG)
    encoded = torch.randn(2, 4, 4, 4, generator=seeded(), requires_grad=True)
    out = quantizer(encoded)
    apart = (encoded - out.states).square().mean().item()
    assert out.loss.item() == pytest.approx(1.25 * apart, rel=1e-5)
    out.loss.backward()
    towards = 2 * 0.25 * (encoded - out.states).detach() / encoded.numel()
    torch.testing.assert_close(encoded.grad, towards)
    used = torch.zeros(32, dtype=torch.bool)
    used[out.tokens.unique()] = True
    moved = quantizer.embedding.weight.grad.abs().sum(1) > 0
    assert moved.equal(used)


def test_revival_moves_dead_codes_only():
    quantizer = Quantizer(CONFIG)
    before = quantizer.embedding.weight.detach().clone()
    encoded = torch.randn(2, 4, 4, 4, generator=seeded())
    dead = torch.zeros(32, dtype=torch.bool)
    dead[[3, 8, 31]] = True
    quantizer.revive(dead, encoded, seeded(1))
    after = quantizer.embedding.weight.detach()
    assert after[~dead].equal(before[~dead])
    vectors = encoded.permute(0, 2, 3, 1).reshape(-1, 4)
    assert all((vectors == code).all(1).any() for code in after[dead])
    quantizer.revive(torch.zeros(32, dtype=torch.bool), encoded, seeded(1))
    assert quantizer.embedding.weight.equal(after)


@pytest.mark.parametrize("error, decibels", [(0.1, 20.0), (0.5, 10 * math.log10(4)), (1.0, 0.0)])
def test_psnr_closed_form(error, decibels):
    images = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(psnr(images, images + error), torch.full((2,), decibels))


def test_psnr_is_for_each_image_and_finite():
    images = torch.zeros(2, 3, 8, 8)
    rebuilt = images.clone()
    rebuilt[1, 0] = 1.0  # one channel of three: mean square 1/3
    torch.testing.assert_close(psnr(images, rebuilt), torch.tensor([120.0, 10 * math.log10(3)]))


@pytest.mark.parametrize(
    "act, fragment",
    [
        (lambda t: t.encode(torch.rand(2, 3, 16, 8)), "images of shape (B, 3, 16, 16)"),
        (lambda t: t.encode(torch.rand(2, 1, 16, 16)), "not torch.float32 (2, 1, 16, 16)"),
        (lambda t: t.encode(torch.rand(3, 16, 16)), "not torch.float32 (3, 16, 16)"),
        (lambda t: t.encode(torch.zeros(2, 3, 16, 16).byte()), "not torch.uint8"),
        (lambda t: t.decode(torch.zeros(2, 15).long()), "of shape (B, 16)"),
        (lambda t: t.decode(torch.zeros(16).long()), "not torch.int64 (16,)"),
        (lambda t: t.decode(torch.zeros(2, 16)), "not torch.float32"),
        (lambda t: t.decode(torch.full((1, 16), 32)), "tokens must be in 0..31; found 32..32"),
        (lambda t: t.decode(torch.full((1, 16), -1)), "found -1..-1 (is a [MASK] left?)"),
        (lambda t: TokenizerConfig(z_channels=8), "z_channels and quantized_embed_dim"),
        (lambda t: TokenizerConfig(resolution=100), "resolution 100 cannot be halved 4 times"),
        (lambda t: TokenizerConfig(norm_groups=7), "are not multiples of 7"),
        (lambda t: TokenizerConfig(norm_groups=0), "norm_groups cannot be 0"),
        (lambda t: TokenizerConfig(channel_mult=()), "channel_mult cannot be ()"),
        (lambda t: TokenizerConfig(num_embeddings=0), "num_embeddings cannot be 0"),
    ],
)
def test_bad_input_gives_one_sentence(act, fragment, tokenizer):
    with pytest.raises(InputError) as caught:
        act(tokenizer)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text
