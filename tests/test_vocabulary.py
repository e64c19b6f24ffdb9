"""The table of receptive fields and codes, with toy sizes."""

import math

import pytest
import torch

from scripts import vocabulary
from sgmgm import datasets
from sgmgm.tasks import TokenizerTask
from sgmgm.training import TrainingConfig
from sgmgm.utils.files import read_json


def test_the_entropy_of_tokens():
    assert vocabulary.entropy(torch.arange(8).repeat(5), 16) == pytest.approx(math.log(8))
    assert vocabulary.entropy(torch.zeros(3, 4), 16) == 0


def test_an_encoder_depends_on_its_receptive_field_alone():
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[..., 8:12, 8:12] = 0  # the token of row 2, column 2
    for field, count in (("4", 1), ("8", 9), ("all", 64)):
        torch.manual_seed(0)
        encoder = vocabulary.VQTokenizer(vocabulary.tokenizer_config(field, 16)).encoder
        if field == "8":
            torch.nn.init.normal_(encoder.out.weight)  # as if trained
        change = (encoder(images) != encoder(other)).any(1)[0]  # (8, 8)
        assert change[2, 2] and 1 <= change.sum() <= count
        assert field != "all" or change.sum() > 9


def test_a_table_of_two_arms(monkeypatch, tmp_path):
    load = datasets.load
    monkeypatch.setattr(
        datasets, "load", lambda name, split="train", n=None: load(name, split, min(n or 64, 64))
    )
    monkeypatch.setattr(TokenizerTask, "START_ROWS", 640)
    small = {"DATASET": "sprites", "CODES": (16,), "TEMPERATURES": [2.0, 4.0], "STEPS": 2,
             "TUNING": 10, "IMAGES": 40}  # fmt: skip
    small |= {name: TrainingConfig(2, 8) for name in ("TOKENIZER", "GENERATOR")}
    for name, value in small.items():
        monkeypatch.setattr(vocabulary, name, value)
    monkeypatch.setattr(vocabulary, "FIELDS", {k: vocabulary.FIELDS[k] for k in ("4", "8")})
    out = tmp_path / "table.json"
    words = ["--work", str(tmp_path / "work"), "--out", str(out)]
    assert vocabulary.main(words) == 0
    records = read_json(out)
    assert [record["receptive_field"] for record in records] == ["4", "8"]
    for record in records:
        assert 0 < record["entropy"] <= math.log(16) and 0 < record["codes_used"] <= 16
        assert all(0 < each < 6 for each in record["nll"].values())
        assert record["sampled classifier"]["frechet"] > record["rebuilt classifier"]["frechet"] > 0
    assert vocabulary.main(words) == 0 and read_json(out) == records  # nothing is done twice


def test_a_place_that_cannot_be_written_is_told_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(vocabulary, "arm", lambda *_: pytest.fail("it worked first"))
    (tmp_path / "file").touch()
    assert vocabulary.main(["--out", str(tmp_path / "file" / "table.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
