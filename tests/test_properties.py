"""Generated input: whatever is given to the two entrances ends in images or in a sentence.

A tenth of 2,400 cases in `make test`, all in `make check`, the same in every run; every night
others (see conftest).
"""

import contextlib
import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgmgm import fast, folders, metrics
from sgmgm.commands.cli import main
from sgmgm.guidance import GUIDANCES, SCALE_SCHEDULES
from sgmgm.masking import SCHEDULES
from sgmgm.pipeline import Card, Pipeline, write_card
from sgmgm.sampling import ANNEALS, ORDERS, decode
from sgmgm.smoothing import ToastSmoother
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.training import TrainingConfig
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import InputError, SgmgmError
from sgmgm.utils.hub import check_sizes
from sgmgm.utils.samples import load_samples, save_samples

pytestmark = pytest.mark.generated

CODES, CLASSES, TOKENS = 12, 3, 16
MASK = CODES + CLASSES


def cases(count):
    """How many of them: the profile says it, in percent."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole system with random weights, so small that a picture takes a millisecond."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiny")
    grid = {"hidden_channels": 4, "channel_mult": (1, 1, 1), "num_res_blocks": 1, "norm_groups": 2}
    depth = {"z_channels": 4, "quantized_embed_dim": 4, "num_embeddings": CODES}
    VQTokenizer(TokenizerConfig(resolution=16, **grid, **depth)).save_pretrained(root / "tokenizer")
    sizes = TransformerConfig(TOKENS, 16, 1, 2, 32, CODES, CLASSES)
    for part in ("transformer", "weak"):
        model = MaskedTransformer(sizes)
        model.save_pretrained(root / part)
    ToastSmoother.for_transformer(model).save_pretrained(root / "smoother")
    write_card(root, Card("sprites", "smoke", ["a", "b", "c"]))
    return root


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.from_pretrained(folder, "cpu")


def check_sentence(text):
    assert text.rstrip().endswith(".") and "\n" not in text and "Traceback" not in text, text


@contextlib.contextmanager
def sentence():
    """Whatever is refused inside is refused by one sentence of ours."""
    try:
        yield
    except SgmgmError as error:
        check_sentence(str(error))


# ------------------------------------------------------------------------------------- strategies

numbers = st.one_of(
    st.integers(-3, 20), st.integers(), st.floats(), st.just(10**400), st.booleans(), st.none()
)
junk = st.one_of(numbers, st.text(max_size=5), st.just([]), st.just({}), st.just((1, 2)))


def mostly(good, other=junk):
    return st.integers(0, 15).flatmap(lambda i: other if i == 0 else good)


SETTINGS = {
    "steps": mostly(st.integers(1, 5)),
    "temperature": mostly(st.floats(0, 50), st.one_of(st.floats(), junk)),
    "anneal": mostly(st.sampled_from(ANNEALS)),
    "order": mostly(st.sampled_from(sorted(ORDERS))),
    "schedule": mostly(st.sampled_from(sorted(SCHEDULES))),
    "guidance": mostly(st.sampled_from(sorted(GUIDANCES))),
    "scale": mostly(st.floats(-5, 20), st.one_of(st.floats(), junk)),
    "scale_schedule": mostly(st.sampled_from(sorted(SCALE_SCHEDULES))),
    "smoother": mostly(st.just("smoother"), st.text(max_size=4)),
}
chosen = st.fixed_dictionaries({}, optional=SETTINGS)
labels = mostly(st.lists(mostly(st.integers(0, 2)), min_size=0, max_size=3))
ids = mostly(st.sampled_from([*range(CODES), MASK]), st.integers(-3, 40))


# -------------------------------------------------------------------------------------- the library


@cases(600)
@given(
    labels=labels,
    seeds=st.none() | st.lists(mostly(st.integers(0, 2**63 - 1)), max_size=3),
    canvas=st.none() | st.lists(ids, min_size=TOKENS - 1, max_size=TOKENS),
    options=chosen,
)
def test_a_call_gives_pictures_or_a_sentence(pipe, labels, seeds, canvas, options):  # fmt: skip
    before = repr((labels, seeds, canvas, options))
    first = None if canvas is None else torch.tensor([canvas])
    with sentence():
        drawn = pipe(labels, seeds=seeds, canvas=first, **options)
        assert drawn.images.isfinite().all() and 0 <= drawn.images.min() <= drawn.images.max() <= 1
        assert drawn.trajectory.tokens.min() >= 0 and drawn.trajectory.tokens.max() < CODES
        if canvas is not None:
            known = first.expand(len(drawn.labels), -1) < CODES
            expected = first.expand(len(drawn.labels), -1)[known]
            assert drawn.trajectory.tokens[known].equal(expected)
    assert repr((labels, seeds, canvas, options)) == before
    assert first is None or first.tolist() == [canvas]


@cases(400)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 6),
    bad=st.integers(1, 8),
    value=st.sampled_from([math.nan, math.inf, 3e38, -3e38, 0.0]),
    spread=st.sampled_from([0.0, 1.0, 1e4, 1e30]),
    order=st.sampled_from(sorted(ORDERS)),
)
def test_logits_that_are_not_finite_name_their_step(  # fmt: skip
    seed, steps, bad, value, spread, order
):
    draw = torch.Generator().manual_seed(seed)
    calls = []

    def logits(canvas, labels):
        calls.append(1)
        out = spread * torch.randn(*canvas.shape, CODES, generator=draw)
        if len(calls) == bad:
            masked = (canvas[-1] >= CODES).nonzero().flatten()  # known positions are not sampled
            out[-1, masked[seed % len(masked)], seed % CODES] = value
        return out

    first = torch.full((2, 9), MASK)
    if bad <= steps and not math.isfinite(value):
        with pytest.raises(InputError, match=f"the logits of step {bad} hold NaN or infinity"):
            decode(logits, torch.zeros(2).long(), first, steps, order=order)
    else:
        found = decode(logits, torch.zeros(2).long(), first, steps, order=order)
        assert (found.tokens < CODES).all() and found.kept[-1].all()
    assert (first == MASK).all()


@cases(150)
@given(
    seed=st.integers(0, 2**62),
    count=st.integers(1, 5),
    steps=st.integers(1, 6),
    guidance=st.sampled_from(sorted(GUIDANCES)),
    order=st.sampled_from(sorted(ORDERS)),
    scale=st.floats(0, 4),
    tau=st.floats(0, 20),
)
def test_eager_fast_and_alone_draw_the_same(  # fmt: skip
    pipe, seed, count, steps, guidance, order, scale, tau
):
    options = {"steps": steps, "guidance": guidance, "order": order, "scale": scale,
               "temperature": tau}  # fmt: skip
    seeds = [seed + i for i in range(count)]
    numbers = [i % CLASSES for i in range(count)]
    whole = pipe(numbers, seeds=seeds, **options).trajectory.tokens
    last = pipe(numbers[-1:], seeds=seeds[-1:], **options).trajectory.tokens
    assert last.equal(whole[-1:])
    guided = fast.FastGuidance(pipe.guidance(pipe.card.sampling.updated(**options)), torch.float32)
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    blank = torch.full((count, TOKENS), MASK)
    quick = fast.decode(guided, torch.tensor(numbers), blank, steps, temperature=tau, order=order,
                        generators=generators)  # fmt: skip
    assert quick.tokens.equal(whole)


shapes = st.lists(st.integers(0, 7), min_size=0, max_size=3).map(tuple)


width = st.integers(1, 7)
rows = st.tuples(st.integers(2, 7), st.integers(2, 7), width).map(
    lambda n: ((n[0], n[2]), (n[1], n[2]))
)


@cases(100)
@given(
    both=mostly(rows, st.tuples(shapes, shapes)),
    seed=st.integers(0, 99),
    hole=st.sampled_from([0.0, math.nan, math.inf]),
    size=st.sampled_from([1.0, 0.0, 1e-20, 1e15]),
    k=mostly(st.integers(1, 4)),
)
def test_scores_are_numbers_or_a_sentence(both, seed, hole, size, k):  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    x, y = (size * torch.randn(shape, generator=draw) for shape in both)
    if x.numel():
        x.view(-1)[seed % x.numel()] += hole
    before = x.clone(), y.clone()
    with sentence():
        stats = [metrics.GaussianStats().update(rows) for rows in (x, y)]
        assert metrics.frechet_distance(*stats) >= 0
    with sentence():
        assert math.isfinite(metrics.kid(x, y))
    with sentence():
        assert all(v >= 0 for v in metrics.precision_recall(x, y, k).values())
    with sentence():
        assert metrics.inception_score(x, splits=k)[0] >= 0.99
    assert x.nan_to_num().equal(before[0].nan_to_num()) and y.equal(before[1])


@cases(200)
@given(
    st.fixed_dictionaries(
        {"steps": mostly(st.integers(1, 99))},
        optional={
            name: numbers for name in ("batch_size", "learning_rate", "warmup", "clip", "ema")
        },
    )
)
def test_recipes_are_sound_or_refused(given):  # fmt: skip
    with sentence():
        config = TrainingConfig(**given)
        assert config.rate(0) > 0 and config.rate(config.steps - 1) > 0


# ---------------------------------------------------------------------------------------- the files


def test_a_saved_system_draws_the_same_pictures(pipe, tmp_path):
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    pipe.guidance_part("smoother").save_pretrained(tmp_path / "smoother")
    write_card(tmp_path, pipe.card)
    again = Pipeline.from_pretrained(tmp_path, "cpu")
    for options in ({}, {"guidance": "self", "scale": 2.0, "steps": 3}):
        one, other = (each([0, 1, 2], seeds=[7, 8, 2**60], **options) for each in (pipe, again))
        assert one.images.equal(other.images)
        assert all(a.equal(b) for a, b in zip(one.trajectory, other.trajectory, strict=True))


@cases(250)
@given(part=st.sampled_from(["transformer", "tokenizer", "smoother"]), data=st.data())
def test_any_config_is_the_models_own_or_refused(folder, pipe, part, data):
    """Whatever a config.json says, no memory is given for it before it is known to fit."""
    kind = {"tokenizer": VQTokenizer, "smoother": ToastSmoother}.get(part, MaskedTransformer)
    path = folder / part / "config.json"
    own = path.read_text()
    config = json.loads(own)
    name = data.draw(st.sampled_from([*config, "surplus"]))
    config[name] = data.draw(st.one_of(junk, st.lists(st.integers(), max_size=4)))
    try:
        path.write_text(json.dumps(config))
        with sentence():
            check_sizes(kind.from_pretrained(folder / part).config)
    finally:
        path.write_text(own)


@cases(200)
@given(place=st.floats(0, 1), keep=st.floats(0, 1), bit=st.integers(0, 7), npz=st.booleans())
def test_damaged_samples_and_pictures_are_read_or_refused(place, keep, bit, npz):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "x.npz" if npz else "x.png")
        pixels = np.arange(768, dtype=np.uint8).reshape(4, 8, 8, 3)
        if npz:
            save_samples(path, pixels, np.arange(4))
        else:
            Image.fromarray(pixels[0]).save(path)
        data = bytearray(path.read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
        path.write_bytes(data[: int(len(data) * max(keep, 0.2))])
        with sentence():
            if npz:
                assert load_samples(path)[0].dtype == np.uint8
            else:
                assert folders.read_picture(path, 8).shape == (3, 8, 8)


# --------------------------------------------------------------------------------- the command line

odd = st.sampled_from(["1" + "0" * 30, "1e400", "nan", "inf", "", "--", "-"])
words = st.one_of(
    st.integers(-2, 12).map(str), st.floats().map(str), st.text("a1,.-²é ", max_size=6), odd
)
OPTIONS = {
    "--num": mostly(st.integers(1, 3).map(str), words),
    "--steps": mostly(st.integers(1, 3).map(str), words),
    "--batch-size": mostly(st.integers(1, 3).map(str), words),
    "--classes": mostly(st.sampled_from(["a", "0,1", "c,2"]), words),
    "--seed": mostly(st.integers(0, 2**32 - 1).map(str), words),
    "--temperature": mostly(st.floats(0, 9).map(str), words),
    "--scale": mostly(st.floats(0, 9).map(str), words),
    "--guidance": mostly(st.sampled_from(sorted(GUIDANCES)), words),
    "--order": mostly(st.sampled_from(sorted(ORDERS)), words),
    "--smoother": mostly(st.just("smoother"), words),
    "--device": mostly(st.just("cpu"), words),
}


@cases(300)
@given(
    options=st.fixed_dictionaries({}, optional=OPTIONS),
    suffix=mostly(st.sampled_from([".png", ".npz"]), st.sampled_from([".gif", "", "/", "\0.png"])),
    extra=mostly(st.just([]), st.lists(words, max_size=2)),
)
def test_a_command_does_it_or_says_why_not(folder, options, suffix, extra):
    with tempfile.TemporaryDirectory() as root:
        line = ["sample", "--model", str(folder), "--out", f"{root}/x{suffix}", "--num=2",
                "--steps=1", *(f"{k}={v}" for k, v in options.items()), *extra]  # fmt: skip
        said, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            try:
                code = main(line)
            except SystemExit as end:
                code = end.code
        files = [f.name for f in Path(root).rglob("*") if f.is_file()]
        if code == 0:
            assert files == [f"x{suffix}"] and "images" in said.getvalue()
        else:
            assert code == 2 and not files and said.getvalue() == ""
            last = complained.getvalue().rsplit("\r", 1)[-1].strip()
            check_sentence(last.splitlines()[-1])
