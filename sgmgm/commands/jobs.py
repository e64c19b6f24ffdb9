"""Jobs: any number of images into one samples file, stopped and started again at will.

Every batch is kept in `FILE.parts/` as soon as it is generated. So memory does not grow with the
number of images, a killed job loses one batch only, and the processes of a launch share the work.
"""

import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..pipeline import Pipeline, as_list
from ..settings import Sampling
from ..utils import files
from ..utils.distributed import meet, rank_and_size
from ..utils.errors import DataError, InputError, check_count, listed
from ..utils.files import atomic_path, check_writable, read_json, write_json
from ..utils.hub import fingerprint
from ..utils.samples import UNREADABLE, to_uint8


def generate_to(
    path: str | Path, pipeline: Pipeline, labels, seed: int = 0, batch_size: int = 64, **settings
) -> int | None:
    """Write one image per label into an ADM `.npz`; returns how many this call had to generate.

    Image i has seed `seed` + i; `settings` change the pipeline's `Sampling`. The same call goes on
    where a stopped one was. Under `accelerate launch` the processes share the batches; the first
    one writes the file, the others return None. InputError if `FILE.parts` belongs to a job with
    other settings, DataError if one of its files is damaged.
    """
    path, labels = Path(path), as_list(labels)
    batch_size = check_count("batch size", batch_size)
    seed = check_count("seed", seed, least=0)
    check_writable(path)
    numbers = pipeline.labels(labels)
    chosen = pipeline.card.sampling.updated(**settings)
    identity = chosen.record() | {
        "num": len(labels), "labels": fingerprint(numbers), "seed": seed, "batch_size": batch_size,
        "bf16": pipeline.bf16, "weights": weights(pipeline, chosen),
    }  # fmt: skip
    folder = path.with_name(path.name + ".parts")
    job = meet(pipeline.device)
    rank, processes = rank_and_size()
    wait = job.wait_for_everyone if job else lambda: None
    with files.sole_writer(path) if rank == 0 else nullcontext():
        if rank == 0:
            files.clear_partials(path.parent, path)
            begin(folder, identity)
        wait()
        starts = range(0, len(labels), batch_size)
        missing = [start for start in starts if not part_file(folder, start).is_file()]
        wait()  # until all have seen the same
        mine, quiet = missing[rank::processes], None if rank == 0 else True
        generated = 0
        for start in tqdm(mine, desc="sample", unit="batch", disable=quiet):
            some = labels[start : start + batch_size]
            seeds = range(seed + start, seed + start + len(some))
            images = to_uint8(pipeline(some, seeds=seeds, **settings).images)
            with atomic_path(part_file(folder, start)) as partial:
                np.save(partial, images)
            generated += len(some)
        wait()
        if rank:
            return None
        join(path, [part_file(folder, start) for start in starts], numbers.numpy(), batch_size)
        shutil.rmtree(folder)
        return generated


def part_file(folder: Path, start: int) -> Path:
    """Where the batch whose first image is number `start` is kept."""
    return folder / f"{start:09}.npy"


def begin(folder: Path, identity: dict) -> None:
    """Write what this job is, or check that the folder holds this very job."""
    note = folder / "job.json"
    if not note.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left of a finished job
        write_json(note, identity)
        return
    data = read_json(note)
    kept = data if isinstance(data, dict) else {}
    pairs = [(key, kept.get(key), value) for key, value in identity.items()]
    other = [f"{key} ({old}, not {new})" for key, old, new in pairs if old != new]
    if other:
        advice = "repeat that command to finish it, or delete the folder."
        raise InputError(f"{folder} holds a job with another {listed(other)}: {advice}")


def weights(pipeline: Pipeline, settings: Sampling) -> str:
    """A fingerprint of the networks that these settings use."""
    parts = [pipeline.tokenizer, pipeline.transformer]
    if settings.guidance_part:
        parts.append(pipeline.guidance_part(settings.guidance_part))
    return fingerprint(*(tensor for part in parts for tensor in part.state_dict().values()))


def join(path: Path, parts: list[Path], labels: np.ndarray, batch_size: int) -> None:
    """Copy the parts, one at a time, into one ADM `.npz` with its labels int64 (N,)."""
    shape = None
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for index, part in enumerate(parts):
                try:
                    images = np.load(part)
                    count = len(labels[index * batch_size :][:batch_size])
                    shape = shape or images.shape[1:]
                    if images.dtype != np.uint8 or images.shape != (count, *shape):
                        raise ValueError
                except FileNotFoundError:
                    gone = f"{part} has gone: another process finished or removed this job"
                    advice = "repeat the command if the result is not there."
                    raise InputError(f"{gone}; {advice}") from None
                except UNREADABLE:
                    advice = "delete it and repeat the command."
                    raise DataError(f"{part} is damaged: {advice}") from None
                if index == 0:
                    whole = (len(labels), *shape)
                    header = {"descr": "|u1", "fortran_order": False, "shape": whole}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(images.tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, labels)
