"""Training: one loop for every model of the course.

`fit` knows nothing of what it trains; a *task* (see `tasks`) holds the model, the data and the
loss. All randomness of step k depends on (seed, k) alone, so a run that was stopped and resumed
ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from .utils.devices import check_device, default_device, describe_device, has_bf16
from .utils.errors import CheckpointError, InputError, check_count, is_finite
from .utils.files import canonical, check_writable, clear_partials, read_json, write_json
from .utils.hub import read_tensors, save_tensors


@dataclass
class TrainingConfig:
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
    config: TrainingConfig,
    folder: str | Path,
    seed: int = 0,
    device: str | None = None,
    metadata: dict | None = None,
    evaluate: Callable[[nn.Module], dict] | None = None,
) -> dict:
    """Train `task.model`, or go on where an earlier run stopped, and keep it in `folder`.

    Writes `model.safetensors`, `config.json` (averaged weights) and `training.json` (the returned
    report); while it runs, `training.safetensors` holds the state to resume from. Under
    `accelerate launch` the batch is split over the processes.

    Args:
        seed: all randomness follows from it, 0 or more.
        metadata: what else tells this run from others (JSON), for the report.
        evaluate: scores the finished model; what it returns joins the report.

    Returns:
        {"training", "seed", "seconds", "images_per_second", "device", "history"} and the above.

    Raises:
        CheckpointError: the folder holds an unfinished run with other settings, or a damaged one.
        InputError: no such device, nothing to train, or the loss is no longer finite.
    """
    folder, where = Path(folder), check_device(device or default_device())
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        # accelerate keeps precision and device for the whole process; another run may want others
        AcceleratorState._reset_state(reset_partial_state=True)
    half = config.bf16 and has_bf16(where.type)
    accelerator = Accelerator(mixed_precision="bf16" if half else "no", cpu=where.type == "cpu")
    model = task.model.to(accelerator.device).train()
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"all weights of this {task.name} are frozen: load it anew to train it.")
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), config.learning_rate, config.betas, fused=True
    )
    identity = plain({"training": asdict(config), "seed": seed} | (metadata or {}))
    report = identity | {"step": 0, "seconds": 0.0, "history": []}
    if config.batch_size % accelerator.num_processes:
        raise InputError(
            f"{accelerator.num_processes} processes cannot share a batch of {config.batch_size} "
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
        total=config.steps,
        initial=report["step"],
        desc=f"train {task.name}",
        mininterval=1.0,
        **({} if main else {"disable": True}),  # said outright, it would overrule TQDM_DISABLE
    )
    begun = saved = time.perf_counter()
    first, earlier = report["step"], report["seconds"]
    log_every = max(1, config.steps // 100)
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        # The whole batch's randomness is drawn on every process, then each takes its part: the
        # result does not depend on the number of processes.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed((seed * 1_000_003 + step) * 64 + accelerator.process_index)
        indices = batch_indices(task.size, config.batch_size, step, seed)
        shard = slice(accelerator.process_index, None, accelerator.num_processes)
        with accelerator.autocast():
            losses = task.losses(wrapped, indices, shard, generator)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        optimizer.step()
        task.after_step(step, config.steps, accelerator, generator)
        decay = min(config.ema, (1 + step) / (10 + step))
        move_average(average, model.state_dict(), decay)
        progress.update()
        now = time.perf_counter()
        if step % log_every == 0 or step == config.steps - 1:
            means = {k: float(accelerator.reduce(v.detach(), "mean")) for k, v in losses.items()}
            report["history"].append({"step": step + 1} | means)
            done = step + 1 - first
            speed = done * config.batch_size / (now - begun)
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
    report["step"], report["seconds"] = config.steps, earlier + time.perf_counter() - begun
    report["images_per_second"] = config.steps * config.batch_size / report["seconds"]
    report["device"] = describe_device(accelerator.device)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # autocast was for training
    model.load_state_dict(average)
    task.finish()
    model.eval()
    report |= evaluate(model) if evaluate else {}
    if main:
        model.save_pretrained(folder)
        write_json(folder / "training.json", report)
        state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return report


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices only: biases and norms are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


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
        report = _renamed(json.loads(notes["report"]))
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


def read_report(place: str | Path) -> dict:
    """The report of a trained part, from its folder's `training.json`.

    Earlier versions called the entry "training" "recipe".
    """
    report = read_json(Path(place) / "training.json")
    return _renamed(report)


def _renamed(report):
    if not isinstance(report, dict):
        return report
    names = {"recipe": "training"}
    read = {"start": _renamed, "dataset": canonical}  # a folder's path was relative once
    report = {names.get(k, k): read[k](v) if k in read else v for k, v in report.items()}
    if "dataset" in report:  # earlier versions mirrored every set but this one
        report.setdefault("mirror", report["dataset"] != "fashion-mnist")
    return report


def plain(data: dict) -> dict:
    """A dict as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(data))
