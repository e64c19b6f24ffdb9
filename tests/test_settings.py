"""Settings: what every record of them means, old ones too, and that each reaches the sampler."""

import hashlib
import json
from dataclasses import asdict, fields

import numpy as np
import pytest

from sgmgm.commands import actions, cli
from sgmgm.commands.parser import parser
from sgmgm.evidence.sweep import read_records, unused
from sgmgm.pipeline import Pipeline
from sgmgm.settings import Sampling
from sgmgm.utils.files import ROOT
from sgmgm.utils.samples import to_uint8

IDENTITY = ("dataset", "preset", "weights", "bf16", "num", "seed", "settings")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "data" / "results").glob("*.jsonl")), ids=lambda file: file.stem
)
def test_old_records_are_read_and_keep_their_keys(file):
    """A field that is newer than a record must not make the same point another one."""
    records = read_records(file)
    assert records
    for record in records:
        point = Sampling(**record["settings"])
        assert point.record() == record["settings"] and not point.remask_known
        identity = {name: record[name] for name in IDENTITY}
        text = json.dumps(identity | {"settings": point.record()}, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        assert record["key"] == key


def test_a_record_says_when_known_tokens_compete():
    used = Sampling(remask_known=True)
    assert used.record() == asdict(used) and Sampling(**used.record()) == used
    without_effect = {"scale": 0.0, "scale_schedule": "constant", "smoother": "smoother"}
    assert unused(used) == without_effect
    # temperature and anneal decide which known tokens lose, whatever the order
    assert "temperature" not in unused(used.updated(order="random"))
    assert "temperature" in unused(Sampling(order="random"))
    assert unused(used.updated(order="remask"))["remask_known"] is False


def test_every_setting_is_an_option_of_the_command():
    given = parser().parse_args(["sample", "--model", "sprites"])
    assert actions.chosen_settings(given) == dict.fromkeys(f.name for f in fields(Sampling))
    for words, value in ((["--remask-known"], True), (["--no-remask-known"], False)):
        given = parser().parse_args(["sample", "--model", "sprites", *words])
        changed = Sampling(remask_known=not value).updated(**actions.chosen_settings(given))
        assert changed.remask_known is value


@pytest.mark.parametrize("bf16", [False, True])
def test_remask_known_reaches_the_sampler_from_the_command(bf16, tmp_path, monkeypatch):
    """At a high temperature known tokens are masked again, with the option and not without."""
    monkeypatch.setattr("sgmgm.fast.has_bf16", lambda device: False)
    monkeypatch.setattr("sgmgm.pipeline.has_bf16", lambda device: False)
    pipe = Pipeline.from_pretrained("sprites", "cpu", bf16)
    options = {"steps": 6, "temperature": 400.0, "guidance": "none"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--bf16"] * bf16
    images = {}
    for remask in (False, True):
        samples = pipe([0, 1, 2], seeds=[0, 1, 2], remask_known=remask, **options)
        kept = samples.trajectory.kept
        assert bool((kept[:-1] & ~kept[1:]).any()) == remask
        out = tmp_path / f"{remask}.npz"
        flag = ["--remask-known"] * remask
        call = ["sample", "--model", "sprites", "--device", "cpu", "--num", "3", "--out", str(out)]
        assert cli.main([*call, *words, *flag]) == 0
        images[remask] = np.load(out)["arr_0"]
        assert np.array_equal(images[remask], to_uint8(samples.images))
    assert not np.array_equal(images[False], images[True])
