"""Tasks: what each network of the course learns from, and its loss.

`training.fit` trains any of them. All randomness comes from the generator that a task is given, so
that a step can be repeated.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, feature_distance
from .datasets import ImageSet, augment
from .extractor import SecondExtractor
from .masking import corrupt, drop_labels, random_mask
from .tokenizer import Quantized, ShuffleDecoder, VQTokenizer, kmeans
from .transformer import MaskedTransformer
from .utils.distributed import in_turn
from .utils.errors import InputError, check_choice

SMOOTHED: dict = {"label_smoothing": 0.1, "reduction": "sum"}  # of a masked model's cross-entropy


class Task:
    """What `fit` trains: a model, `size` examples and a loss.

    `losses(model, indices, shard, generator)` gets the indices (B,) of the whole batch's examples,
    this process' slice of them and a generator for whatever is random. It returns named scalars,
    whose means over all processes are those of the whole batch. "loss" is minimised.
    `state` holds tensors that must survive a restart.
    """

    name: str
    model: nn.Module
    size: int

    def __init__(self):
        self.state: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move what the loss needs besides the model."""
        self.device = device
        self.state = {k: v.to(device) for k, v in self.state.items()}

    def losses(self, model, indices: Tensor, shard: slice, generator) -> dict[str, Tensor]:
        raise NotImplementedError

    def after_step(self, step: int, steps: int, accelerator, generator) -> None:
        """Called after every optimizer step."""


class ClassifierTask(Task):
    """Cross-entropy with label smoothing on flipped and shifted images."""

    def __init__(self, model: Classifier | SecondExtractor, images: ImageSet):
        super().__init__()
        self.model, self.images, self.size = model, images, len(images)
        self.name = type(model).name

    def losses(self, model, indices, shard, generator):
        images, labels = self.images.batch(indices)  # (B, 3, H, W), (B,)
        images = augment(images, generator, flip=self.images.flip, shift=4)
        images, labels = images[shard].to(self.device), labels[shard].to(self.device)
        logits = model(images).logits  # (B / processes, C)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=0.1), "accuracy": accuracy}


class TokenizerTask(Task):
    """L1 + L2 + feature distance + codebook and commitment loss, with dead-code revival.

    With a `codebook_decay` the codes start as the k-means centres of encoder outputs. With a decay
    of 1 they stay these centres. With a smaller one they become moving averages of the encoder
    outputs that chose them (van den Oord et al. 2017, appendix A.1).

    Args:
        classifier: gives the feature distance; None leaves it out.
        feature_weight: of that distance in the loss.
    """

    name = "tokenizer"
    REVIVE_EVERY = 20  # steps
    DEAD_AFTER = 50  # steps without being chosen
    FEATURE_SHARE = 4  # the feature distance looks at one image in so many
    START_ROWS = 600_000  # encoder outputs behind the first k-means centres: a minute of one core
    keep_codes = False  # a further round of training starts from the codes that it finds
    model: VQTokenizer
    quantized: Quantized  # of the latest step

    def __init__(
        self, model: VQTokenizer, images: ImageSet, classifier: Classifier | None = None,
        feature_weight: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.model, self.images, self.size = model, images, len(images)
        self.classifier = classifier.eval().requires_grad_(False) if classifier else None
        self.feature_weight = feature_weight
        self.state["age"] = torch.full((model.num_codes,), self.DEAD_AFTER + 1)
        if model.config.codebook_decay:
            codes = model.quantize.embedding.weight
            self.state |= {"sizes": torch.zeros(len(codes)), "sums": torch.zeros(codes.shape)}

    def to(self, device):
        super().to(device)
        if self.classifier:
            self.classifier.to(device)

    def losses(self, model, indices, shard, generator):
        images, _ = self.images.batch(indices)  # (B, 3, H, W)
        images = augment(images, generator, flip=self.images.flip)[shard].to(self.device)
        reconstruction, self.quantized = model(images)  # like images; tokens (B, N)
        reconstruction = reconstruction.float()
        difference = reconstruction - images
        losses = {
            "l1": difference.abs().mean(),
            "l2": difference.square().mean(),
            "codebook": self.quantized.loss,
        }
        if self.classifier:
            # a quarter of the batch gives the same mean for a quarter of the time
            some = slice(-(-len(images) // self.FEATURE_SHARE))
            distance = feature_distance(self.classifier, images[some], reconstruction[some])
            losses["feature"] = self.feature_weight * distance
        return {"loss": sum(losses.values())} | losses

    @torch.no_grad()
    def after_step(self, step, steps, accelerator, generator):
        from accelerate.utils import broadcast  # a second to import

        quantizer, age = self.model.quantize, self.state["age"]
        chosen = torch.bincount(self.quantized.tokens.flatten(), minlength=len(age))
        age += 1
        chosen = accelerator.reduce(chosen, "sum")  # (K,)
        age[chosen > 0] = 0
        if quantizer.decay and step == 0:
            if not self.keep_codes:
                self.start_codebook(generator)
            broadcast(quantizer.embedding.weight.data)
            age.zero_()
            self.state["sizes"].fill_(1.0)
            self.state["sums"].copy_(quantizer.embedding.weight)
            return
        if quantizer.decay == 1:
            return  # the centres stay, also those that are rarely chosen
        if quantizer.decay:
            self.move_codebook(chosen, accelerator)
        # every code starts as dead, so step 0 places the codebook on real encoder outputs;
        # the last fifth of training leaves the codes in peace
        if (step == 0 or step % self.REVIVE_EVERY == 0) and step < 0.8 * steps:
            dead = age > self.DEAD_AFTER if step else torch.ones_like(age, dtype=torch.bool)
            quantizer.revive(dead, in_turn(self.quantized.encoded), generator)
            broadcast(quantizer.embedding.weight.data)
            age[dead] = 0
            if quantizer.decay:  # as if one encoder output had chosen each
                self.state["sizes"][dead] = 1.0
                self.state["sums"][dead] = quantizer.embedding.weight[dead]

    def start_codebook(self, generator) -> None:
        """The codes become the k-means centres of random images' encoder outputs."""
        codes = self.model.quantize.embedding.weight  # (K, D)
        count = -(-max(self.START_ROWS, len(codes)) // self.model.config.num_tokens)
        some = torch.randperm(self.size, generator=generator)[:count].split(250)
        pixels = (self.images.batch(indices)[0].to(self.device) for indices in some)
        encoded = torch.cat([self.model.encoder(batch) for batch in pixels])  # (M, D, h, w)
        rows = encoded.float().permute(0, 2, 3, 1).flatten(0, 2)  # (M h w, D)
        codes.copy_(kmeans(rows, len(codes), generator))
        if isinstance(self.model.decoder, ShuffleDecoder):
            self.model.decoder.init_from_codebook(codes)

    @torch.no_grad()
    def move_codebook(self, chosen: Tensor, accelerator) -> None:
        """Codes <- sums / sizes, moving averages over the encoder outputs that chose each code."""
        codes, decay = self.model.quantize.embedding.weight, self.model.quantize.decay
        sizes, sums = self.state["sizes"], self.state["sums"]  # (K,), (K, D)
        rows = self.quantized.encoded.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
        new = torch.zeros_like(sums).index_add_(0, self.quantized.tokens.flatten(), rows)
        sizes.lerp_(chosen.to(sizes), 1 - decay)
        sums.lerp_(accelerator.reduce(new, "sum"), 1 - decay)
        used = sizes[:, None] > 1e-3  # below that there is rounding only: the code stays
        codes.copy_(torch.where(used, sums / sizes[:, None].clamp_min(1e-3), codes))


class TransformerTask(Task):
    """Cross-entropy on the masked positions (paper, eq. 1), label smoothing 0.1.

    Args:
        tokens: whole numbers (V, M, N): V views (flips) of M images.
        labels: int64 (M,).
        class_dropout: share of images trained without their class, for classifier-free guidance.
    """

    name = "transformer"

    def __init__(self, model: nn.Module, tokens: Tensor, labels: Tensor, class_dropout=0.1):
        super().__init__()
        self.model, self.tokens, self.labels, self.size = model, tokens, labels, len(labels)
        self.class_dropout = class_dropout

    def examples(self, indices: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, N), one random view of each image, and labels (B,)."""
        view = torch.randint(len(self.tokens), indices.shape, generator=generator)  # (B,)
        return self.tokens[view, indices].long(), self.labels[indices]

    def losses(self, model, indices, shard, generator):
        tokens, labels = self.examples(indices, generator)  # (B, N), (B,)
        mask = random_mask(*tokens.shape, generator)  # (B, N)
        labels = drop_labels(labels, self.class_dropout, self.model.config.num_classes, generator)
        masked = mask.sum().item() / (shard.step or 1)  # of the whole batch, over the processes
        tokens, labels, mask = (x[shard].to(self.device) for x in (tokens, labels, mask))
        canvas = torch.where(mask, self.model.config.mask_id, tokens)  # (B, N)
        logits = model(canvas, labels, mask).logits.float()  # (M, K) of the M masked positions
        # eq. 1: minus the mean log-likelihood of the masked tokens, given the visible ones
        loss = F.cross_entropy(logits, tokens[mask], **SMOOTHED) / masked
        nll = F.cross_entropy(logits.detach(), tokens[mask], reduction="sum") / masked
        return {"loss": loss, "nll": nll}


def uniform_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """Any code with equal chance."""
    return torch.randint(task.model_config.codebook_size, tokens.shape, generator=generator)


def model_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """Sampled from the generator's own prediction of a blank canvas of that class."""
    chance = torch.rand(tokens.shape, generator=generator)[..., None]  # (B, N, 1)
    found = torch.searchsorted(task.blank_cumulative[labels], chance).squeeze(-1)  # (B, N)
    return found.clamp_max(task.model_config.codebook_size - 1)


def neighbour_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """One of the 8 codes that are nearest in the codebook."""
    which = torch.randint(task.neighbours.shape[1], tokens.shape, generator=generator)  # (B, N)
    return task.neighbours[tokens, which]


WRONG_TOKENS = {"uniform": uniform_tokens, "model": model_tokens, "neighbour": neighbour_tokens}
LOSS_ON = ("substituted", "masked")


class SmootherTask(TransformerTask):
    """The auxiliary task that makes a smoother (paper, eq. 7), on a frozen transformer.

    A share of the visible tokens is substituted by wrong ones. The smoother must predict the true
    tokens from them, so it learns not to trust single tokens. With rate 0 and the loss on masked
    positions it is the control arm: eq. 1 again.

    Args:
        model: a smoother of `transformer`, see `smoothing.SMOOTHERS`.
        tokens, labels: as for `TransformerTask`.
        codebook: code vectors (K, D), for "neighbour".
        rate: share of the visible tokens to substitute.
        wrong: a name in `WRONG_TOKENS`.
        loss_on: "masked" positions (paper, eq. 7) or "substituted" ones (the released code).
    """

    name = "smoother"
    RECONSTRUCTION = 0.1  # weight of TOAST's reconstruction loss (appendix C)

    def __init__(
        self, model: nn.Module, transformer: MaskedTransformer, tokens: Tensor, labels: Tensor,
        codebook: Tensor, rate: float = 0.3, wrong: str = "uniform", loss_on: str = "substituted",
    ):  # fmt: skip
        super().__init__(model, tokens, labels)
        check_choice("wrong tokens", wrong, WRONG_TOKENS)
        check_choice("loss", loss_on, LOSS_ON)
        if loss_on == "substituted" and not 0 < rate <= 1:
            raise InputError(f"a loss on substituted tokens needs a rate in (0, 1], not {rate!r}.")
        self.transformer = transformer.eval().requires_grad_(False)
        self.rate, self.wrong, self.loss_on = rate, WRONG_TOKENS[wrong], loss_on
        self.model_config = c = transformer.config
        distance = torch.cdist(codebook.float(), codebook.float()).fill_diagonal_(math.inf)
        self.neighbours = distance.topk(min(8, len(codebook) - 1), largest=False).indices
        with torch.no_grad():
            canvas = transformer.blank.expand(c.num_classes, -1)
            logits = transformer(canvas, torch.arange(c.num_classes, device=canvas.device)).logits
        self.blank_cumulative = logits.float().softmax(-1).cumsum(-1).cpu()  # (C, N, K)

    def to(self, device):
        super().to(device)
        self.transformer.to(device)

    def losses(self, model, indices, shard, generator):
        tokens, labels = self.examples(indices, generator)  # (B, N), (B,)
        mask = random_mask(*tokens.shape, generator)  # (B, N)
        wrong = self.wrong(tokens, labels, generator, self)
        corrupted, substituted = corrupt(tokens, mask, self.rate, wrong, generator)  # (B, N)
        canvas = torch.where(mask, self.model_config.mask_id, corrupted)
        scored = substituted if self.loss_on == "substituted" else mask
        count = max(1, scored.sum().item()) / (shard.step or 1)  # see `TransformerTask`
        batch = tokens, labels, canvas, scored
        tokens, labels, canvas, scored = (x[shard].to(self.device) for x in batch)
        smooth = model(*self.model.inputs(self.transformer, canvas, labels), scored)
        # eq. 7: minus the mean log-likelihood of the true tokens, given corrupted ones. A batch of
        # almost blank canvases may have no substituted token: its loss is 0, not NaN.
        logits = smooth.logits.float()  # (M, K) of the M scored positions
        auxiliary = F.cross_entropy(logits, tokens[scored], **SMOOTHED) / count
        loss = auxiliary + self.RECONSTRUCTION * getattr(smooth, "reconstruction", 0.0)
        return {"loss": loss, "auxiliary": auxiliary.detach()}


@torch.no_grad()
def tokenize(tokenizer: VQTokenizer, images: ImageSet) -> Tensor:
    """All images as tokens, int16 or int32 (V, M, N); V = 2 (plain, mirrored) if the set flips."""
    device = next(tokenizer.parameters()).device
    small = torch.int16 if tokenizer.num_codes <= 2**15 else torch.int32
    views = []
    for flip in (False, True) if images.flip else (False,):
        tokens = []
        for pixels in images.batches("tokenize"):
            pixels = pixels.flip(-1) if flip else pixels
            tokens.append(tokenizer.encode(pixels.to(device)).cpu().to(small))
        views.append(torch.cat(tokens))
    return torch.stack(views)
