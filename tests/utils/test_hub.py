import json
import struct
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sgmgm.classifier import Classifier, ClassifierConfig
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils import hub
from sgmgm.utils.errors import CheckpointError
from sgmgm.utils.hub import fingerprint, read_tensors, save_tensors


def changed(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "leave out"}))
    return folder


# -------------------------------------------------------------------------------- configurations


def test_a_field_of_a_later_version_is_left_out_with_a_warning(own):
    with pytest.warns(UserWarning, match=r"config.json: surprise is unknown here and left out\.$"):
        model = MaskedTransformer.from_pretrained(changed(own / "transformer", surprise=[1]))
    assert not hasattr(model.config, "surprise")


def test_a_missing_field_takes_its_default(tmp_path, recwarn):
    model = Classifier(ClassifierConfig(num_classes=10))
    model.save_pretrained(tmp_path)
    changed(tmp_path, num_classes="leave out", widths="leave out")
    assert Classifier.from_pretrained(tmp_path).config == model.config
    assert not recwarn.list


def test_a_missing_field_whose_default_does_not_fit_is_one_sentence(own):
    with pytest.raises(CheckpointError, match=r"does not fit its config.json: [^\n]*\.$"):
        MaskedTransformer.from_pretrained(changed(own / "transformer", codebook_size="leave out"))


def test_a_configuration_of_something_else(own):
    (own / "transformer" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="it names no field of a TransformerConfig"):
        MaskedTransformer.from_pretrained(own / "transformer")


# ----------------------------------------------------------------------------- where models are


@pytest.fixture
def asked(monkeypatch):
    """The repositories that the hub was asked for."""
    names = []

    def refuse(name, **options):
        names.append(name)
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    return names


@pytest.mark.parametrize("name", ["nothing", "/a/b", "a/b/c", "../a", "./a", "a b/c", "runs/x", ""])
def test_a_folder_that_is_not_there_asks_no_network(name, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=r"\.$"):
        Classifier.from_pretrained(name)
    with pytest.raises(CheckpointError, match="there is no folder"):
        Classifier.from_pretrained(tmp_path / "owner" / "name")
    assert asked == []


def test_a_repository_is_asked_for_by_owner_and_name(asked):
    with pytest.raises(CheckpointError, match=r"within reach \(no network at all\)\.$"):
        Classifier.from_pretrained("some-owner/a_model.v2")
    assert asked == ["some-owner/a_model.v2"]


# ------------------------------------------------------------------------------------- the files


def test_digests_in_the_notes_of_others_are_no_damage(tmp_path):
    notes = {"sshs_model_hash": "a" * 64, "sha224": "b" * 64, "format": "pt"}
    save_file({"x": torch.ones(3)}, tmp_path / "x.safetensors", notes)
    assert read_tensors(tmp_path / "x.safetensors")[0]["x"].tolist() == [1, 1, 1]


def test_every_flipped_bit_of_the_checksums_name_is_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.ones(3)})
    whole = path.read_bytes()
    start = whole.index(b"sha256")
    for bit in range(8 * len("sha256")):
        flipped = bytearray(whole)
        flipped[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_tensors(path)


def test_a_header_of_a_million_names_is_refused_unread(own):
    path = own / "transformer" / "model.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"a{i:06}": empty for i in range(900_000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    begun = time.process_time()
    json.loads(header)
    parsed = time.process_time()
    for read in (
        lambda: MaskedTransformer.from_pretrained(path.parent),
        lambda: read_tensors(path),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert "is damaged: its header of" in str(caught.value) and len(str(caught.value)) < 400
    assert time.process_time() - parsed < (parsed - begun) / 2  # the header was not parsed


def test_many_names_make_a_short_sentence(own):
    path = own / "transformer" / "model.safetensors"
    save_file({f"a{i}": torch.zeros(0) for i in range(10_000)}, path)
    with pytest.raises(CheckpointError, match=r"a0, a1, .* and [\d,]+ more\.$") as caught:
        MaskedTransformer.from_pretrained(path.parent)
    model = MaskedTransformer.from_pretrained
    with pytest.raises(CheckpointError, match="does not fit") as other:
        hub.load_weights(torch.nn.Linear(2, 2), path)
    assert max(len(str(each.value)) for each in (caught, other)) < 1000, model


def test_a_fingerprint_tells_values_types_and_shapes_apart():
    x = torch.arange(4.0)
    things = [(x,), (x.double(),), (x.view(2, 2),), (x + 1,), (x, x), (b"x",), ("x",), ("x", 1),
              (np.zeros(3, np.uint8),), ({"a": 1},)]  # fmt: skip
    found = [fingerprint(*each) for each in things]
    assert len(set(found)) == len(found) and all(len(each) == 16 for each in found)
    assert fingerprint(x.view(2, 2).T) == fingerprint(x.view(2, 2).T.contiguous())
    assert found == [fingerprint(*each) for each in things]
