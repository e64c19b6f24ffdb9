"""metrics: equal to torch-fidelity and prdc, exact in closed forms, clear when fed badly."""

import subprocess
import sys
import tracemalloc
import urllib.error

import numpy as np
import prdc
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_isc, metric_kid
from torch_fidelity import metric_prc as fidelity_prc

from sgmgm import metrics, scoring
from sgmgm.metrics import Features, GaussianStats, Reference
from sgmgm.utils.errors import DataError, InputError
from sgmgm.utils.samples import load_samples, sample_batches, save_samples


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


# --- extractors -----------------------------------------------------------------------------------


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
    assert "each of its 9 parts holds 1 images for 10 classes" in scores.note
    assert scores.table().endswith(scores.note)


# --- samples on disk -----------------------------------------------------------------------------


def pictures(count=6, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_samples_round_trip_and_are_plain_numpy(tmp_path):
    path, images, labels = tmp_path / "s.npz", pictures(), np.array([3, 1, 4, 1, 5, 9])
    save_samples(path, images, labels.astype(np.int32))
    with np.load(path) as plain:
        assert plain.files == ["arr_0", "arr_1"] and plain["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(plain["arr_0"], images)
    loaded, loaded_labels = load_samples(path, resolution=8)
    np.testing.assert_array_equal(loaded, images)
    np.testing.assert_array_equal(loaded_labels, labels)
    np.savez(path, images, np.classifier(10)[labels])
    np.testing.assert_array_equal(load_samples(path)[1], labels)
    np.savez(path, images)
    assert load_samples(path)[1] is None
    assert list(tmp_path.iterdir()) == [path]


def test_sample_batches():
    images = pictures(7)
    images.flags.writeable = False
    batches = list(sample_batches(images, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    whole = torch.cat(batches)
    assert whole.dtype == torch.float32 and whole.shape == (7, 3, 8, 8)
    back = (whole * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(back, images)


def test_samples_are_read_without_a_second_copy(tmp_path):
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    save_samples(tmp_path / "s.npz", images, np.zeros(2000, int))
    tracemalloc.start()
    load_samples(tmp_path / "s.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.nbytes <= peak < 1.3 * images.nbytes


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
    "reference of one": (lambda: Reference.from_features(X[:1], "d", "e"), "at least 2"),
    "evaluate few": (lambda: metrics.evaluate(X[:3], X[:3], None, REFERENCE), "at least 4"),
    "evaluate width": (lambda: metrics.evaluate(X[:, :3], X, None, REFERENCE), "3 and of 4"),
    "evaluate logits": (lambda: metrics.evaluate(X, X[:4], None, REFERENCE), "4 of logits"),
    "evaluate labels": (lambda: metrics.evaluate(X, X, torch.arange(9), REFERENCE), "0..3"),
    "label count": (lambda: metrics.evaluate(X, X, torch.zeros(8).long(), REFERENCE), "9 whole"),
    "save floats": (
        lambda: save_samples("s.npz", pictures() / 255.0, np.zeros(6, int)),
        "uint8",
    ),
    "save labels": (
        lambda: save_samples("s.npz", pictures(), np.zeros(5, int)),
        "6 whole numbers",
    ),
    "save unwritable": (
        lambda: save_samples("/proc/no/s.npz", pictures(), np.zeros(6, int)),
        "cannot write",
    ),
    "reference unwritable": (lambda: REFERENCE.save("/proc/no/r.safetensors"), "cannot write"),
    "batches shape": (lambda: next(sample_batches(pictures()[0])), "(N, H, W, 3)"),
    "batches size": (lambda: next(sample_batches(pictures(), 0)), "batch_size"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case):
    act, text = BAD_INPUT[case]
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert text in message and message.endswith(".") and "\n" not in message


SIX = np.arange(6)
BAD_SAMPLES = {  # what np.savez is given, and what the message must say
    "other names": (dict(images=pictures()), "holds images and no arr_0"),
    "nothing": (dict(), "holds nothing"),
    "floats": (dict(arr_0=pictures() / 255.0), "float64"),
    "NaN": (dict(arr_0=np.full((6, 8, 8, 3), np.nan)), "uint8 array (N, H, W, 3)"),
    "channels first": (dict(arr_0=pictures().transpose(0, 3, 1, 2)), "(6, 3, 8, 8)"),
    "no images": (dict(arr_0=pictures()[:0]), "non-empty"),
    "one image": (dict(arr_0=pictures()[0]), "(8, 8, 3)"),
    "pickled": (dict(arr_0=np.array([{}], object)), "not a plain .npz"),
    "pickled labels": (dict(arr_0=pictures(), arr_1=np.array([{}] * 6, object)), "not a plain"),
    "float labels": (dict(arr_0=pictures(), arr_1=SIX / 2), "class numbers"),
    "negative labels": (dict(arr_0=pictures(), arr_1=SIX - 1), "from 0"),
    "label count": (dict(arr_0=pictures(), arr_1=SIX[:5]), "save 6 class numbers"),
    "not one-hot": (dict(arr_0=pictures(), arr_1=np.full((6, 10), 0.1)), "class numbers"),
    "NaN labels": (dict(arr_0=pictures(), arr_1=np.full((6, 10), np.nan)), "class numbers"),
    "words": (dict(arr_0=pictures(), arr_1=np.array(list("abcdef"))), "class numbers"),
    "resolution": (dict(arr_0=pictures(size=16)), "16 x 16 pixels where 8 x 8"),
}


def check_data_error(act, path, text):
    with pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert str(path) in message and text in message, message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_are_one_sentence(case, tmp_path):
    content, text = BAD_SAMPLES[case]
    path = tmp_path / "s.npz"
    np.savez(path, **content)
    check_data_error(lambda: load_samples(path, 8), path, text)


def test_damaged_files_are_one_sentence(tmp_path):
    samples, reference = tmp_path / "s.npz", tmp_path / "r.safetensors"
    save_samples(samples, pictures(), SIX)
    REFERENCE.save(reference)
    for path, load in ((samples, load_samples), (reference, Reference.load)):
        whole = path.read_bytes()
        for part in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"text" * 50):
            path.write_bytes(part)
            check_data_error(lambda load=load, path=path: load(path), path, "anew")
        path.unlink()
        check_data_error(lambda load=load, path=path: load(path), path, "there is no file")
        path.mkdir()
        check_data_error(lambda load=load, path=path: load(path), path, "there is no file")
    array = tmp_path / "array.npz"
    with open(array, "wb") as file:
        np.save(file, pictures())
    check_data_error(lambda: load_samples(array), array, "not a plain .npz")
    method = bytearray(whole_npz := _npz_bytes(tmp_path / "t.npz"))
    method[whole_npz.rindex(b"PK\x01\x02") + 10] = 99  # a compression that zipfile does not know
    array.write_bytes(method)
    check_data_error(lambda: load_samples(array), array, "not a plain .npz")


def _npz_bytes(path):
    save_samples(path, pictures(), SIX)
    return path.read_bytes()


def test_reference_with_other_content_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "r.safetensors"
    save_file({"features": X}, path)
    check_data_error(lambda: Reference.load(path), path, "holds no reference")
    broken = Reference(stats(X), X[:, :3], "d", "e")
    broken.save(path)
    check_data_error(lambda: Reference.load(path), path, "holds no reference")
