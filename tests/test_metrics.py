"""metrics: equal to torch-fidelity and prdc, exact in closed forms, clear when fed badly."""

import subprocess
import sys

import numpy as np
import prdc
import pytest
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid
from torch_fidelity import metric_prc as fidelity_prc

from sgmgm import metrics
from sgmgm.metrics import GaussianStats, Reference
from sgmgm.utils.errors import DataError, InputError

from .accelerated import Accelerated


def rows(count, width=16, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * scale + shift


def correlated(count, width, seed):
    """Non-negative, skewed and correlated, as pooled activations are."""
    mix = rows(width, width, seed=99) / width**0.5
    return (rows(count, width, seed) @ mix + 0.1 * seed).relu()


def stats(features):
    return GaussianStats().update(features)


# --- equal to the reference implementations ----------------------------------------------------


@pytest.mark.parametrize("count, width", [(600, 32), (40, 64)])  # the second covariance is singular
def test_frechet_equals_torch_fidelity(count, width):
    x, y = correlated(count, width, 1), correlated(count + 7, width, 2)
    ours = metrics.frechet_distance(stats(x), stats(y))
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(x.double()),
        metric_fid.fid_features_to_statistics(y.double()),
        verbose=False,
    )["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("degree", [2, 3])
def test_kid_equals_torch_fidelity_with_one_full_subset(degree):
    x, y = correlated(500, 32, 1), correlated(500, 32, 2)
    theirs = metric_kid.kid_features_to_metric(
        x.double(),
        y.double(),
        kid_subsets=1,
        kid_subset_size=500,
        kid_kernel_poly_degree=degree,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert metrics.kid(x, y, degree) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("splits", [1, 7, 10])
@pytest.mark.parametrize("seed", [None, 2020, 5])
def test_inception_score_equals_torch_fidelity(splits, seed):
    logits = rows(503, 10, scale=3)
    theirs = metric_isc.isc_features_to_metric(logits, splits, seed is not None, seed)
    mean, std = metrics.inception_score(logits, splits, seed)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("counts", [(400, 400), (350, 500)])
def test_precision_recall_equals_prdc_and_torch_fidelity(k, counts):
    real, fake = rows(counts[0], 8), rows(counts[1], 8, seed=1, scale=0.9, shift=0.6)
    ours = metrics.precision_recall(real, fake, k)
    assert 0.05 < ours["recall"] < ours["precision"] < 0.99  # a case that tells something
    theirs = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), k)
    assert ours == pytest.approx(theirs, rel=1e-3)
    theirs = fidelity_prc.prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=k, verbose=False
    )
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-3)


# --- statistics ---------------------------------------------------------------------------------


def test_streaming_equals_one_shot_for_uneven_batches():
    x = rows(5000, 24, shift=1000)  # a large offset, where sum(x^2) - sum(x)^2 / N loses digits
    streamed = GaussianStats()
    for batch in x.split([1, 1, 2500, 3, 995, 1500]):
        streamed.update(batch)
    assert streamed.count == 5000
    for result in (streamed, stats(x), GaussianStats.from_state(streamed.state())):
        np.testing.assert_allclose(result.mean, x.double().mean(0), rtol=1e-13)
        np.testing.assert_allclose(result.cov, np.cov(x.double().numpy().T), atol=1e-11)


def test_stats_do_not_share_memory_with_what_they_return():
    a = stats(rows(10, 3))
    before = a.mean
    a.mean.zero_(), a.cov.zero_(), a.state()["scatter"].zero_()
    assert torch.equal(a.mean, before) and a.cov.trace() > 0


def test_rejected_batch_leaves_the_stats_as_they_were():
    a = stats(rows(10, 3))
    before = a.state()
    with pytest.raises(InputError):
        a.update(torch.full((2, 3), torch.nan))
    assert all(torch.equal(before[key], value) for key, value in a.state().items())


def test_frechet_closed_forms():
    x = rows(300, 12) @ rows(12, 12, seed=1)
    shift = torch.linspace(-1, 2, 12)
    frechet = metrics.frechet_distance
    assert frechet(stats(x), stats(x)) == pytest.approx(0, abs=1e-10)
    expected = shift.double().square().sum().item()
    assert frechet(stats(x.double()), stats(x.double() + shift)) == pytest.approx(expected)
    # N(0, A) against N(0, 4 A): tr(A + 4 A - 2 * 2 A) = tr A
    centred = x.double() - x.double().mean(0)
    trace = stats(x).cov.trace().item()
    assert frechet(stats(centred), stats(2 * centred)) == pytest.approx(trace)


def test_frechet_of_singular_covariances():
    x = rows(300, 12).double()
    flat, point = x.clone(), torch.ones(5, 12)
    flat[:, 4:] = 0
    a, b, c = stats(x), stats(flat), stats(point)
    frechet = metrics.frechet_distance
    assert frechet(a, b) == pytest.approx(frechet(b, a))
    assert frechet(b, b) == pytest.approx(0, abs=1e-12)
    expected = (a.mean - 1).square().sum() + a.cov.trace()  # to a point: no cross term
    assert frechet(a, c) == pytest.approx(expected.item()) == pytest.approx(frechet(c, a))
    few = stats(rows(8, 40))  # rank 7 in 40 dimensions
    assert frechet(few, few) == pytest.approx(0, abs=1e-9)


MEMORY = """
import torch
from sgmgm import metrics
from sgmgm.utils.devices import peak_memory

def peak():
    return peak_memory(torch.device("cpu")) / 2**20

ballast = torch.ones(60_000_000)  # lifts what is in use over the peak of the imports
x = torch.rand(50_000, 256)
metrics.GaussianStats().update(x[:5000])  # the mathematics library's buffers are not measured
start = peak()
metrics.GaussianStats().update(x)
print(peak() - start)
x = torch.rand(6000, 4)
metrics.precision_recall(x, x, block=1024), metrics.kid(x, x, block=1024)
print(peak() - start)
"""


def test_memory_stays_bounded():
    """In a process of its own, because a peak never falls. One float64 copy of the 50,000 rows
    would take 98 MiB, one matrix of all distances of the 6,000 rows 275 MiB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    streaming, pairwise = map(float, run.stdout.split())
    assert streaming < 50 and pairwise < 150


def test_no_score_asks_an_accelerator_for_float64():
    """MPS has none: features that come from there are scored on the CPU, with the same result."""
    real, fake, logits = correlated(90, 6, 1), correlated(70, 6, 2), rows(70, 5, scale=3)
    labels = torch.arange(70) % 5
    there = [x.as_subclass(Accelerated) for x in (real, fake, logits)]
    with pytest.raises(TypeError, match="MPS"):
        there[0].mean(0, dtype=torch.float64)

    def scores(real, fake, logits):
        reference = Reference.from_features(real, "d", "e")
        return (
            metrics.frechet_distance(stats(real), stats(fake)),
            metrics.kid(real, fake),
            metrics.inception_score(logits),
            metrics.precision_recall(real, fake),
            metrics.evaluate(fake, logits, labels, reference),
        )

    assert scores(*there) == scores(real, fake, logits)


# --- KID, inception score, precision and recall -----------------------------------------------


def test_kid_is_unbiased():
    values = [metrics.kid(rows(60, seed=s), rows(80, seed=s + 1000)) for s in range(200)]
    spread_of_mean = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * spread_of_mean
    assert min(values) < 0 < max(values)
    assert metrics.kid(rows(60), rows(60, seed=1, shift=1)) > 10 * np.std(values)


def test_inception_score_closed_forms():
    score = metrics.inception_score
    assert score(torch.zeros(100, 10)) == (pytest.approx(1), pytest.approx(0))
    certain = torch.eye(10).repeat(20, 1)  # probabilities with exact zeros
    assert score(certain, splits=1)[0] == pytest.approx(10)
    logits = rows(200, 10, scale=2)
    assert score(logits.softmax(1)) == pytest.approx(score(logits), rel=1e-6)
    by_class = torch.eye(10).repeat_interleave(20, 0)
    assert score(by_class, splits=5, seed=None)[0] == pytest.approx(2)  # two classes a split
    assert score(by_class, splits=5)[0] > 8  # which is why rows are shuffled


def test_precision_recall_extremes():
    x = rows(200, 6)
    same = metrics.precision_recall(x, x)
    assert same == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    far = metrics.precision_recall(x, x + 100)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_precision_recall_of_collapsed_samples():
    real = rows(200, 6)
    collapsed = real[:1].expand(200, -1)  # one real picture again and again
    found = metrics.precision_recall(real, collapsed)
    assert found["precision"] == 1 and found["recall"] == 1 / 200  # balls of radius exactly 0
    assert found["coverage"] < 0.1


def test_precision_recall_survives_a_common_offset():
    real, fake = rows(300, 6).double(), rows(300, 6, seed=1, scale=0.7).double()
    plain = metrics.precision_recall(real, fake)
    assert metrics.precision_recall(real + 1e6, fake + 1e6) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_blocks_do_not_change_results(block):
    real, fake = rows(90, 6), rows(70, 6, seed=1, scale=0.7)
    assert metrics.precision_recall(real, fake, 3, block) == metrics.precision_recall(real, fake)
    assert metrics.kid(real, fake, block=block) == pytest.approx(metrics.kid(real, fake), rel=1e-9)


# --- reference and scores ------------------------------------------------------------------------


def test_reference_round_trip(tmp_path):
    path = tmp_path / "new" / "reference.safetensors"
    reference = Reference.from_features(correlated(700, 20, 1), "sprites", "classifier")
    reference.save(path)
    loaded = Reference.load(path)
    assert (loaded.dataset, loaded.extractor, loaded.count) == ("sprites", "classifier", 700)
    assert torch.equal(loaded.features, reference.features)
    assert torch.equal(loaded.stats.cov, reference.stats.cov)
    assert list(path.parent.iterdir()) == [path]


def test_reference_rows_are_a_spread_out_sample():
    in_turn, sorted_ = torch.arange(25_000) % 10, torch.arange(25_000) // 2500
    features = torch.stack([in_turn, sorted_], 1).float()
    reference = Reference.from_features(features, "d", "e")
    assert len(reference.features) == metrics.MAX_ROWS and reference.count == 25_000
    for labels in reference.features.long().T:  # every class has its share in either order
        assert torch.bincount(labels, minlength=10).min() > 0.08 * metrics.MAX_ROWS


def test_half_precision_rows_hardly_move_the_scores():
    real, fake = correlated(3000, 64, 1), correlated(3000, 64, 2)
    half = Reference.from_features(real, "d", "e").features
    assert half.dtype == torch.float16
    assert metrics.precision_recall(half, fake) == pytest.approx(
        metrics.precision_recall(real, fake), rel=1e-3, abs=1e-3
    )
    assert metrics.kid(half, fake) == pytest.approx(metrics.kid(real, fake), rel=1e-3)


@pytest.mark.parametrize("scale, shift", [(1e5, 0), (1e-7, 0), (1, 1000), (0, 1)])
def test_rows_that_half_precision_would_damage_stay_float32(scale, shift):
    reference = Reference.from_features(rows(50, scale=scale, shift=shift), "d", "e")
    assert reference.features.dtype == torch.float32


def test_evaluate_gathers_the_scores():
    real, fake = correlated(900, 20, 1), correlated(300, 20, 2)
    logits, labels = rows(300, 10, scale=3), torch.arange(300) % 10
    reference = Reference.from_features(real, "sprites", "classifier")
    scores = metrics.evaluate(fake, logits, labels, reference, k=5)
    assert (scores.count, scores.prc_rows, scores.k, scores.note) == (300, 300, 5, "")
    assert scores.frechet == metrics.frechet_distance(stats(fake), stats(real))
    assert scores.kid == metrics.kid(fake, reference.features)
    assert scores.inception_score == metrics.inception_score(logits)[0]
    shares = metrics.precision_recall(metrics._subset(reference.features, 300), fake, 5)
    assert {name: getattr(scores, name) for name in shares} == shares
    assert scores.accuracy == (logits.argmax(1) == labels).sum().item() / 300
    assert scores == metrics.evaluate(fake.numpy(), logits.numpy(), labels.numpy(), reference, k=5)

    table = scores.table().splitlines()
    assert len(table) == 11 and len({len(line) for line in table}) == 1
    unlabelled = metrics.evaluate(fake, logits, None, reference, k=5)
    assert unlabelled.accuracy is None and "accuracy" not in unlabelled.table()


def test_few_samples_are_noted():
    reference = Reference.from_features(rows(100), "sprites", "classifier")
    scores = metrics.evaluate(rows(9, seed=1), rows(9, 10), None, reference)
    assert np.isfinite(scores.frechet) and "Only 9 images for 16" in scores.note
    assert "each of its 9 splits has 1 images for 10 classes" in scores.note
    assert scores.table().endswith(scores.note)


# --- what goes wrong ------------------------------------------------------------------------------

NAN = torch.full((9, 4), torch.nan)
X = rows(9, 4)
REFERENCE = Reference.from_features(X, "sprites", "classifier")

BAD_INPUT = {
    "no rows": (lambda: stats(X[:0]), "0 rows"),
    "no features": (lambda: stats(X[:, :0]), "(N, D)"),
    "one row only": (lambda: stats(X[:1]).cov, "at least 2"),
    "nothing yet": (lambda: GaussianStats().mean, "at least 1"),
    "nothing to keep": (lambda: GaussianStats().state(), "at least 1"),
    "not rows": (lambda: stats(X[0]), "(N, D)"),
    "whole numbers": (lambda: stats(X.long()), "int64"),
    "NaN": (lambda: stats(NAN), "NaN"),
    "width changes": (lambda: stats(X).update(X[:, :3]), "3 and of 4"),
    "empty state": (lambda: GaussianStats.from_state({}), "mean and scatter"),
    "frechet widths": (lambda: metrics.frechet_distance(stats(X), stats(X[:, :3])), "4 and of 3"),
    "kid widths": (lambda: metrics.kid(X, X[:, :3]), "4 and of 3"),
    "kid of one row": (lambda: metrics.kid(X, X[:1]), "y has 1 rows"),
    "kid infinite": (lambda: metrics.kid(X, X / 0), "infinite"),
    "prc widths": (lambda: metrics.precision_recall(X, X[:, :3]), "4 and of 3"),
    "prc too few": (lambda: metrics.precision_recall(X, X[:3]), "fake features has 3 rows"),
    "prc k": (lambda: metrics.precision_recall(X, X, k=0), "k must be"),
    "is splits": (lambda: metrics.inception_score(X, splits=0), "splits must be"),
    "is too few": (lambda: metrics.inception_score(X, splits=10), "at least 10"),
    "is NaN": (lambda: metrics.inception_score(NAN, splits=1), "NaN"),
    "reference of one": (lambda: Reference.from_features(X[:1], "d", "e"), "at least 2"),
    "evaluate few": (lambda: metrics.evaluate(X[:3], X[:3], None, REFERENCE), "at least 4"),
    "evaluate width": (lambda: metrics.evaluate(X[:, :3], X, None, REFERENCE), "3 and of 4"),
    "evaluate labels": (lambda: metrics.evaluate(X, X, torch.arange(9), REFERENCE), "0..3"),
    "label count": (lambda: metrics.evaluate(X, X, torch.zeros(8).long(), REFERENCE), "9 whole"),
    "reference unwritable": (lambda: REFERENCE.save("/proc/no/r.safetensors"), "cannot write"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case):
    act, text = BAD_INPUT[case]
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert text in message and message.endswith(".") and "\n" not in message


def check_data_error(act, path, text):
    with pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert str(path) in message and text in message, message
    assert message.endswith(".") and "\n" not in message


def test_damaged_references_are_one_sentence(tmp_path):
    path = tmp_path / "r.safetensors"
    REFERENCE.save(path)
    whole = path.read_bytes()
    for part in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"text" * 50):
        path.write_bytes(part)
        check_data_error(lambda: Reference.load(path), path, "anew")
    path.unlink()
    check_data_error(lambda: Reference.load(path), path, "anew")
    path.mkdir()
    check_data_error(lambda: Reference.load(path), path, "anew")


def test_reference_with_other_content_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "r.safetensors"
    save_file({"features": X}, path)
    check_data_error(lambda: Reference.load(path), path, "holds no reference")
    broken = Reference(stats(X), X[:, :3], "d", "e")
    broken.save(path)
    check_data_error(lambda: Reference.load(path), path, "holds no reference")
