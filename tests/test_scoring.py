"""Scoring: any extractor's features, and clear words where they cannot be had."""

import contextlib
import urllib.error

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3

from sgmgm import scoring
from sgmgm.classifier import Features
from sgmgm.utils.errors import DataError, InputError

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
NAN = torch.full((9, 4), torch.nan)


class MeanColour:
    name, labels_known = "mean colour", True

    def __call__(self, images):
        colour = images.mean((2, 3))
        return Features(colour, colour * 5)


def test_extract_streams_batches(capfd):
    images = torch.rand(23, 3, 8, 8)
    features, logits = scoring.extract(MeanColour(), images.split(5))
    assert features.dtype == torch.float32 and features.shape == (23, 3)
    torch.testing.assert_close(features, images.mean((2, 3)))
    torch.testing.assert_close(logits, 5 * features)
    assert capfd.readouterr() == ("", "")


def inception_net(path):
    """torch-fidelity's network with random weights, kept at `path` in the published layout."""
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda *_: None)
        net = network("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    for name, weight in net.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(weight)
    torch.save(dict(net.state_dict()), path)
    return net


def test_inception_extractor_is_torch_fidelitys_network(tmp_path):
    path = tmp_path / "weights.pth"
    net = inception_net(path)
    extractor = scoring.InceptionExtractor(path)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    features, logits = scoring.extract(extractor, [pixels[:2] / 255, pixels[2:] / 255])
    expected = net(pixels)
    assert features.shape == (3, 2048) and logits.shape == (3, 1008) and features.std() > 1e-3
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)
    assert not extractor.labels_known and extractor.name == "inception-v3-compat"


class Bomb:
    """A pickle that acts when it is opened."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was executed')",)


def test_inception_extractor_without_usable_weights(tmp_path, monkeypatch):
    def fails(text, weights=None):
        with pytest.raises(DataError) as caught:
            scoring.InceptionExtractor(weights)
        message = str(caught.value)
        assert text in message and "weights-inception" in message and "\n" not in message

    def offline(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    fails(f"no Inception weights at {tmp_path / 'cache'}")
    fails("no Inception weights at", tmp_path / "absent.pth")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 not weights")
    fails("is damaged", damaged)
    torch.save({"other": torch.zeros(3)}, damaged)
    fails("is damaged", damaged)
    torch.save(Bomb(), damaged)
    fails("is damaged", damaged)


BAD_INPUT = {
    "no images": (lambda: scoring.extract(MeanColour(), []), "no images"),
    "image shape": (lambda: scoring.extract(MeanColour(), [torch.rand(2, 8, 8, 3)]), "batch 0"),
    "image type": (
        lambda: scoring.extract(MeanColour(), [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]),
        "uint8",
    ),
    "image range": (
        lambda: scoring.extract(MeanColour(), [torch.rand(2, 3, 8, 8), -torch.ones(2, 3, 8, 8)]),
        "batch 1 has pixels outside",
    ),
    "features NaN": (
        lambda: scoring.extract(lambda x: Features(NAN, X), [torch.rand(2, 3, 8, 8)]),
        "features of batch 0",
    ),
    "logits NaN": (
        lambda: scoring.extract(lambda x: Features(X, NAN), [torch.rand(2, 3, 8, 8)]),
        "logits of batch 0",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case):
    act, text = BAD_INPUT[case]
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert text in message and message.endswith(".") and "\n" not in message


def test_data_that_cannot_be_read_leave_no_process_waiting(monkeypatch):
    """The first process of a launch raises after the others had their turn, not before."""
    turns = []

    @contextlib.contextmanager
    def main_first():
        turns.append("first")
        yield
        turns.append("others")

    monkeypatch.setattr(scoring, "main_first", main_first)
    with pytest.raises(DataError, match="no such folder"):
        scoring.load_data("folder:nowhere")
    assert len(scoring.load_data("sprites", "test", count=5)) == 5
    assert turns == ["first", "others"] * 2
