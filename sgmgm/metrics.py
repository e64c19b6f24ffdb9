"""Scores: how far a set of generated images is from the real ones.

Images become feature rows through an *extractor*; every score is then a function of the rows
alone, computed in float64 and in blocks, so that 50,000 rows of 2048 features fit anywhere. This
happens on the CPU, because not every accelerator has float64.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .utils.errors import CheckpointError, DataError, InputError, check_count
from .utils.files import canonical
from .utils.hub import read_tensors, save_tensors

BLOCK = 2048  # rows that are in float64 at once
MAX_ROWS = 5_000  # feature rows that KID and precision/recall look at


def check_rows(name: str, features, least: int = 1) -> Tensor:
    """Features as a finite CPU tensor (N, D) with at least `least` rows, else an InputError."""
    features = torch.as_tensor(features).detach().cpu()
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        found = f"{features.dtype} {tuple(features.shape)}"
        raise InputError(f"{name} must be floating-point rows (N, D), not {found}.")
    if len(features) < least:
        raise InputError(f"{name} has {len(features)} rows; at least {least} are needed.")
    if not all(block.isfinite().all() for block in features.split(BLOCK)):
        raise InputError(f"{name} holds NaN or infinite values.")
    return features


def _check_same_width(a: int, b: int) -> None:
    if a != b:
        raise InputError(f"features of {a} and of {b} dimensions cannot be compared.")


def _subset(features: Tensor, count: int) -> Tensor:
    """At most `count` rows, at random with a fixed seed: rows are often sorted by class."""
    if len(features) <= count:
        return features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return features[order[:count].sort().values]


class GaussianStats:
    """Mean and covariance of feature rows that arrive in batches, in float64.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque 1979, which keeps digits.
    """

    def __init__(self):
        self.count = 0
        self._mean: Any = None  # (D,)
        self._scatter: Any = None  # (D, D) sum of (x - mean)(x - mean)^T

    def update(self, features) -> "GaussianStats":
        """Add a batch (B, D) and return self; InputError, and nothing added, if it does not fit."""
        features = check_rows("features", features)
        width = features.shape[1]
        if not self.count:
            self._mean = torch.zeros(width, dtype=torch.float64)
            self._scatter = torch.zeros(width, width, dtype=torch.float64)
        _check_same_width(width, len(self._mean))
        for block in features.split(BLOCK):
            block = block.double()
            mean, total = block.mean(0), self.count + len(block)
            block = block - mean
            shift = mean - self._mean
            self._scatter += block.T @ block
            self._scatter += torch.outer(shift, shift) * (self.count * len(block) / total)
            self._mean += shift * (len(block) / total)
            self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        self._check_count(1)
        return self._mean.clone()

    @property
    def cov(self) -> Tensor:
        """(D, D) float64, unbiased (divided by N - 1)."""
        self._check_count(2)
        return self._scatter / (self.count - 1)

    def _check_count(self, least: int) -> None:
        if self.count < least:
            raise InputError(f"the statistics hold {self.count} rows; at least {least} are needed.")

    def state(self) -> dict[str, Tensor]:
        """Tensors for safetensors; `from_state` takes them back."""
        count, scatter = torch.tensor(self.count), self._scatter
        return {"count": count, "mean": self.mean, "scatter": scatter.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "GaussianStats":
        """The inverse of `state`; InputError if tensors are missing, misshapen or not finite."""
        stats = cls()
        try:
            stats.count, mean, scatter = int(state["count"]), state["mean"], state["scatter"]
            sound = mean.ndim == 1 and scatter.shape == 2 * mean.shape and stats.count > 0
            sound = sound and mean.isfinite().all() and scatter.isfinite().all()
        except (KeyError, RuntimeError, ValueError):
            sound = False
        if not sound:
            raise InputError("the state of GaussianStats needs a count, mean and scatter that fit.")
        stats._mean, stats._scatter = mean.double().clone(), scatter.double().clone()
        return stats


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (FID on Inception features).

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6. With A = R R^T, (A B)^(1/2) has the trace of the
    symmetric (R^T B R)^(1/2); directions in which A is singular drop out. InputError if the widths
    differ or a side has fewer than two rows.
    """
    cov_a, cov_b = a.cov, b.cov
    _check_same_width(len(cov_a), len(cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # the rest is rounding
    root = vectors[:, keep] * values[keep].sqrt()
    cross = torch.linalg.eigvalsh(root.T @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def kid(x, y, degree: int = 3, block: int = BLOCK, pairs_of_y: float | None = None) -> float:
    """Unbiased MMD^2 of rows (N, D) and (M, D) under the kernel (x.y / D + 1)^degree.

    Binkowski et al. 2018 (arXiv 1801.01401), sections 3 and 4, over all rows instead of random
    subsets. Around 0, at times below, for two samples of one distribution. `pairs_of_y` is the
    `mean_of_pairs` of y, if it is known already. InputError on bad rows or fewer than two.
    """
    x, y = check_rows("x", x, least=2), check_rows("y", y, least=2)
    _check_same_width(x.shape[1], y.shape[1])
    own, its = mean_of_pairs(x, degree, block), pairs_of_y
    its = mean_of_pairs(y, degree, block) if its is None else its
    return own + its - 2 * _kernel_sum(x, y, degree, block) / (len(x) * len(y))


def _kernel_sum(a: Tensor, b: Tensor, degree: int, block: int) -> float:
    return sum(
        (p.double() @ q.double().T).div_(a.shape[1]).add_(1).pow_(degree).sum().item()
        for p in a.split(block)
        for q in b.split(block)
    )


def mean_of_pairs(rows: Tensor, degree: int = 3, block: int = BLOCK) -> float:
    """Mean kernel of two different rows of (N, D): a part of `kid`."""
    norms = torch.cat([some.double().square().sum(1) for some in rows.split(block)])
    itself = (norms / rows.shape[1] + 1).pow(degree).sum().item()  # no row is paired with itself
    return (_kernel_sum(rows, rows, degree, block) - itself) / (len(rows) * (len(rows) - 1))


def inception_score(rows, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """(mean, standard deviation) over `splits` of exp(E_x KL(p(y|x) || p(y))).

    Salimans et al. 2016 (arXiv 1606.03498), section 4, in the form exp(H(y) - H(y|x)). Rows (N, C)
    that are non-negative and sum to 1 are probabilities, all others logits. They are shuffled first
    as torch-fidelity does, unless seed is None. InputError on bad rows or fewer than splits.
    """
    rows = check_rows("logits", rows, least=check_count("splits", splits))
    is_probability = bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-3).all())
    if seed is not None:
        rows = rows[torch.from_numpy(np.random.RandomState(seed).permutation(len(rows)))]
    scores = []
    for i in range(splits):
        split = rows[i * len(rows) // splits : (i + 1) * len(rows) // splits]
        marginal, conditional_entropy = 0, 0
        for block in split.split(BLOCK):
            p = block.double() if is_probability else block.double().softmax(1)
            marginal = marginal + p.sum(0) / len(split)
            conditional_entropy += torch.special.entr(p).sum() / len(split)
        scores.append((torch.special.entr(marginal).sum() - conditional_entropy).exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def _distance_tiles(x: Tensor, y: Tensor, centre: Tensor, block: int):
    """Squared distances of every row of x to every row of y, as (rows, columns, tile)."""
    for i in range(0, len(x), block):
        rows = slice(i, i + block)
        p = x[rows].double() - centre
        for j in range(0, len(y), block):
            columns = slice(j, j + block)
            q = y[columns].double() - centre
            scale = p.square().sum(1, keepdim=True) + q.square().sum(1)
            tile = torch.addmm(scale, p, q.T, alpha=-2)
            # What the cancellation leaves of two equal rows is rounding, so it is made 0.
            yield rows, columns, tile.masked_fill_(tile < 1e-12 * scale, 0)


def _radii(x: Tensor, k: int, centre: Tensor, block: int) -> Tensor:
    """(N,) squared distance of each row to its k-th nearest other row."""
    nearest = x.new_full((len(x), k + 1), torch.inf, dtype=torch.float64)  # + 1: the row itself
    for rows, _, tile in _distance_tiles(x, x, centre, block):
        best = tile.topk(min(k + 1, tile.shape[1]), largest=False).values
        nearest[rows] = torch.cat([nearest[rows], best], 1).topk(k + 1, largest=False).values
    return nearest.amax(1)


def precision_recall(real, fake, k: int = 3, block: int = BLOCK) -> dict[str, float]:
    """precision, recall, density and coverage of rows (N, D) and (M, D), in balls that reach
    from a row to its k-th nearest neighbour in its own set.

    precision: share of fakes inside a real ball; recall: share of reals inside a fake ball
    (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2; the ball is closed).
    density: real balls around a fake, over k, 1 in expectation where fakes are as good as reals;
    coverage: share of real balls with a fake inside (Naeem et al. 2020, arXiv 2002.09797, eq. 3-4;
    the ball is open, as in the authors' `prdc`).
    All depend on N and M: compare only scores with equal numbers. Time grows as (N + M)^2 D.
    InputError on bad rows or fewer than k + 1 of them.
    """
    least = check_count("k", k) + 1
    real, fake = check_rows("real features", real, least), check_rows("fake features", fake, least)
    _check_same_width(real.shape[1], fake.shape[1])
    centre = real.mean(0, dtype=torch.float64)  # distances keep more digits around the origin
    real_radius, fake_radius = _radii(real, k, centre, block), _radii(fake, k, centre, block)

    precise, recalled, covered = (torch.zeros(len(x), dtype=torch.bool) for x in (fake, real, real))
    balls_around = 0
    for rows, columns, tile in _distance_tiles(real, fake, centre, block):
        radius = real_radius[rows, None]
        precise[columns] |= (tile <= radius).any(0)
        recalled[rows] |= (tile <= fake_radius[columns]).any(1)
        inside = tile < radius
        covered[rows] |= inside.any(1)
        balls_around += inside.sum().item()
    hits = {"precision": precise, "recall": recalled, "coverage": covered}
    shares = {name: hit.double().mean().item() for name, hit in hits.items()}
    return shares | {"density": balls_around / (k * len(fake))}


@dataclass
class Reference:
    """A real data set as the scores see it: a small file instead of the images."""

    stats: GaussianStats  # over the whole set
    features: Tensor  # (at most MAX_ROWS, D) float16 or float32, for KID and precision/recall
    dataset: str
    extractor: str
    data: str = ""  # fingerprint of a set whose images may change

    @property
    def count(self) -> int:
        """Images in the whole set."""
        return self.stats.count

    @cached_property
    def pairs(self) -> float:
        """The kept rows' `mean_of_pairs`: a second of work that is the same for all samples."""
        return mean_of_pairs(check_rows("reference features", self.features))

    @classmethod
    def from_features(cls, features, dataset: str, extractor: str) -> "Reference":
        """From all feature rows (N, D); which rows are kept is fixed by a seed."""
        features = check_rows("reference features", features, least=2)
        kept = _subset(features, MAX_ROWS)
        error = (kept.half().double() - kept).norm()
        spread = (kept - kept.mean(0)).double().norm()
        kept = kept.half() if error < 1e-3 * spread else kept.float()  # half the bytes, if harmless
        return cls(GaussianStats().update(features), kept, dataset, extractor)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with JSON metadata, atomically; InputError if unwritable."""
        metadata = {"dataset": self.dataset, "extractor": self.extractor, "data": self.data}
        tensors = {**self.stats.state(), "features": self.features.contiguous()}
        save_tensors(Path(path), tensors, {"sgmgm.reference": json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote; DataError if the file is absent, damaged or something else."""
        try:
            tensors, notes = read_tensors(Path(path))
            metadata = json.loads(notes["sgmgm.reference"])
            dataset = canonical(metadata["dataset"])  # once a folder's path was relative
            names = (dataset, metadata["extractor"], metadata.get("data", ""))
            features = check_rows("features", tensors.pop("features"))
            stats = GaussianStats.from_state(tensors)
            _check_same_width(features.shape[1], len(stats.mean))
            return cls(stats, features, *names)
        except (CheckpointError, TypeError, KeyError, ValueError) as error:
            what = "damaged or holds no reference statistics"
            raise DataError(f"{path} is {what}: make them anew.") from error


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found; lower is better for frechet and kid, higher for the others."""

    count: int
    frechet: float
    kid: float
    inception_score: float
    precision: float
    recall: float
    density: float
    coverage: float
    accuracy: float | None  # share of samples classified as their label; None without labels
    k: int
    prc_rows: int  # rows of each set behind precision, recall, density and coverage
    extractor: str
    reference: str
    note: str = ""
    coherence: float | None = None  # sprites only: share whose two accents agree

    def table(self) -> str:
        """An aligned text table."""
        rest = ("precision", "recall", "density", "coverage", "accuracy", "coherence")
        scores: dict[str, Any] = {"Frechet distance": self.frechet, "KID x 1000": 1000 * self.kid}
        scores["inception score"] = self.inception_score
        scores |= {name: getattr(self, name) for name in rest}
        text = {"samples": f"{self.count:,}", "reference": self.reference}
        text["extractor"] = self.extractor
        text |= {name: f"{value:.3f}" for name, value in scores.items() if value is not None}
        width = max(map(len, text.values()))
        table = "\n".join(f"{name:<18}{value:>{width}}" for name, value in text.items())
        return f"{table}\n{self.note}" if self.note else table


def evaluate(
    sample_features, sample_logits, sample_labels, reference: Reference, k: int = 3
) -> Scores:
    """All scores of samples (features (N, D), logits (N, C), labels (N,) or None) as `Scores`.

    The Frechet distance uses all samples and the whole reference set, KID at most MAX_ROWS rows of
    each. Precision, recall, density and coverage depend on the number of rows, so they use equally
    many of each: min(N, reference rows, MAX_ROWS), stated in `prc_rows`. Without labels there is no
    accuracy. InputError on fewer than k + 1 samples and on rows or labels that do not fit.
    """
    features = check_rows("sample features", sample_features, least=check_count("k", k) + 1)
    logits = check_rows("sample logits", sample_logits)
    count, width = features.shape
    _check_same_width(width, reference.features.shape[1])
    accuracy = None
    if sample_labels is not None:
        labels = torch.as_tensor(sample_labels).cpu()
        if labels.shape != (count,) or labels.is_floating_point():
            raise InputError(f"labels must be {count} whole numbers, one for each sample.")
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise InputError(f"labels must be in 0..{logits.shape[1] - 1}.")
        accuracy = (logits.argmax(1) == labels).double().mean().item()

    some = _subset(features, MAX_ROWS)
    rows = min(len(some), len(reference.features))
    few, notes = min(count, reference.count), []
    if few <= width:
        notes.append(f"Only {few:,} images for {width:,} feature dimensions: the covariance is "
                     "singular and the Frechet distance too large.")  # fmt: skip
    splits, classes = min(10, count), logits.shape[1]
    if count // splits < classes:
        notes.append(f"The inception score is too low: each of its {splits} splits has "
                     f"{count // splits:,} images for {classes:,} classes.")  # fmt: skip
    return Scores(
        count=count,
        frechet=frechet_distance(GaussianStats().update(features), reference.stats),
        kid=kid(some, reference.features, pairs_of_y=reference.pairs),
        inception_score=inception_score(logits, splits=splits)[0],
        **precision_recall(_subset(reference.features, rows), _subset(some, rows), k),
        accuracy=accuracy,
        k=k,
        prc_rows=rows,
        extractor=reference.extractor,
        reference=reference.dataset,
        note="\n".join(notes),
    )
