"""What each network learns from; test_training trains with it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sgmgm import datasets
from sgmgm.tokenizer import Quantized

from .test_training import TRANSFORMER, make


@pytest.fixture(scope="module")
def images():
    return datasets.load("sprites", count=48)


def test_the_transformers_loss_is_that_of_equation_1(images):
    """On masked positions only, smoothed by 0.1 where it trains; one class in ten is dropped."""
    task, seen = make("transformer", images), {}
    model = task.model.eval()

    def watched(canvas, labels, mask):
        seen.update(canvas=canvas, labels=labels, mask=mask)
        seen["logits"] = model(canvas, labels, mask).logits
        return SimpleNamespace(logits=seen["logits"])

    task.to(torch.device("cpu"))
    task.tokens = task.tokens[:1]  # one view: the truth is known
    indices = torch.arange(2000) % 48
    losses = task.losses(watched, indices, slice(None), torch.Generator().manual_seed(0))
    truth, mask = task.tokens[0, indices].long(), seen["mask"]
    assert (seen["canvas"][mask] == TRANSFORMER.mask_id).all()
    assert seen["canvas"][~mask].equal(truth[~mask])
    dropped = seen["labels"] == TRANSFORMER.num_classes
    assert seen["labels"][~dropped].equal(task.labels[indices][~dropped])
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.02)
    log_p = seen["logits"].log_softmax(-1)  # (M, K)
    nll = F.nll_loss(log_p, truth[mask])
    assert losses["nll"].item() == pytest.approx(nll.item(), rel=1e-5)
    smoothed = 0.9 * nll - 0.1 * log_p.mean()
    assert losses["loss"].item() == pytest.approx(smoothed.item(), rel=1e-5)


def test_codes_are_moved_after_more_than_50_steps_without_an_image(images):
    task = make("tokenizer", images)
    codebook = task.model.quantize.embedding.weight.data
    alone = SimpleNamespace(reduce=lambda x, how: x)
    encoded = torch.full((2, codebook.shape[1], 4, 4), 7.0)
    task.quantized = Quantized(encoded, torch.zeros(2, 16).long(), torch.tensor(0.0), encoded)

    def moved(step, steps=1000):
        before = codebook.clone()
        task.after_step(step, steps, alone, torch.Generator().manual_seed(0))
        return (codebook != before).any(1)

    assert moved(0).all() and (codebook == 7).all()  # the codebook begins on encoder outputs
    codebook.normal_(generator=torch.Generator().manual_seed(0))
    task.state["age"] = torch.tensor([90, 49, 50, *[0] * (len(codebook) - 3)])
    assert moved(20).nonzero().flatten().tolist() == [2]  # code 0 was chosen just now
    assert task.state["age"][:4].tolist() == [0, 50, 0, 1]
    task.state["age"] += 60
    assert not moved(21).any() and not moved(800).any()  # every 20 steps, until four fifths
    assert moved(780).sum() == len(codebook) - 2  # all but code 0, and code 2 was there already
