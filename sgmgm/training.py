"""Training: one loop for every model of the course.

`fit` knows nothing of what it trains; a *task* (at the end of this file) holds the model, the
data and the loss. All randomness of step k depends on (seed, k) alone, so a run that was
stopped and resumed ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from .classifier import Classifier, feature_distance
from .datasets import ImageSet, augment
from .errors import CheckpointError, InputError, check_choice, check_count, is_finite
from .fast import has_bf16
from .files import check_writable, clear_partials, write_json
from .hub import read_tensors, save_tensors
from .masking import corrupt, drop_labels, random_mask
from .processes import in_turn
from .tokenizer import VQTokenizer
from .transformer import MaskedTransformer


@dataclass
class Recipe:
    """How long and how fast to train."""

    steps: int
    batch_size: int = 64  # over all processes together
    learning_rate: float = 1e-3  # reached after `warmup` steps, then a cosine down to 1 %
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, which are the ones kept
    bf16: bool = True  # autocast matrix products; norms and losses stay in float32

    def __post_init__(self):
        self.betas = tuple(self.betas)
        check_count("steps", self.steps, most=10**9)
        check_count("batch_size", self.batch_size, most=10**6)
        check_count("warmup", self.warmup, least=0, most=10**9)
        numbers = all(map(is_finite, (self.learning_rate, self.clip, self.ema)))
        if not (numbers and self.learning_rate > 0 and self.clip > 0 and 0 <= self.ema < 1):
            raise InputError(
                "learning_rate and clip must be above 0 and ema in [0, 1), not "
                f"{self.learning_rate!r}, {self.clip!r} and {self.ema!r}."
            )

    def rate(self, step: int) -> float:
        """Learning rate of step 0 <= step < steps."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / self.steps))


SAVE_SECONDS = 60  # how often a checkpoint is written: what a power cut can cost


def fit(
    task,
    recipe: Recipe,
    folder: str | Path,
    seed: int = 0,
    device: str | None = None,
    about: dict | None = None,
    judge: Callable[[nn.Module], dict] | None = None,
) -> dict:
    """Train `task.model`, or go on where an earlier run stopped, and keep it in `folder`.

    Writes `model.safetensors`, `config.json` (averaged weights) and `training.json` (the returned
    report); while it runs, `training.safetensors` holds the state to resume from. Under
    `accelerate launch` the batch is split over the processes.

    Args:
        seed: all randomness follows from it, 0 or more.
        about: what else tells this run from others (JSON), for the report.
        judge: scores the finished model; what it returns joins the report.

    Returns:
        {"recipe", "seed", "seconds", "images_per_second", "device", "history"} and the above.

    Raises:
        CheckpointError: the folder holds an unfinished run with other settings, or a damaged one.
        InputError: no such device, or the loss is no longer finite.
    """
    folder, where = Path(folder), check_device(device or default_device())
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        # accelerate keeps precision and device for the whole process; another run may want others
        AcceleratorState._reset_state(reset_partial_state=True)
    half = recipe.bf16 and has_bf16(where.type)
    accelerator = Accelerator(mixed_precision="bf16" if half else "no", cpu=where.type == "cpu")
    model = task.model.to(accelerator.device).train()
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), recipe.learning_rate, recipe.betas, fused=True
    )
    identity = plain({"recipe": asdict(recipe), "seed": seed} | (about or {}))
    report = identity | {"step": 0, "seconds": 0.0, "history": []}
    if recipe.batch_size % accelerator.num_processes:
        raise InputError(
            f"{accelerator.num_processes} processes cannot share a batch of {recipe.batch_size} "
            "evenly: start another number of them."
        )
    state = folder / "training.safetensors"
    check_writable(state)
    if accelerator.is_main_process:
        clear_partials(folder)
    if state.exists():
        report = resume(state, identity, model, average, optimizer, task)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    task.to(accelerator.device)
    main = accelerator.is_main_process
    progress = tqdm(
        total=recipe.steps,
        initial=report["step"],
        desc=f"train {task.name}",
        mininterval=1.0,
        **({} if main else {"disable": True}),  # said outright, it would overrule TQDM_DISABLE
    )
    begun = saved = time.perf_counter()
    first, earlier = report["step"], report["seconds"]
    log_every = max(1, recipe.steps // 100)
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        # The whole batch's randomness is drawn on every process, then each takes its part: the
        # result does not depend on the number of processes.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed((seed * 1_000_003 + step) * 64 + accelerator.process_index)
        rows = batch_rows(task.size, recipe.batch_size, step, seed)
        part = slice(accelerator.process_index, None, accelerator.num_processes)
        with accelerator.autocast():
            losses = task.losses(wrapped, rows, part, generator)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip)
        optimizer.step()
        task.after_step(step, recipe.steps, accelerator, generator)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        move_average(average, model.state_dict(), decay)
        progress.update()
        now = time.perf_counter()
        if step % log_every == 0 or step == recipe.steps - 1:
            means = {k: float(accelerator.reduce(v.detach(), "mean")) for k, v in losses.items()}
            report["history"].append({"step": step + 1} | means)
            done = step + 1 - first
            speed = done * recipe.batch_size / (now - begun)
            progress.set_postfix_str(
                f"loss {means['loss']:.3f}, {speed:.0f} images/s", refresh=False
            )
            if not math.isfinite(means["loss"]):
                raise InputError(
                    f"the loss became {means['loss']} at step {step + 1}; lower the learning rate."
                )
        if main and now - saved > SAVE_SECONDS:
            report |= {"step": step + 1, "seconds": earlier + now - begun}
            save_state(state, report, model, average, optimizer, task)
            saved = now
    progress.close()
    report["step"], report["seconds"] = recipe.steps, earlier + time.perf_counter() - begun
    report["images_per_second"] = recipe.steps * recipe.batch_size / report["seconds"]
    report["device"] = describe_device(accelerator.device)
    model.load_state_dict(average)
    task.finish()
    model.eval()
    report |= judge(model) if judge else {}
    if main:
        model.save_pretrained(folder)
        write_json(folder / "training.json", report)
        state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return report


def default_device() -> str:
    """The best device here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str | torch.device) -> torch.device:
    """The device of this name; InputError unless torch can compute on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception:  # torch raises errors of many kinds here
        raise InputError(f"no device {str(name)!r} here: try {default_device()!r}.") from None
    return device


def describe_device(device: torch.device) -> str:
    """A device in words, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices only: biases and norms are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def batch_rows(size: int, batch: int, step: int, seed: int) -> Tensor:
    """Which examples step `step` sees, int64 (batch,): every epoch is a fresh permutation."""
    rows, position = [], step * batch
    while batch > 0:
        epoch, offset = divmod(position, size)
        order = _permutation(size, seed * 1_000_003 + epoch)
        rows.append(order[offset : offset + batch])
        batch -= len(rows[-1])
        position += len(rows[-1])
    return torch.cat(rows)


_last_permutation: dict = {}


def _permutation(size: int, seed: int) -> Tensor:
    if _last_permutation.get("key") != (size, seed):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(size, generator=generator)
        _last_permutation.update(key=(size, seed), order=order)
    return _last_permutation["order"]


@torch.no_grad()
def move_average(average: dict, weights: dict, decay: float) -> None:
    """average <- decay average + (1 - decay) weights; whole numbers are copied."""
    floats = [k for k in average if average[k].is_floating_point()]
    torch._foreach_lerp_([average[k] for k in floats], [weights[k] for k in floats], 1 - decay)
    for key in average.keys() - set(floats):
        average[key].copy_(weights[key])


def save_state(path: Path, report: dict, model, average: dict, optimizer, task) -> None:
    """Everything a run needs to go on, as one safetensors file with the report in its header."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    tensors |= {f"optimizer.{i}.{k}": v for i, s in moments.items() for k, v in s.items()}
    tensors |= {f"task.{k}": v for k, v in task.state.items()}
    save_tensors(path, tensors, {"report": json.dumps(report)})


def resume(path: Path, identity: dict, model, average: dict, optimizer, task) -> dict:
    """Load what `save_state` wrote into the given objects; returns its report."""
    try:
        tensors, notes = read_tensors(path)
        report = json.loads(notes["report"])
        other = [key for key in identity if report[key] != identity[key]]
    except (CheckpointError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: delete it to start afresh.") from None
    if other:
        raise CheckpointError(
            f"{path} belongs to a run with another {', '.join(other)}; delete it or choose "
            "another folder."
        )

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        model.load_state_dict(part("model."))
        for key, value in part("average.").items():
            average[key].copy_(value)
        moments: dict = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{path} belongs to a model of other sizes: {reason}.") from None
    task.state |= part("task.")
    return report


def plain(data: dict) -> dict:
    """A dict as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(data))


class Task:
    """What `fit` trains: a model, `size` examples and a loss.

    `losses(model, rows, part, generator)` gets the global batch's example numbers, this process'
    slice of them and a generator for whatever is drawn per example; it returns named scalars of
    which "loss" is minimised, and whose means over all processes are those of the whole batch.
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

    def losses(self, model, rows: Tensor, part: slice, generator) -> dict[str, Tensor]:
        raise NotImplementedError

    def after_step(self, step: int, steps: int, accelerator, generator) -> None:
        """Called after every optimizer step."""

    def finish(self) -> None:
        """Called once, before the model is kept."""


class ClassifierTask(Task):
    """Cross-entropy with label smoothing on flipped and shifted images."""

    name = "classifier"

    def __init__(self, model: Classifier, images: ImageSet):
        super().__init__()
        self.model, self.images, self.size = model, images, len(images)

    def losses(self, model, rows, part, generator):
        images, labels = self.images.batch(rows)
        images = augment(images, generator, flip=self.images.flip, shift=4)
        images, labels = images[part].to(self.device), labels[part].to(self.device)
        logits = model(images).logits
        return {
            "loss": F.cross_entropy(logits, labels, label_smoothing=0.1),
            "accuracy": (logits.argmax(1) == labels).float().mean(),
        }


class Discriminator(nn.Module):
    """Judges overlapping patches, logits (B, 1, h, w) (PatchGAN, Isola et al. 2017)."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images * 2 - 1)


class ReverseGradient(torch.autograd.Function):
    """Identity forward, minus `weight` x gradient backward (Ganin & Lempitsky 2015).

    It lets one loss and one optimizer train a discriminator and its opponent together.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return -ctx.weight * gradient, None


class TokenizerTask(Task):
    """L1 + L2 + feature distance + codebook and commitment loss, with dead-code revival.

    Args:
        classifier: gives the feature distance; None leaves it out.
        feature_weight, adversarial_weight: weights of those terms; 0 leaves them out.
    """

    name = "tokenizer"
    REVIVE_EVERY = 20  # steps
    DEAD_AFTER = 50  # steps without being chosen
    FEATURE_SHARE = 4  # the feature distance looks at one image in so many

    def __init__(
        self,
        model: VQTokenizer,
        images: ImageSet,
        classifier: Classifier | None = None,
        feature_weight: float = 0.1,
        adversarial_weight: float = 0.0,
    ):
        super().__init__()
        self.model, self.images, self.size = model, images, len(images)
        self.classifier = classifier.eval().requires_grad_(False) if classifier else None
        self.feature_weight, self.adversarial_weight = feature_weight, adversarial_weight
        self.state["age"] = torch.full((model.num_codes,), self.DEAD_AFTER + 1)
        if adversarial_weight:
            # a child of the model, so that the one optimizer and checkpoint hold it too
            model.discriminator = Discriminator()

    def to(self, device):
        super().to(device)
        if self.classifier:
            self.classifier.to(device)

    def losses(self, model, rows, part, generator):
        images, _ = self.images.batch(rows)
        images = augment(images, generator, flip=self.images.flip)[part].to(self.device)
        reconstruction, self.quantized = model(images)
        reconstruction = reconstruction.float()
        difference = reconstruction - images
        losses = {
            "l1": difference.abs().mean(),
            "l2": difference.square().mean(),
            "codebook": self.quantized.loss,
        }
        if self.classifier and self.feature_weight:
            # a quarter of the batch tells the same on average, for a quarter of the time
            some = slice(-(-len(images) // self.FEATURE_SHARE))
            distance = feature_distance(self.classifier, images[some], reconstruction[some])
            losses["feature"] = self.feature_weight * distance
        if self.adversarial_weight:
            judge = self.model.discriminator
            fooled = ReverseGradient.apply(reconstruction, self.adversarial_weight)
            losses["judge"] = F.softplus(-judge(images)).mean() + F.softplus(judge(fooled)).mean()
        return {"loss": sum(losses.values())} | losses

    @torch.no_grad()
    def after_step(self, step, steps, accelerator, generator):
        quantizer, age = self.model.quantize, self.state["age"]
        chosen = torch.bincount(self.quantized.tokens.flatten(), minlength=len(age))
        age += 1
        age[accelerator.reduce(chosen, "sum") > 0] = 0
        # every code starts as dead, so step 0 places the codebook on real encoder outputs;
        # the last fifth of training leaves the codes in peace
        if (step == 0 or step % self.REVIVE_EVERY == 0) and step < 0.8 * steps:
            dead = age > self.DEAD_AFTER if step else torch.ones_like(age, dtype=torch.bool)
            quantizer.revive(dead, in_turn(self.quantized.encoded), generator)
            broadcast(quantizer.embedding.weight.data)
            age[dead] = 0

    def finish(self):
        if self.adversarial_weight:
            del self.model.discriminator


class TransformerTask(Task):
    """Cross-entropy on the masked positions (paper, eq. 1), label smoothing 0.1.

    Args:
        tokens: int16 or int64 (V, M, N): V views (flips) of M images.
        labels: int64 (M,).
        class_dropout: share of images trained without their class, for classifier-free guidance.
    """

    name = "transformer"
    LABEL_SMOOTHING = 0.1

    def __init__(
        self,
        model: MaskedTransformer,
        tokens: Tensor,
        labels: Tensor,
        class_dropout: float = 0.1,
        schedule: str = "cosine",
    ):
        super().__init__()
        self.model, self.tokens, self.labels, self.size = model, tokens, labels, len(labels)
        self.class_dropout, self.schedule = class_dropout, schedule

    def examples(self, rows: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, N), one random view of each image, and labels (B,)."""
        view = torch.randint(len(self.tokens), rows.shape, generator=generator)
        return self.tokens[view, rows].long(), self.labels[rows]

    def losses(self, model, rows, part, generator):
        tokens, labels = self.examples(rows, generator)
        mask = random_mask(*tokens.shape, generator, self.schedule)
        labels = drop_labels(labels, self.class_dropout, self.model.config.num_classes, generator)
        hidden = mask.sum().item() / (part.step or 1)  # of the whole batch, over the processes
        tokens, labels, mask = (x[part].to(self.device) for x in (tokens, labels, mask))
        canvas = torch.where(mask, self.model.config.mask_id, tokens)
        logits = model(canvas, labels, mask).logits.float()
        sums = {"label_smoothing": self.LABEL_SMOOTHING, "reduction": "sum"}
        loss = F.cross_entropy(logits, tokens[mask], **sums) / hidden
        nll = F.cross_entropy(logits.detach(), tokens[mask], reduction="sum") / hidden
        return {"loss": loss, "nll": nll}


def uniform_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """Any code with equal chance."""
    return torch.randint(task.model_config.codebook_size, tokens.shape, generator=generator)


def model_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """Drawn from the generator's own prediction of a blank canvas of that class."""
    chance = torch.rand(tokens.shape, generator=generator)[..., None]
    return (
        torch.searchsorted(task.blank_cumulative[labels], chance)
        .squeeze(-1)
        .clamp_max(task.model_config.codebook_size - 1)
    )


def neighbour_tokens(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """One of the 8 codes that are nearest in the codebook."""
    which = torch.randint(task.neighbours.shape[1], tokens.shape, generator=generator)
    return task.neighbours[tokens, which]


WRONG_TOKENS = {"uniform": uniform_tokens, "model": model_tokens, "neighbour": neighbour_tokens}
LOSS_ON = ("substituted", "masked")


class SmootherTask(Task):
    """The auxiliary task that makes a smoother (paper, eq. 7), on a frozen transformer.

    A share of the visible tokens is replaced by wrong ones; from that the smoother must predict
    the truth, so it learns to distrust fine detail. With rate 0 and the loss on masked positions
    it is the control arm: eq. 1 again.

    Args:
        model: a smoother of `transformer`, see `smoothing.SMOOTHERS`.
        tokens, labels, as for `TransformerTask`.
        codebook: code vectors (K, D), for "neighbour".
        rate: share of the visible tokens to replace.
        wrong: a name in `WRONG_TOKENS`.
        loss_on: "masked" positions (paper, eq. 7) or "substituted" ones (the released code).
    """

    name = "smoother"
    LABEL_SMOOTHING = 0.1
    RECONSTRUCTION = 0.1  # weight of TOAST's reconstruction loss (appendix C)

    def __init__(
        self,
        model: nn.Module,
        transformer: MaskedTransformer,
        tokens: Tensor,
        labels: Tensor,
        codebook: Tensor,
        rate: float = 0.3,
        wrong: str = "uniform",
        loss_on: str = "substituted",
    ):
        super().__init__()
        check_choice("wrong tokens", wrong, WRONG_TOKENS)
        check_choice("loss", loss_on, LOSS_ON)
        if loss_on == "substituted" and not 0 < rate <= 1:
            raise InputError(f"a loss on substituted tokens needs a rate in (0, 1], not {rate!r}.")
        self.model, self.transformer = model, transformer.eval().requires_grad_(False)
        self.tokens, self.labels, self.size = tokens, labels, len(labels)
        self.rate, self.wrong, self.loss_on = rate, WRONG_TOKENS[wrong], loss_on
        self.model_config = c = transformer.config
        distance = torch.cdist(codebook.float(), codebook.float()).fill_diagonal_(math.inf)
        self.neighbours = distance.topk(min(8, len(codebook) - 1), largest=False).indices
        with torch.no_grad():
            canvas = transformer.blank.expand(c.num_classes, -1)
            logits = transformer(canvas, torch.arange(c.num_classes, device=canvas.device)).logits
        self.blank_cumulative = logits.float().softmax(-1).cumsum(-1).cpu()  # (C, N, K)

    examples = TransformerTask.examples

    def to(self, device):
        super().to(device)
        self.transformer.to(device)

    def losses(self, model, rows, part, generator):
        tokens, labels = self.examples(rows, generator)
        mask = random_mask(*tokens.shape, generator)
        wrong = self.wrong(tokens, labels, generator, self)
        corrupted, replaced = corrupt(tokens, mask, self.rate, wrong, generator)
        canvas = torch.where(mask, self.model_config.mask_id, corrupted)
        judged = replaced if self.loss_on == "substituted" else mask
        count = max(1, judged.sum().item()) / (part.step or 1)  # see `TransformerTask`
        tokens, labels, canvas, judged = (
            x[part].to(self.device) for x in (tokens, labels, canvas, judged)
        )
        smooth = model(*self.model.inputs(self.transformer, canvas, labels), judged)
        # a batch of almost blank canvases may have nothing to judge: its loss is 0, not NaN
        summed = F.cross_entropy(
            smooth.logits.float(),
            tokens[judged],
            label_smoothing=self.LABEL_SMOOTHING,
            reduction="sum",
        )
        auxiliary = summed / count
        return {
            "loss": auxiliary + self.RECONSTRUCTION * getattr(smooth, "reconstruction", 0.0),
            "auxiliary": auxiliary.detach(),
        }


@torch.no_grad()
def tokenize(tokenizer: VQTokenizer, images: ImageSet, batch: int = 250) -> Tensor:
    """All images as tokens, int16 (V, M, N); V = 2 (plain, mirrored) where flips make sense."""
    device = next(tokenizer.parameters()).device
    views = []
    for flip in (False, True) if images.flip else (False,):
        rows = []
        for start in tqdm(range(0, len(images), batch), desc="tokenize", leave=False):
            pixels, _ = images.batch(slice(start, start + batch))
            pixels = pixels.flip(-1) if flip else pixels
            rows.append(tokenizer.encode(pixels.to(device)).cpu().short())
        views.append(torch.cat(rows))
    return torch.stack(views)
