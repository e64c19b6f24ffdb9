"""How much of the image a token may depend on: receptive field x codes, at equal training.

Each arm trains a tokenizer on CIFAR-10 whose encoder sees one patch, a little more or the whole
image, and a generator on its tokens. Decoder, generator, steps and batches are the same for all.
A record has what the tokenizer rebuilds, how well the generator predicts, and what it samples.
An arm takes about a quarter of an hour of a core without bfloat16.
"""

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sgmgm import datasets, presets, scoring
from sgmgm.evidence.sweep import TUNING_SEED, grid_points, sweep
from sgmgm.pipeline import Card, Pipeline, write_card
from sgmgm.settings import Sampling
from sgmgm.tasks import Task, TokenizerTask, TransformerTask
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer, psnr
from sgmgm.training import TrainingConfig, fit
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.devices import has_bf16
from sgmgm.utils.files import check_writable, read_json, write_json
from sgmgm.utils.samples import to_uint8
from sgmgm.workflow import cached_tokens

from . import exit_code

DATASET = "cifar10"
# the codes of an encoder that has nothing to learn stay where k-means put them
FIELDS = {
    "4": {"encoder": "patch", "window": 4, "codebook_decay": 1.0},
    "8": {"encoder": "patch", "window": 8, "codebook_decay": 0.99},
    "all": {"encoder": "vqgan", "codebook_decay": 0.99},
}
CODES = (1024, 256)
TOKENIZER = TrainingConfig(800, 64, 2e-3, warmup=50, ema=0.99)
GENERATOR = TrainingConfig(400, 64, 2e-3, warmup=50, weight_decay=0.05, ema=0.99, muon=0.02)
FEATURE_WEIGHT = 0.3
TEMPERATURES, STEPS, TUNING, IMAGES = [2.0, 4.0, 8.0, 16.0], 16, 400, 1000
SHARES = (0.9, 0.6, 0.3)  # of the positions that are masked
SCORES = ("frechet", "precision", "recall", "accuracy")


def tokenizer_config(field: str, codes: int) -> TokenizerConfig:
    """The course's usual sizes; codes are patches of 48 numbers, so one decoder serves all."""
    usual = presets.LAPTOP.tokenizer
    sizes = {"z_channels": 48, "quantized_embed_dim": 48, "num_embeddings": codes}
    return replace(usual, decoder="patch", **sizes, **FIELDS[field])


def entropy(tokens: Tensor, codes: int) -> float:
    """Entropy in nats of the single tokens: what guessing by their shares costs."""
    shares = torch.bincount(tokens.flatten().int(), minlength=codes).double()
    shares /= shares.sum()
    return -(shares * shares.clamp_min(1e-12).log()).sum().item()


@torch.no_grad()
def nll(model: MaskedTransformer, tokens: Tensor, labels: Tensor, share: float) -> float:
    """Mean NLL in nats of the masked tokens, the same masks for every model."""
    masked = round(share * tokens.shape[1])
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(tokens.shape, generator=generator).argsort(1) < masked  # (B, N)
    canvas = torch.where(mask, model.config.mask_id, tokens)
    parts = zip(*(x.split(250) for x in (canvas, labels, mask)), strict=True)
    logits = torch.cat([model(*part).logits for part in parts])  # (M, K)
    return F.cross_entropy(logits.float(), tokens[mask]).item()


def trained(task: Task, config: TrainingConfig, place: Path):
    """The task's network, trained now or earlier, and the seconds of a core of its last start."""
    if not (place / "training.json").is_file():
        begun = time.process_time()
        metadata = {"dataset": DATASET, "preset": "laptop", "start": None, "mirror": True}
        fit(
            task, config, place, device="cpu", metadata=metadata,
            evaluate=lambda _: {"core_seconds": round(time.process_time() - begun, 1)},
        )  # fmt: skip
    network = type(task.model).from_pretrained(place).eval()  # type: ignore[attr-defined]
    return network, read_json(place / "training.json")["core_seconds"]


def arm(field: str, codes: int, folder: Path) -> dict:
    """Train and judge one arm in a pipeline folder of its own."""
    data, test = datasets.load(DATASET), datasets.load(DATASET, "test", IMAGES)
    plan = presets.get(DATASET, "laptop", len(data.classes))
    if not (folder / "pipeline.json").is_file():
        write_card(folder, Card(DATASET, "laptop", list(data.classes), Sampling(steps=STEPS)))
    torch.manual_seed(0)
    network = VQTokenizer(tokenizer_config(field, codes))
    rebuild = TokenizerTask(network, data, scoring.find_classifier(DATASET), FEATURE_WEIGHT)
    tokenizer, cost = trained(rebuild, TOKENIZER, folder / "tokenizer")
    tokens = cached_tokens(tokenizer, data, folder)  # (2, M, N)
    torch.manual_seed(0)
    transformer = MaskedTransformer(replace(plan.transformer, codebook_size=codes))
    transformer.init_from_codebook(tokenizer.quantize.embedding.weight.detach())
    predict = TransformerTask(transformer, tokens, data.labels)
    model, further_cost = trained(predict, GENERATOR, folder / "transformer")

    pixels = torch.cat(list(test.batches("test images")))
    kept = torch.cat([tokenizer.encode(part) for part in pixels.split(250)])  # (B, N)
    rebuilt = torch.cat([tokenizer.decode(part) for part in kept.split(250)])
    record = {
        "receptive_field": field,
        "codes": codes,
        "codes_used": len(kept.unique()),
        "psnr": psnr(pixels, rebuilt).mean().item(),
        "entropy": entropy(tokens[0], codes),
        "nll": {str(share): nll(model, kept, test.labels, share) for share in SHARES},
        "core_seconds": {"tokenizer": cost, "transformer": further_cost},
    }
    pipeline = Pipeline.from_pretrained(folder, "cpu", bf16=not has_bf16("cpu"))
    points = grid_points(Sampling(guidance="none", steps=STEPS), {"temperature": TEMPERATURES})
    out = folder / "samples.jsonl"
    tried = sweep(pipeline, points, TUNING, [TUNING_SEED], out)
    best = Sampling(**min(tried, key=lambda r: r["scores"]["frechet"])["settings"])
    (final,) = sweep(pipeline, [best], IMAGES, [0], out)
    record["temperature"] = best.temperature
    for part, extractor in scoring.find_extractors(DATASET).items():
        reference = scoring.reference_for(DATASET, extractor)
        found = asdict(scoring.score(to_uint8(rebuilt), test.labels.numpy(), reference, extractor))
        record[f"rebuilt {part}"] = {name: found[name] for name in SCORES}
        found = final["scores" if part == "classifier" else part]
        record[f"sampled {part}"] = {name: found[name] for name in SCORES}
    return record


def run(args) -> None:
    """All arms that the records lack, one after the other."""
    check_writable(args.out)
    records = read_json(args.out) if args.out.is_file() else []
    for codes in CODES:
        for field in FIELDS:
            if any((r["receptive_field"], r["codes"]) == (field, codes) for r in records):
                continue
            records.append(arm(field, codes, args.work / f"{field}-{codes}"))
            write_json(args.out, records)
            print(records[-1], flush=True)


def main(arguments=None) -> int:
    """`python -m scripts.vocabulary`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs") / "vocabulary", help="models")
    parser.add_argument("--out", type=Path, required=True, help="a .json file of records")
    return exit_code(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
