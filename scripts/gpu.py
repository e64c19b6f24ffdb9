"""A few minutes on a borrowed GPU: tests, benchmark, trace, a CIFAR-10 generator, its scores.

`make gpu` (docs/gpu.md) runs the parts one after the other, each as a process of its own with a
time limit. Every part writes its result as soon as it has it; one that fails stops no other.
Only the standard library is imported here, so that a missing package can be named.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKENS = "build/cifar10-tokens.safetensors"  # CIFAR-10 in the shipped tokenizer's tokens
# what a copy of the project needs to hold for all parts
TRAVELS = ("Makefile", "pyproject.toml", "sgmgm", "scripts", "tests/__init__.py",
           "tests/test_cuda.py", "tests/test_fast.py", "tests/accelerated.py",
           "data/checkpoints/cifar10", TOKENS)  # fmt: skip
PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "huggingface_hub", "accelerate",
            "psutil", "tqdm", "PIL")  # fmt: skip
MORE = {"tests": ("pytest", "peft", "msgpack"), "benchmark": ("matplotlib",)}
PIPELINE = "cifar10-gpu"  # the folder of the new models
# of the minutes; what a part leaves over is the next one's
SHARES = {"tests": 0.18, "benchmark": 0.42, "trace": 0.08, "train": 0.2, "scores": 0.12}
# what is to be taken home
RESULTS = ("summary.json", "benchmark.json", "benchmark.png", "trace.json.gz", "transformer.tar",
           "smoother.tar", "scores.jsonl", "samples.png")  # fmt: skip
TOY_SECONDS = 120  # without a GPU, where most of the time goes into starting Python
BARS = {"images/s": 90, "share of peak": 0.45, "times eager": 8, "training's share of peak": 0.35}


def files() -> list[Path]:
    """The files of `TRAVELS` that are here, relative to the project's folder."""
    found = []
    for name in TRAVELS:
        whole = ROOT / name
        inside = sorted(whole.rglob("*")) if whole.is_dir() else [whole]
        found += [f for f in inside if f.is_file() and "__pycache__" not in f.parts]
    return [f.relative_to(ROOT) for f in found]


def why_not(part: str, gpu: bool) -> str | None:
    """Why a part cannot run here, in one sentence, or None."""
    wanted = (*PACKAGES, *MORE.get(part, ()))
    missing = [name for name in wanted if not importlib.util.find_spec(name)]
    if missing:
        return f"it needs {', '.join(missing)}, which this Python does not have."
    if part not in ("train", "scores") or not gpu:
        return None
    if not (ROOT / TOKENS).is_file():
        return f"{TOKENS} is not here: docs/gpu.md says how to make it."
    return None


def command(part: str, out: Path, gpu: bool, seconds: float) -> list[str]:
    """What Python is to run for a part: full size on a GPU, toy size without one."""
    if part == "tests":
        return ["-m", "pytest", "-v", "-rs", "-m", "cuda", "--noconftest", "-p",
                "no:cacheprovider", "tests/test_cuda.py"]  # fmt: skip
    if part == "benchmark":
        full = "imagenet256 --batch-sizes 64,256 --repeats 2"
        toy = "smoke --batch-sizes 1,4 --repeats 1 --steps 2 --device cpu"
        return ["-m", "scripts.benchmark", "--out", str(out / "benchmark.json"),
                "--preset", *(full if gpu else toy).split()]  # fmt: skip
    return ["-m", "scripts.gpu_parts", part, str(out), f"{seconds:.0f}"]


def work_folder(out: Path) -> Path:
    """Where the logs and `PIPELINE` are; what is to be taken home is in `out`."""
    return out.with_name(f"{out.name}-work")


def limited(arguments: list[str], log: Path, seconds: float) -> str:
    """Run Python with its output in `log`; returns "done", "failed" or "stopped"."""
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TQDM_DISABLE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    with open(log, "wb") as output:
        streams: dict = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, **streams
        )
        try:
            return "failed" if process.wait(max(1.0, seconds)) else "done"
        except subprocess.TimeoutExpired:
            if os.name == "posix":  # the compiler's processes, too
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            return "stopped"


def measured(out: Path) -> dict[str, float]:
    """The benchmark's figures that have a bar, as far as they are there."""
    path = out / "benchmark.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    found = []
    if record.get("batches"):
        last = record["batches"][-1]
        row = last[record["ways"][1]]
        found = [row["images_per_second"], row["share"], last["speedup"]]
        found += [record["training"]["share"]] if "training" in record else []
    return dict(zip(BARS, found, strict=False))


def run_all(out: Path, minutes: float) -> int:
    """All parts in their order; 1 if one failed, else 0."""
    gpu = False
    if importlib.util.find_spec("torch"):
        import torch

        gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "no GPU: toy sizes, to try the script"
    work_folder(out).mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    for old in RESULTS:
        (out / old).unlink(missing_ok=True)
    shutil.rmtree(work_folder(out) / PIPELINE, ignore_errors=True)
    print(f"{device}; {minutes:g} minutes; results in {out}", flush=True)
    reasons = {part: why_not(part, gpu) for part in SHARES}
    end, parts = time.monotonic() + 60 * minutes, []
    for number, part in enumerate(SHARES):
        later = sum(SHARES[p] for p in list(SHARES)[number + 1 :] if not reasons[p])
        seconds = end - 60 * minutes * later - time.monotonic()
        if part == "tests":  # which leaves the rest to the benchmark if nothing is trained
            seconds = min(seconds, 60 * minutes * SHARES[part])
        seconds = seconds if gpu else max(seconds, TOY_SECONDS)
        state, note, begun = "skipped", reasons[part], time.monotonic()
        if not note:
            log = work_folder(out) / f"{part}.log"
            state = limited(command(part, out, gpu, seconds), log, seconds)
            lines = log.read_text(errors="replace").strip().splitlines()
            print("", f"== {part}", *lines[-60:], sep="\n", flush=True)
            note = lines[-1] if lines else ""
        took = round(time.monotonic() - begun, 1)
        parts.append({"part": part, "state": state, "seconds": took, "note": note})
        summary = {"device": device, "minutes": minutes, "parts": parts}
        text = json.dumps(summary | {"measured": measured(out), "bars": BARS}, indent=2)
        (out / "summary.json").write_text(text + "\n")
    print()
    for each in parts:
        print(f"{each['part']:<9} {each['state']:<7} {each['seconds']:>6.1f} s  {each['note']}")
    for name, value in measured(out).items() if gpu else ():
        print(f"{name}: {value:.3g} (bar {BARS[name]:g})")
    return int(any(each["state"] == "failed" for each in parts))


def main() -> int:
    """`python -m scripts.gpu`; see docs/gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--list", action="store_true", help="print the files that it needs")
    args = parser.parse_args()
    if args.list:
        print(*(f.as_posix() for f in files()), sep="\n")
        return 0
    if not 0 < args.minutes <= 24 * 60:
        print(f"--minutes must lie in (0, 1440], not {args.minutes:g}.", file=sys.stderr)
        return 2
    return run_all(args.out.absolute(), args.minutes)


if __name__ == "__main__":
    sys.exit(main())
