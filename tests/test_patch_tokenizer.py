"""Local encoders, the cheap decoder, k-means and the codebook of moving averages."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sgmgm import datasets
from sgmgm.tasks import TokenizerTask
from sgmgm.tokenizer import Quantizer, TokenizerConfig, VQTokenizer, kmeans, nearest, psnr
from sgmgm.training import TrainingConfig, fit
from sgmgm.utils.errors import CheckpointError, InputError

CONFIG = TokenizerConfig(
    resolution=32,
    hidden_channels=8,
    channel_mult=(1, 1, 2),
    num_res_blocks=1,
    z_channels=48,
    quantized_embed_dim=48,
    num_embeddings=64,
    norm_groups=4,
    encoder="patch",
    decoder="patch",
    codebook_decay=0.9,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return datasets.load("sprites", count=64)


def tokenizer(**changes):
    torch.manual_seed(0)
    return VQTokenizer(replace(CONFIG, **changes)).eval()


def test_it_starts_as_patches_and_back():
    """Before any training encoder and decoder undo each other: a code is a patch of 4 x 4 x 3."""
    model, images = tokenizer(), torch.rand(2, 3, 32, 32, generator=seeded())
    encoded = model.encoder(images)
    assert encoded.shape == (2, 48, 8, 8)
    assert encoded[1, :, 2, 5].equal(images[1, :, 8:12, 20:24].flatten())
    torch.testing.assert_close(model.decoder(encoded), images)


def trained_encoder(window):
    encoder = tokenizer(window=window).encoder
    if window > 4:
        torch.nn.init.normal_(encoder.out.weight, generator=seeded(1))
    return encoder


@pytest.mark.parametrize("window", [4, 6, 8, 12])
def test_a_token_sees_its_window_and_nothing_else(window):
    encoder = trained_encoder(window)
    image = torch.rand(1, 3, 32, 32, generator=seeded(), requires_grad=True)
    encoder(image)[0, :, 3, 4].sum().backward()
    seen = image.grad[0].abs().amax(0) > 0
    border = (window - 4) // 2
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12 - border : 16 + border, 16 - border : 20 + border] = True
    assert seen.equal(inside)


def test_the_decoder_sees_beyond_a_token():
    model = tokenizer()
    torch.nn.init.normal_(model.decoder.conv_out.weight, generator=seeded(1))
    states = torch.randn(1, 48, 8, 8, generator=seeded(), requires_grad=True)
    model.decoder(states)[0, :, 12:16, 16:20].sum().backward()
    reached = states.grad[0].abs().amax(0) > 0
    assert reached[2:5, 3:6].all()


@pytest.mark.parametrize("encoder", ["vqgan", "patch"])
@pytest.mark.parametrize("decoder", ["vqgan", "patch"])
def test_every_combination_encodes_decodes_and_is_kept(encoder, decoder, tmp_path):
    model = tokenizer(encoder=encoder, decoder=decoder)
    images = torch.rand(2, 3, 32, 32, generator=seeded())
    tokens = model.encode(images)
    assert tokens.shape == (2, 64) and tokens.max() < 64
    again = model.decode(tokens)
    assert again.shape == images.shape and again.min() >= 0 and again.max() <= 1
    model.save_pretrained(tmp_path)
    kept = VQTokenizer.from_pretrained(tmp_path)
    assert kept.config == model.config and kept.encode(images).equal(tokens)
    torch.testing.assert_close(kept.decode(tokens), again)


def test_a_file_from_before_local_encoders_is_a_vqgan(tmp_path):
    model = tokenizer(encoder="vqgan", decoder="vqgan", codebook_decay=0.0)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("encoder", "decoder", "window", "codebook_decay"):
        del config[name]
    path.write_text(json.dumps(config))
    images = torch.rand(2, 3, 32, 32, generator=seeded())
    assert VQTokenizer.from_pretrained(tmp_path).encode(images).equal(model.encode(images))
    path.write_text(json.dumps(config | {"encoder": "wide"}))
    with pytest.raises(CheckpointError, match="impossible sizes: unknown encoder 'wide'"):
        VQTokenizer.from_pretrained(tmp_path)


# --------------------------------------------------------------------------------- the codebook


def test_kmeans_finds_clear_clusters_and_leaves_no_centre_idle():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    rows = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=seeded())
    found = kmeans(rows, 4, seeded(1))
    own = nearest(rows, found)
    assert own.unique().numel() == 4
    means = torch.stack([rows[own == i].mean(0) for i in range(4)])
    torch.testing.assert_close(found, means)  # a fixed point of Lloyd's algorithm


def test_kmeans_loses_less_than_its_first_centres():
    rows = torch.randn(2000, 6, generator=seeded())

    def loss(centres):
        return (rows - centres[nearest(rows, centres)]).square().sum(1).mean()

    losses = [loss(kmeans(rows, 32, seeded(1), steps)) for steps in (0, 1, 5, 20)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


def test_more_centres_than_rows_are_refused():
    with pytest.raises(InputError, match="5 centres need as many rows, not 3"):
        kmeans(torch.zeros(3, 2), 5, seeded())


def test_averaged_codes_have_no_codebook_loss_and_no_gradient():
    quantizer = Quantizer(CONFIG)
    encoded = torch.randn(2, 48, 4, 4, generator=seeded(), requires_grad=True)
    out = quantizer(encoded)
    commitment = (encoded - out.states).square().mean().item()
    assert out.loss.item() == pytest.approx(0.25 * commitment, rel=1e-5)
    out.loss.backward()
    assert not quantizer.embedding.weight.requires_grad


class Alone:
    """One process' accelerator, as far as a task needs it."""

    def reduce(self, value, how):
        return value


def test_codes_are_moving_averages_of_what_chose_them(images):
    model = tokenizer()
    task = TokenizerTask(model, images)
    task.to(torch.device("cpu"))
    codes = model.quantize.embedding.weight
    codes.data.normal_(generator=seeded())
    task.state["sizes"].fill_(2.0)
    task.state["sums"].copy_(2 * codes)
    before = codes.clone()
    encoded = torch.rand(2, 48, 8, 8, generator=seeded(1))
    task.quantized = model.quantize(encoded)
    chosen = torch.bincount(task.quantized.tokens.flatten(), minlength=64)
    task.move_codebook(chosen, Alone())
    rows = encoded.permute(0, 2, 3, 1).flatten(0, 2)
    for k in range(64):
        own = rows[task.quantized.tokens.flatten() == k]
        expected = (0.9 * 2 * before[k] + 0.1 * own.sum(0)) / (0.9 * 2 + 0.1 * len(own))
        torch.testing.assert_close(codes[k], expected)
    unused = chosen == 0
    torch.testing.assert_close(codes[unused], before[unused])


def test_training_starts_from_kmeans_and_improves_on_it(images, tmp_path):
    pixels = images.batch(torch.arange(len(images)))[0]

    def quality(steps):
        task = TokenizerTask(tokenizer(), images)
        config = TrainingConfig(steps, 16, 2e-3, warmup=1, ema=0.0)
        report = fit(task, config, tmp_path / str(steps), device="cpu")
        return psnr(pixels, task.model.decode(task.model.encode(pixels))).mean(), task, report

    after_one, task, _ = quality(1)
    rows = task.model.encoder(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    assert task.model.encode(pixels).unique().numel() > 0.9 * 64
    trained, _, report = quality(60)
    assert trained > after_one + 0.2
    assert all(entry["loss"] < 10 for entry in report["history"])
    assert rows.shape == (64 * 64, 48)


def test_codes_that_do_not_move_stay_the_centres_while_the_decoder_learns(images, tmp_path):
    pixels = images.batch(torch.arange(len(images)))[0]

    def trained(steps):
        task = TokenizerTask(tokenizer(codebook_decay=1.0), images)
        config = TrainingConfig(steps, 16, 2e-3, warmup=1, ema=0.0)
        fit(task, config, tmp_path / str(steps), device="cpu")
        return task.model

    first, last = trained(1), trained(60)
    assert list(last.encoder.parameters()) == []  # the patch itself: nothing to learn
    assert last.quantize.embedding.weight.equal(first.quantize.embedding.weight)
    tokens = last.encode(pixels)
    assert (
        psnr(pixels, last.decode(tokens)).mean() > psnr(pixels, first.decode(tokens)).mean() + 0.2
    )


def test_the_network_sees_codes_of_variance_one_in_every_direction(images):
    model, pixels = tokenizer(), images.batch(torch.arange(len(images)))[0]
    rows = model.encoder(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    grey = rows.view(-1, 3, 16).mean(1, keepdim=True).expand(-1, 3, -1).flatten(1)
    for codes, rank in ((rows + 0.1 * torch.randn(rows.shape, generator=seeded()), 48), (grey, 16)):
        model.decoder.init_from_codebook(codes)
        seen = model.decoder.whiten(codes[..., None, None])[..., 0, 0]
        assert seen.mean(0).abs().max() < 1e-3
        values = torch.linalg.eigvalsh(seen.T @ seen / len(codes))
        torch.testing.assert_close(values[-rank:], torch.ones(rank), atol=0.02, rtol=0)
        assert values[:-rank].abs().sum() < 1e-2


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"encoder": "wide"}, "unknown encoder 'wide'"),
        ({"decoder": "wide"}, "unknown decoder 'wide'"),
        ({"window": 7}, "window must be 4 or an even number of pixels more, not 7"),
        ({"window": 2}, "not 2"),
        ({"z_channels": 16, "quantized_embed_dim": 16}, "z_channels must be 48"),
        ({"codebook_decay": 1.5}, "codebook_decay must lie in [0, 1], not 1.5"),
        ({"encoder": 3}, "encoder cannot be 3"),
    ],
)
def test_impossible_settings_give_one_sentence(changes, fragment):
    with pytest.raises(InputError) as caught:
        replace(CONFIG, **changes)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text


def test_a_further_round_starts_from_the_codes_it_finds(images, tmp_path):
    task = TokenizerTask(tokenizer(), images)
    task.to(torch.device("cpu"))
    codes = task.model.quantize.embedding.weight
    before = codes.clone()
    accelerator = SimpleNamespace(reduce=lambda x, how: x)
    for keep in (True, False):
        task.keep_codes = keep
        task.losses(task.model, torch.arange(4), slice(None), seeded())
        task.after_step(0, 10, accelerator, seeded())
        assert codes.equal(before) == keep
        assert task.state["sums"].equal(codes) and task.state["sizes"].eq(1).all()
