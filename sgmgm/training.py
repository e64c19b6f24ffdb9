"""Training: one loop for every model of the course.

`fit` knows nothing of what it trains; a *task* (see `tasks`) holds the model, the data and the
loss. All randomness of step k depends on (seed, k) alone, so a run that was stopped and resumed
ends with the same weights as one that was not.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .utils.devices import check_device, default_device, describe_device, has_bf16
from .utils.distributed import meet
from .utils.errors import (
    CheckpointError,
    InputError,
    check_choice,
    check_count,
    is_finite,
    listed,
    reason,
)
from .utils.files import canonical, check_writable, clear_partials, read_json, write_json
from .utils.hub import read_tensors, save_tensors


@dataclass
class TrainingConfig:
    """How long and how fast to train."""

    steps: int
    batch_size: int = 64  # over all processes together
    learning_rate: float = 1e-3  # reached after `warmup` steps, falls to 1 % by `schedule`
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, which are the ones kept
    muon: float = 0.0  # learning rate of `Muon` for a transformer's matrices; 0: AdamW for all
    bf16: bool = True  # autocast matrix products; norms and losses stay in float32
    schedule: str = "cosine"  # a name in `FALLS`

    def __post_init__(self):
        self.betas = tuple(self.betas)
        self.steps = check_count("steps", self.steps, most=10**9)
        self.batch_size = check_count("batch_size", self.batch_size, most=10**6)
        self.warmup = check_count("warmup", self.warmup, least=0, most=10**9)
        check_choice("schedule", self.schedule, FALLS)
        if not (is_finite(self.muon) and self.muon >= 0):
            raise InputError(f"muon must be a learning rate, or 0 for none, not {self.muon!r}.")
        numbers = all(map(is_finite, (self.learning_rate, self.clip, self.ema)))
        if not (numbers and self.learning_rate > 0 and self.clip > 0 and 0 <= self.ema < 1):
            found = f"{self.learning_rate!r}, {self.clip!r} and {self.ema!r}"
            wanted = "learning_rate and clip must be above 0 and ema in [0, 1)"
            raise InputError(f"{wanted}, not {found}.")

    def lasting(self, steps: int | None, schedule: str = "cosine") -> "TrainingConfig":
        """The same for another number of steps; with fewer of them, the warm-up is shorter too.

        With "wsd" the warm-up is a quarter, whatever the steps: it is over before they are chosen.
        """
        other = replace(self, steps=self.steps if steps is None else steps, schedule=schedule)
        shorter = self.warmup // 4 if schedule == "wsd" else self.warmup * other.steps // self.steps
        return replace(other, warmup=min(self.warmup, shorter))

    def rate(self, step: int) -> float:
        """Learning rate of step 0 <= step < steps."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        falling = FALLS[self.schedule] * self.steps  # so many steps, the last ones
        since = max(0.0, step - (self.steps - falling))
        return self.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * since / falling))


# The share of the steps in which the learning rate falls. "cosine": Loshchilov & Hutter 2017,
# arXiv 1608.03983; "wsd" (warm-up, stable, decay): Hu et al. 2024, arXiv 2404.06395.
FALLS = {"cosine": 1.0, "wsd": 0.2}
UNDECIDED = 10**9  # the steps of a training by the clock until their number is chosen
CHOICE = 0.7  # of the time is over when it is: before the rate falls
SAVE_SECONDS = 60  # how often a checkpoint is written: what a power cut can cost


def fit(
    task, config: TrainingConfig, folder: str | Path, seed: int = 0, device: str | None = None,
    metadata: dict | None = None, evaluate: Callable[[nn.Module], dict] | None = None,
    minutes: float | None = None,
) -> dict:  # fmt: skip
    """Train `task.model`, or go on where an earlier run stopped, and keep it in `folder`.

    Writes `model.safetensors`, `config.json` (averaged weights) and `training.json` (the returned
    report); while it runs, `training.safetensors` holds the state to resume from. Under
    `accelerate launch` the batch is split over the processes.

    Args:
        seed: all randomness follows from it, 0 or more.
        metadata: what else tells this run from others (JSON), for the report.
        evaluate: scores the finished model; what it returns joins the report.
        minutes: how long the steps may take, in place of `config.steps`, with the schedule "wsd".
            The report holds the steps chosen, which give the same weights when asked for.

    Returns:
        {"training", "seed", "seconds", "images_per_second", "device", "history"} and the above.

    Raises:
        CheckpointError: the folder holds an unfinished run with other settings, or a damaged one.
        InputError: no such device, nothing to train, or the loss is no longer finite.
    """
    seed = check_count("seed", seed, least=0)
    state = Path(folder) / "training.safetensors"
    check_writable(state)
    metadata = (metadata or {}) | ({} if minutes is None else {"minutes": minutes})
    if minutes is not None and not (is_finite(minutes) and 0 < minutes <= 10**6):
        raise InputError(f"minutes must be above 0, not {minutes!r}.")
    clock = None if minutes is None else Clock(60 * minutes)
    run = Run(task, config.lasting(UNDECIDED, "wsd") if clock else config, seed, device)
    main, reduce = run.accelerator.is_main_process, run.accelerator.reduce
    if main:
        clear_partials(folder)
    if state.exists():
        report = run.resume(state, metadata)
    else:
        report = run.identity(metadata) | {"step": 0, "seconds": 0.0, "history": []}
    first, earlier = report["step"], report["seconds"]
    expected = run.config.steps
    undecided = expected == UNDECIDED
    if clock and main:
        tqdm.write(f"train {task.name}: {_plan(expected, minutes)}", file=sys.stderr)
    quiet = {} if main else {"disable": True}  # disable=False would overrule TQDM_DISABLE
    total = None if undecided else expected
    about: dict = {"total": total, "initial": first, "desc": f"train {task.name}"}
    progress = tqdm(**about, mininterval=1.0, **quiet)
    begun = saved = time.perf_counter()
    done = first
    while done < run.config.steps:
        losses = run.step(done)
        done += 1
        now = time.perf_counter()
        report |= {"step": done, "seconds": earlier + now - begun}
        chosen = False
        if clock and undecided:
            expected, chosen = run.first_says(*clock.steps(done, report["seconds"]))
            progress.total = expected
        if chosen:
            run.config.steps, undecided = expected, False
            report |= run.identity(metadata)
        progress.update()
        last = done == run.config.steps
        if (done - 1) % max(1, expected // 100) == 0 or last:
            # the losses of the whole batch
            means = {k: float(reduce(v.detach(), "mean")) for k, v in losses.items()}
            report["history"].append({"step": done} | means)
            speed = (done - first) * config.batch_size / (now - begun)
            loss = means["loss"]
            progress.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} images/s", refresh=False)
            if not math.isfinite(loss):
                at = f"at step {done}"
                raise InputError(f"the loss became {loss} {at}; lower the learning rate.")
        if main and (last or chosen or now - saved > SAVE_SECONDS):
            run.save(state, report)
            saved = now
        if main and chosen:
            tqdm.write(f"train {task.name}: {_plan(expected, minutes)}", file=sys.stderr)
    progress.close()
    report |= {"step": done, "seconds": earlier + time.perf_counter() - begun}
    report["images_per_second"] = done * config.batch_size / report["seconds"]
    report["device"] = describe_device(run.accelerator.device)
    run.accelerator.unwrap_model(run.wrapped, keep_fp32_wrapper=False)  # autocast's wrapper
    run.model.load_state_dict(run.average)
    model = run.model.eval()
    if main:
        model.save_pretrained(folder)  # whatever happens while it is evaluated
    report |= evaluate(model) if evaluate else {}
    if main:
        write_json(Path(folder) / "training.json", report)
        state.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    return report


def _plan(steps: int, minutes: float | None) -> str:
    """What a training by the clock says of its length."""
    if steps == UNDECIDED:
        over = f"when {CHOICE:.0%} of the time is over"
        said = f"{minutes:g} minutes; loading and scoring come on top."
        return f"{said} The number of steps is chosen {over}."
    return (
        f"{steps} steps in about {minutes:g} minutes. `--steps {steps} --schedule wsd` repeats it."
    )


class Clock:
    """How many steps a training of so many seconds has.

    A machine may slow down as it gets warm. So the number is chosen late, from the latest speed.
    """

    def __init__(self, seconds: float):
        self.seconds, self.before = seconds, (0, 0.0)

    def steps(self, done: int, now: float) -> tuple[int, bool]:
        """The number expected when `done` of them took `now` seconds, and whether it is final."""
        share = now / self.seconds
        if share < CHOICE / 2:
            self.before = done, now
        then, at = self.before if share >= CHOICE else (0, 0.0)
        left = max(0.0, self.seconds - now) * (done - then) / (now - at)
        rest = FALLS["wsd"] * done / (1 - FALLS["wsd"])  # of no fewer has the rate been right
        return min(UNDECIDED - 1, done + math.ceil(max(left, rest))), share >= CHOICE


class Run:
    """One training: the model, its average, the optimizer, and what a step does to them."""

    def __init__(self, task, config: TrainingConfig, seed: int, device: str | None):
        from accelerate import Accelerator, PartialState  # a second to import
        from accelerate.state import AcceleratorState

        where = check_device(device or default_device())
        meet(where)
        if AcceleratorState._shared_state and PartialState().num_processes == 1:
            # accelerate keeps precision and device for the whole process; this run may want others
            AcceleratorState._reset_state(reset_partial_state=True)
        precision = "bf16" if config.bf16 and has_bf16(where.type) else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=where.type == "cpu")
        count, batch = self.accelerator.num_processes, config.batch_size
        if batch % count:
            raise InputError(f"{count} processes cannot share a batch of {batch} evenly.")
        self.task, self.config, self.seed = task, config, seed
        self.model = task.model.to(self.accelerator.device).train()
        task.to(self.accelerator.device)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise InputError(f"all weights of this {task.name} are frozen: load it anew.")
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        groups = parameter_groups(self.model, config.weight_decay, config.muon)
        optimizer = Muon(groups, config.learning_rate, config.betas, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)

    def step(self, number: int) -> dict[str, Tensor]:
        """One step of the optimizer on batch `number`; its losses, those of this process' shard."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(number)
            if group["muon"]:
                group["lr"] *= config.muon / config.learning_rate
        # Every process samples the randomness of the whole batch, then takes its shard: the result
        # does not depend on the number of processes.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        torch.manual_seed((self.seed * 1_000_003 + number) * 64 + accelerator.process_index)
        indices = batch_indices(self.task.size, config.batch_size, number, self.seed)
        shard = slice(accelerator.process_index, None, accelerator.num_processes)
        with accelerator.autocast():
            losses = self.task.losses(self.wrapped, indices, shard, generator)
        self.optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip)
        self.optimizer.step()
        self.task.after_step(number, config.steps, accelerator, generator)
        decay = min(config.ema, (1 + number) / (10 + number))
        move_average(self.average, self.model.state_dict(), decay)
        return losses

    def first_says(self, *numbers: int) -> list:
        """The first process' numbers, in all processes."""
        from accelerate.utils import broadcast

        if self.accelerator.num_processes == 1:
            return list(numbers)  # a GPU need not wait
        return broadcast(torch.tensor(numbers, device=self.accelerator.device)).tolist()

    def identity(self, metadata: dict) -> dict:
        """What tells this run from others, as it comes back from a JSON file."""
        return plain({"training": asdict(self.config), "seed": self.seed} | metadata)

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step, but for the optimizer's moments."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        return tensors | {f"task.{k}": v for k, v in self.task.state.items()}

    def save(self, path: Path, report: dict) -> None:
        """Everything a run needs to go on, as one safetensors file with the report in its header.

        InputError if the weights are no longer finite: the last good file stays.
        """
        tensors = self.tensors()
        if not all(v.isfinite().all() for v in tensors.values()):
            at = f"at step {report['step']}"
            raise InputError(f"the weights are no longer finite {at}; lower the learning rate.")
        moments = self.optimizer.state_dict()["state"]
        tensors |= {f"optimizer.{i}.{k}": v for i, s in moments.items() for k, v in s.items()}
        save_tensors(path, tensors, {"report": json.dumps(report)})

    def resume(self, path: Path, metadata: dict) -> dict:
        """Load what `save` wrote; returns its report."""
        try:
            tensors, notes = read_tensors(path)
            report = _renamed(json.loads(notes["report"]))
            if "minutes" in metadata and report.get("minutes") == metadata["minutes"]:
                self.config = replace(self.config, steps=report["training"]["steps"])
            identity = self.identity(metadata)
            other = [key for key in identity if report.get(key) != identity[key]]
        except (CheckpointError, InputError, KeyError, AttributeError, TypeError, ValueError):
            raise CheckpointError(f"{path} is damaged: delete it to start afresh.") from None
        if other:
            run = f"a run with another {listed(other)}"
            raise CheckpointError(f"{path} belongs to {run}; delete it or choose another folder.")
        try:
            moments: dict = {}
            for key in [key for key in tensors if key.startswith("optimizer.")]:
                _, index, name = key.split(".", 2)
                moments.setdefault(int(index), {})[name] = tensors.pop(key)
            live = self.tensors()
            want, have = ({k: tuple(v.shape) for k, v in each.items()} for each in (live, tensors))
            if unfit := sorted(k for k in want | have if want.get(k) != have.get(k)):
                raise ValueError(listed(unfit))
            with torch.no_grad():
                for key, value in tensors.items():
                    live[key].copy_(value)
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        except (RuntimeError, KeyError, ValueError) as error:
            why = reason(error)
            raise CheckpointError(f"{path} belongs to a model of other sizes: {why}.") from None
        return report


def parameter_groups(model: nn.Module, weight_decay: float, muon: float = 0.0) -> list[dict]:
    """Groups of weights for `Muon`: only matrices decay, biases and norms are left alone.

    With `muon`, the matrices of a transformer's layers are a group of their own; embeddings and
    head stay with AdamW. InputError if the model has no such layers.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    named = model.named_parameters() if muon else ()
    inner = {id(p) for n, p in named if n.startswith("transformer_layers.") and p.ndim == 2}
    if muon and not inner:
        raise InputError(f"Muon is for transformers; a {type(model).__name__} has muon=0.")
    groups: list[dict] = [
        {"params": [p for p in trained if p.ndim > 1 and id(p) not in inner]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in inner], "muon": True},
    ]
    return [{"weight_decay": weight_decay, "muon": False} | g for g in groups if g["params"]]


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T: five Newton-Schulz steps of degree five (Jordan 2024)."""
    x = matrix / matrix.norm().clamp_min(1e-7)
    x = x.T if len(x) > len(x.T) else x  # the smaller product
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
    return x.T if x.shape != matrix.shape else x


class Muon(torch.optim.AdamW):
    """AdamW, and Muon for the groups that ask for it (Jordan 2024, "Muon: an optimizer for hidden
    layers in neural networks").

    A matrix moves by its momentum, all of whose singular values are made one. `torch.optim.Muon`
    does that in bfloat16, which many CPUs only emulate.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"] if group["muon"] else ():
                if not (state := self.state[p]):  # AdamW wants a step in all that it loads
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
                momentum = state["momentum"]
                momentum.mul_(self.MOMENTUM).add_(p.grad)
                update = orthogonal(p.grad + self.MOMENTUM * momentum)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1, len(p) / p.shape[1]) ** 0.5)
                p.grad = None  # so AdamW leaves it alone
        return super().step(closure)


def batch_indices(size: int, batch: int, step: int, seed: int) -> Tensor:
    """Which examples step `step` sees, int64 (batch,): every epoch is a fresh permutation."""
    indices, position = [], step * batch
    while batch > 0:
        epoch, offset = divmod(position, size)
        order = _permutation(size, seed * 1_000_003 + epoch)
        indices.append(order[offset : offset + batch])
        batch -= len(indices[-1])
        position += len(indices[-1])
    return torch.cat(indices)


@lru_cache(1)
def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def move_average(average: dict, weights: dict, decay: float) -> None:
    """average <- decay average + (1 - decay) weights; whole numbers are copied."""
    floats = [k for k in average if average[k].is_floating_point()]
    torch._foreach_lerp_([average[k] for k in floats], [weights[k] for k in floats], 1 - decay)
    for key in average.keys() - set(floats):
        average[key].copy_(weights[key])


def read_report(place: str | Path) -> dict:
    """The report of a trained part, from its folder's `training.json`."""
    return _renamed(read_json(Path(place) / "training.json"))


def _renamed(report):
    """A report with the names of today: earlier versions called the entry "training" "recipe"."""
    if not isinstance(report, dict):
        return report
    names = {"recipe": "training"}
    read = {"start": _renamed, "dataset": canonical}  # a folder's path was relative once
    report = {names.get(k, k): read[k](v) if k in read else v for k, v in report.items()}
    if isinstance(report.get("training"), dict):
        report["training"].setdefault("muon", 0.0)
        report["training"].setdefault("schedule", "cosine")
    if "psnr" in report:  # a tokenizer's
        report.setdefault("feature_weight", 0.1)
    if "dataset" in report:  # earlier versions mirrored every set but this one
        report.setdefault("mirror", report["dataset"] != "fashion-mnist")
    return report


def plain(data: dict) -> dict:
    """A dict as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(data))
