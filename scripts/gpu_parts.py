"""The parts of `make gpu` that are no other command: trace, train, scores, and tokens beforehand.

`python -m scripts.gpu_parts PART OUT SECONDS`; see `gpu`. Without a GPU all sizes are toys.
"""

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import profile, record_function

from scripts.benchmark import Clock, random_pipeline
from sgmgm import datasets, fast, presets
from sgmgm.evidence.sweep import grid_points, summarise, sweep, table
from sgmgm.pipeline import SHIPPED, Card, Pipeline, read_card, write_card
from sgmgm.scoring import balanced_labels, generate
from sgmgm.smoothing import ToastSmoother
from sgmgm.tasks import SmootherTask, TransformerTask, tokenize
from sgmgm.tokenizer import VQTokenizer
from sgmgm.training import TrainingConfig, fit
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.errors import CheckpointError
from sgmgm.utils.hub import digest, read_tensors, save_tensors, weights_digest
from sgmgm.utils.samples import save_grid, to_float

from .gpu import PIPELINE, ROOT, TOKENS, work_folder

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TOKENIZER = SHIPPED / "cifar10" / "tokenizer"


def trace(out: Path, seconds: float) -> None:
    """One guided step in a profiler's timeline: eager, fast, and fast as one CUDA graph."""
    batch = 64 if GPU else 2
    pipeline = random_pipeline("imagenet256" if GPU else "smoke", DEVICE)
    guidance = pipeline.guidance(pipeline.card.sampling.updated(guidance="self"))
    guided = fast.FastGuidance(guidance)
    labels = torch.arange(batch, device=DEVICE) % 10
    canvas = pipeline.first_canvas(None, batch).clone()
    n = canvas.shape[1]
    canvas[:, : n // 3] = 0
    at = torch.arange(n // 3, n, device=DEVICE).expand(batch, -1)
    clock = Clock(torch.device(DEVICE), 1)
    quick = f"fast {'bf16' if guided.dtype == torch.bfloat16 else 'float32'}"
    with torch.no_grad():
        steps = {
            "eager float32": lambda: guidance(canvas, labels),
            quick: lambda: guided(canvas, labels, at),
        }
        for step in steps.values():
            clock(step)  # compiles
        if GPU:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                guided(canvas, labels, at)
            steps[f"{quick}, one CUDA graph"] = graph.replay
        with profile() as profiler:
            for name, step in steps.items():
                with record_function(name):
                    step()
                    clock.wait()
    path = out / "trace.json.gz"
    profiler.export_chrome_trace(str(path))
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


def tokens(out: Path, seconds: float) -> None:
    """Write `TOKENS`, beforehand and where the data set is."""
    data = datasets.load("cifar10")
    found = tokenize(VQTokenizer.from_pretrained(TOKENIZER), data)
    tensors = {"tokens": found, "labels": torch.as_tensor(data.labels)}
    save_tensors(ROOT / TOKENS, tensors, {"made_by": digest(TOKENIZER / "model.safetensors")})
    print(f"{TOKENS}: {(ROOT / TOKENS).stat().st_size / 1e6:.1f} MB")


def read_tokens(tokenizer: VQTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's tokens (V, M, N) and labels (M,); for a toy without them, random ones."""
    if not GPU and not (ROOT / TOKENS).is_file():
        shape = (1, 100, tokenizer.config.num_tokens)
        return torch.randint(tokenizer.num_codes, shape), torch.arange(100) % 10
    tensors, notes = read_tensors(ROOT / TOKENS)
    if notes.get("made_by") != digest(TOKENIZER / "model.safetensors"):
        raise CheckpointError(f"{TOKENS} was made by another tokenizer: make it anew.")
    return tensors["tokens"], tensors["labels"]


def train(out: Path, seconds: float) -> None:
    """A CIFAR-10 transformer and its TOAST smoother on the shipped tokenizer's tokens."""
    folder, card = work_folder(out) / PIPELINE, read_card(TOKENIZER.parent)
    tokenizer = VQTokenizer.from_pretrained(TOKENIZER)
    found, labels = read_tokens(tokenizer)
    plan = presets.get("cifar10", "gpu", len(card.classes))
    width, layers = (256, 8) if GPU else (32, 2)  # 8 x 256 are 14 MB in float16
    sizes = {"num_vq_tokens": found.shape[-1], "codebook_size": tokenizer.num_codes,
             "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4,
             "num_hidden_layers": layers}  # fmt: skip
    model = MaskedTransformer(replace(plan.transformer, **sizes))
    codebook = tokenizer.quantize.embedding.weight.detach()
    model.init_from_codebook(codebook)
    write_card(folder, Card("cifar10", "gpu", card.classes, card.sampling))
    tokenizer.save_pretrained(folder / "tokenizer", torch.float16)
    metadata = {"dataset": "cifar10", "preset": "gpu", "start": None,
                "tokenizer": weights_digest(TOKENIZER / "model.safetensors")[:8]}  # fmt: skip

    def trained(part: str, task, config: TrainingConfig, share: float) -> None:
        """Train a part for its share of the time; an archive of it in float16 goes to `out`."""
        minutes = share * (max(10.0, seconds - 45) if GPU else 2) / 60  # 45: to load and save
        config = config if GPU else replace(config, batch_size=8)
        fit(task, config, folder / part, 0, DEVICE, metadata, minutes=minutes)
        packed = work_folder(out) / "packed" / part
        task.model.save_pretrained(packed, torch.float16)
        with tarfile.open(out / f"{part}.tar", "w") as archive:
            for file in (*packed.iterdir(), folder / part / "training.json"):
                archive.add(file, f"{PIPELINE}/{part}/{file.name}")
            archive.add(folder / "pipeline.json", f"{PIPELINE}/pipeline.json")
        print(f"{part}.tar: {(out / f'{part}.tar').stat().st_size / 1e6:.1f} MB", flush=True)

    larger = replace(plan.transformer_training, batch_size=512, ema=0.999)
    trained("transformer", TransformerTask(model, found, labels), larger, 0.85)
    metadata["transformer"] = weights_digest(folder / "transformer" / "model.safetensors")[:8]
    model = MaskedTransformer.from_pretrained(folder / "transformer")
    task = SmootherTask(ToastSmoother.for_transformer(model), model, found, labels, codebook)
    trained("smoother", task, plan.smoother_training, 0.15)


def scores(out: Path, seconds: float) -> None:
    """A grid of samples of that pipeline, and scores of 2,500 images at a few settings."""
    pipeline = Pipeline.from_pretrained(work_folder(out) / PIPELINE, DEVICE, bf16=True)
    base = pipeline.card.sampling.updated(steps=12 if GPU else 2)
    shown = base.updated(guidance="self", scale=1.0, temperature=8.0)
    labels = balanced_labels(100 if GPU else 10, list(range(10)))
    images, _ = generate(pipeline, labels, batch_size=100, **vars(shown))
    save_grid(out / "samples.png", to_float(images), columns=10, zoom=2)
    grid: dict = {"guidance": ["none", "self", "cfg"], "scale": [1.0], "temperature": [6.0, 12.0]}
    if not GPU:
        grid = {"guidance": ["self"], "temperature": [6.0]}
    num, batch = (2500, 250) if GPU else (10, 10)
    found = sweep(pipeline, grid_points(base, grid), num, [0], out / "scores.jsonl", batch)
    print(table(summarise(found)))


if __name__ == "__main__":
    PARTS = {"trace": trace, "tokens": tokens, "train": train, "scores": scores}
    PARTS[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]))
