"""Sweep: the same scores for many sampling settings, kept as JSON lines.

Every line is one point: a model, its settings, a seed, and the scores. A stopped sweep goes on
where it was, because lines are only ever added.
"""

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..pipeline import Pipeline
from ..sampling import TEMPERED
from ..scoring import balanced_labels, find_extractors, generate, reference_for, score
from ..settings import Sampling
from ..utils.distributed import rank_and_size
from ..utils.errors import DataError, InputError, check_count
from ..utils.files import check_writable

TUNING_SEED = 1_000_000  # chooses the settings; no table reports it
SEED_STRIDE = 10_000_000  # image seeds of different sweep seeds never meet
FIXED = Sampling(scale=0.0, temperature=0.0)  # values of settings without effect


def grid_points(base: Sampling, grid: dict[str, list]) -> list[Sampling]:
    """All combinations of the listed settings, each once.

    A setting without effect (the scale of no guidance, the smoother of guidances without one) has
    one fixed value, so that no point is computed twice.
    """
    product = itertools.product(*grid.values())
    points = [base.updated(**dict(zip(grid, values, strict=True))) for values in product]
    return list(dict.fromkeys(replace(point, **unused(point)) for point in points))


def unused(point: Sampling) -> dict:
    """The settings that have no effect on a point, with their fixed values."""
    names = ["scale", "scale_schedule"] * (point.guidance == "none")
    names += ["smoother"] * (point.guidance_part != point.smoother)
    names += ["temperature", "anneal"] * (point.order not in TEMPERED and not point.remask_known)
    names += ["remask_known"] * (point.order == "remask")
    return {name: getattr(FIXED, name) for name in names}


def sweep(
    pipeline: Pipeline, points: list[Sampling], num: int, seeds: list[int], out: str | Path,
    batch_size: int = 125,
) -> list[dict]:  # fmt: skip
    """Compute every point that `out`, a `.jsonl` file, does not hold yet; the records of all.

    A point has `num` images for each seed, the classes in turn. "scores" are those of the data
    set's classifier, "second" those of the second extractor where there is one.
    "sampling_core_seconds" is the time of the sampling summed over the cores: other work on the
    machine hardly changes it.
    """
    check_count("num", num, least=10)
    check_writable(out)
    folder, out = pipeline.folder, Path(out)
    dataset = pipeline.card.dataset
    found = find_extractors(dataset, folder)
    extractors = {part: extractor.to(pipeline.device) for part, extractor in found.items()}
    references = {part: reference_for(dataset, e, folder) for part, e in extractors.items()}
    name = extractors["classifier"].name
    labels = balanced_labels(num, list(range(len(pipeline.card.classes))))
    done = {record["key"]: record for record in read_records(out)} if out.exists() else {}
    others = {record["scores"]["extractor"] for record in done.values()} - {name}
    if others:
        raise InputError(f"{out} holds scores by {others.pop()}, which cannot be compared with "
                         f"those by {name}: choose another --out.")  # fmt: skip
    records = []
    for point, seed in itertools.product(points, seeds):
        identity = {
            "dataset": dataset, "preset": pipeline.card.preset,
            "weights": fingerprint(folder, point), "bf16": pipeline.bf16,
            "num": num, "seed": seed, "settings": point.record(),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        if key not in done:
            begun, cpu = time.perf_counter(), time.process_time()
            first = SEED_STRIDE * (seed + 1)
            images, nfe = generate(pipeline, labels, first, batch_size, **asdict(point))
            seconds = {"sampling_core_seconds": round(time.process_time() - cpu, 1)}
            scores = {part: asdict(score(images, labels.numpy(), references[part], extractor))
                      for part, extractor in extractors.items()}  # fmt: skip
            scores["scores"] = scores.pop("classifier")
            seconds["seconds"] = round(time.perf_counter() - begun, 1)
            done[key] = {"key": key} | identity | {"nfe": nfe} | seconds | scores
            if rank_and_size()[0] == 0:  # all processes of a launch compute the same
                append_record(out, done[key])
        records.append(done[key])
    return records


def fingerprint(folder: Path, point: Sampling) -> str:
    """A fingerprint of the networks that a point uses."""
    parts = ["tokenizer", "transformer"] + ([point.guidance_part] if point.guidance_part else [])
    files = [file for part in parts for file in sorted((folder / part).glob("*.safetensors"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def append_record(path: Path, record: dict) -> None:
    """Add a line to a results file, behind the last whole one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        with open(path, "ab") as file:
            if whole and not whole.endswith(b"\n"):
                last = whole[whole.rfind(b"\n") + 1 :]
                if _record(last):
                    file.write(b"\n")
                else:  # a crash cut it short
                    file.truncate(len(whole) - len(last))
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}.") from None


def read_records(path: str | Path) -> list[dict]:
    """All records of a results file, each point once; a last line that a crash cut is left out."""
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read results {path}: {error.strerror}.") from None
    *lines, rest = whole.split(b"\n")
    records = {}
    for number, line in enumerate([*lines, rest], start=1):
        record = _record(line)
        if record:
            records[record["key"]] = record
        elif number <= len(lines) or not b'{"key": '.startswith(line.strip(b"\0 \t\r")[:8]):
            raise DataError(f"line {number} of {path} is damaged or no sweep's: delete it.")
    return list(records.values())


def _record(line: bytes) -> dict | None:
    """A line of a results file, or None if it is none."""
    needed = {"key", "weights", "bf16", "num", "seed", "settings", "nfe", "scores"}
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and needed <= record.keys() else None


def method(settings: dict) -> str:
    """A method's name: its guidance, and smoother and schedule unless the usual ones."""
    usual = {"smoother": "smoother", "scale_schedule": "constant"}
    unusual = [settings[name] for name, value in usual.items() if settings[name] != value]
    return settings["guidance"] + (f" ({', '.join(unusual)})" if unusual else "")


def best_points(records: list[dict]) -> list[Sampling]:
    """The settings with the lowest Fréchet distance of each method, at each number of passes."""
    best: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda r: r["scores"]["frechet"]):
        best.setdefault((method(record["settings"]), record["nfe"]), record)
    return [Sampling(**record["settings"]) for record in best.values()]


MAIN = ("none", "cfg", "spatial", "auto", "self")  # the guidances of the README and the plots


def curves(records: list[dict], passes: int = 16) -> dict[str, list[tuple[float, float, str]]]:
    """Trade-off curves over temperature: (inception score, Fréchet distance, temperature).

    One for each of the main guidances with this number of passes, at the scale of its lowest
    distance; orders without temperature have none.
    """
    found: dict[str, list[dict]] = {}
    for row in summarise(records):  # the best comes first
        if row["settings"]["order"] in TEMPERED and row["nfe"] == passes:
            members = found.setdefault(method(row["settings"]), [row])
            same = members[0]["settings"] | {"temperature": row["settings"]["temperature"]}
            if row is not members[0] and row["settings"] == same:
                members.append(row)

    def points(rows: list[dict]) -> list:
        of = [(row["settings"]["temperature"], row) for row in rows]
        of.sort(key=lambda pair: pair[0])
        return [(row["inception_score"][0], row["frechet"][0], f"{t:g}") for t, row in of]

    return {name: points(found[name]) for name in MAIN if name in found}


SECOND = "second "  # the beginning of the names of scores by the second extractor
SCORES = ("frechet", "second frechet", "inception_score", "precision", "recall", "accuracy",
          "coherence")  # fmt: skip
ALL_SCORES = (*SCORES, "second recall", "density", "coverage")
FACTS = ("guidance", "s", "tau", "T", "NFE", "ms", "tried", "samples x seeds")  # before the scores


def summarise(records: list[dict]) -> list[dict]:
    """A row for each setting: {"settings", "weights", "bf16", "num", "seeds", "nfe", scores}.

    A score is (mean, standard deviation) over the seeds; the latter is 0 for one seed. "ms", where
    it was measured, is the milliseconds of a core for one image.
    """
    groups: dict[str, list[dict]] = {}
    for record in records:
        same = record["settings"], record["weights"], record["bf16"]
        groups.setdefault(json.dumps(same), []).append(record)
    rows = []
    for members in groups.values():
        row = {key: members[0][key] for key in ("settings", "weights", "bf16", "num", "nfe")}
        row["seeds"] = len(members)
        for name in ALL_SCORES:
            kind = "second" if name.startswith(SECOND) else "scores"
            found = (member.get(kind, {}).get(name.removeprefix(SECOND)) for member in members)
            values = [value for value in found if value is not None]
            if len(values) == len(members):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                row[name] = (statistics.mean(values), spread)
        if all("sampling_core_seconds" in member for member in members):
            total = sum(member["sampling_core_seconds"] for member in members)
            row["ms"] = 1000 * total / (row["num"] * len(members))
        rows.append(row)
    return sorted(rows, key=lambda row: row["frechet"][0])


def cells(row: dict, digits: int) -> dict[str, str]:
    """A row of `summarise` as texts, by column; numbers of a score have so many decimals.

    Order and annealing are named where they are not confidence and linear. `tried`, where a row
    has it, is the number of settings among which this one was chosen.
    """
    s = row["settings"]
    order = "" if s["order"] == "confidence" else f", {s['order']} order"
    anneal = "" if s["anneal"] == "linear" else f" {s['anneal']}"
    tau = f"{s['temperature']:g}{anneal}" if s["order"] in TEMPERED else "-"
    found = {"guidance": method(s) + order, "s": f"{s['scale']:g}", "tau": tau}
    found |= {"T": str(s["steps"]), "NFE": f"{row['nfe']:g}"}
    found |= {name: f"{row[name]:.0f}" for name in ("ms", "tried") if name in row}
    found["samples x seeds"] = f"{row['num']} x {row['seeds']}"
    return found | {name: " ± ".join(f"{value:.{digits}f}" for value in row[name])
                    for name in ALL_SCORES if name in row}  # fmt: skip


def table(rows: list[dict], columns: Sequence[str] = (*FACTS, *SCORES), digits: int = 3) -> str:
    """Rows of `summarise` as a Markdown table: those of these columns that any row has."""
    lines = [cells(row, digits) for row in rows]
    head = [name for name in columns if any(name in line for line in lines)]
    return markdown_table(head, [[line.get(name, "") for name in head] for line in lines])


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table of these cells."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
