"""What only an NVIDIA GPU can show: `pytest -m cuda`, and docs/gpu.md for a borrowed one."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sgmgm import fast, training
from sgmgm.commands.cli import TOO_BIG, main
from sgmgm.guidance import GUIDANCES, make_guidance
from sgmgm.pipeline import Card, Pipeline, write_card
from sgmgm.sampling import decode, generators_for, prepare
from sgmgm.settings import Sampling
from sgmgm.tasks import SmootherTask, TransformerTask
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.training import TrainingConfig, fit
from sgmgm.utils.devices import has_bf16
from sgmgm.utils.files import write_json

from . import test_fast

pytestmark = pytest.mark.cuda
DECODER = TokenizerConfig(  # 16 tokens of 20 codes, as the networks of test_fast have them
    resolution=8,
    hidden_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    num_embeddings=20,
    quantized_embed_dim=8,
    norm_groups=4,
)
DEVICE = "cuda"


@pytest.fixture(scope="module", autouse=True)
def gpu():
    """Every test here asks for the GPU; without one it is skipped, with this sentence."""
    if not torch.cuda.is_available():
        pytest.skip("this needs an NVIDIA GPU; docs/gpu.md says how to run it on a borrowed one")
    torch.backends.cudnn.allow_tf32 = False
    return DEVICE


@pytest.fixture(scope="module")
def nets(gpu):
    """Networks with large weights, so that a small error shows; on the GPU."""
    return {name: module.to(gpu) for name, module in test_fast.parts().items()}


def guidance_of(nets, name="self", smoother="toast", scale=1.3):
    return make_guidance(name, nets["model"], scale, weak=nets["weak"], smoother=nets[smoother])


def inputs(nets, batch=6):
    """Labels, blank canvases, and generators that are new at each call."""
    labels = torch.arange(batch, device=DEVICE) % 5
    generators = generators_for(range(10, 10 + batch))
    return (labels, nets["model"].blank.expand(batch, -1)), {"generators": generators}


def sampled(way, given, nets, batch=6, **settings):
    """The trajectory of `sampling.decode` or `fast.decode`."""
    positional, noise = inputs(nets, batch)
    return way(given, *positional, **{"steps": 6, "temperature": 4.0} | noise | settings)


@pytest.mark.parametrize("name, smoother", test_fast.VARIANTS)
def test_in_float32_the_recorded_steps_give_the_same_tokens(name, smoother, nets):
    guidance = guidance_of(nets, name, smoother)
    guided = fast.FastGuidance(guidance, torch.float32)
    quick = sampled(fast.decode, guided, nets)
    assert guided.records and len(guided.graphs) == 1  # a graph gave them
    test_fast.assert_same(sampled(decode, guidance, nets), quick)


@pytest.mark.parametrize("name, smoother", test_fast.VARIANTS)
def test_bfloat16_predicts_nearly_the_same(name, smoother, nets):
    if not has_bf16("cuda"):
        pytest.skip("this GPU has no bfloat16")
    (labels, canvas), _ = inputs(nets)
    canvas = canvas.clone()
    canvas[:, :7] = torch.arange(7, device=DEVICE)
    at = torch.arange(7, 16, device=DEVICE).expand(6, -1)
    guidance = guidance_of(nets, name, smoother, 1.0)
    with torch.no_grad():
        exact = guidance(canvas, labels)[:, 7:].softmax(-1)
        half = fast.FastGuidance(guidance, torch.bfloat16)(canvas, labels, at)
    assert half.dtype == torch.float32 and half.shape == (6, 9, 20)
    error = (half.softmax(-1) - exact).abs().sum(-1) / 2  # total variation
    assert 0 < error.mean() < 0.06


@pytest.mark.parametrize("order", ["confidence", "remask", "halton"])
def test_a_graph_gives_what_the_same_steps_give_without_one(order, nets):
    recorded, plain = (fast.FastGuidance(guidance_of(nets), torch.float32) for _ in range(2))
    plain.records = False
    for scale in (1.3, 0.2):  # the scale is an input of the graph
        for guided in (recorded, plain):
            guided.guidance.scale = scale
        found, want = (sampled(fast.decode, g, nets, order=order) for g in (recorded, plain))
        test_fast.assert_same(want, found)
    assert len(recorded.graphs) == 1 and not plain.graphs


def test_other_batch_sizes(nets):
    """A smaller last batch is filled up; a size that comes again, or a larger one, is recorded."""
    guidance = guidance_of(nets)
    guided = fast.FastGuidance(guidance, torch.float32)
    graphs = []
    for batch in (8, 3, 8, 3, 3, 12):
        found = sampled(fast.decode, guided, nets, batch)
        test_fast.assert_same(sampled(decode, guidance, nets, batch), found)
        ((graph, *_),) = guided.graphs.values()
        graphs.append(graph)
    assert len({id(g) for g in graphs[:4]}) == 1
    assert len({id(g) for g in graphs[3:]}) == 3


@contextmanager
def no_waiting():
    """An error when the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", GUIDANCES)
def test_no_step_waits_for_the_gpu(name, nets):
    (labels, canvas), noise = inputs(nets)
    guided = fast.FastGuidance(guidance_of(nets, name), torch.float32)
    taus, keys, counts = prepare(
        labels, canvas, 4, "cosine", 3.0, "linear", "halton", noise["generators"]
    )
    widths = (16, *counts[:-1, 16].tolist())
    with torch.no_grad():
        for block in (contextmanager(lambda: iter([None])), no_waiting):  # compile first
            with block():
                fast.run(guided, labels, canvas, keys, counts, widths, taus, "halton", True)


def random_pipeline(nets, bf16=True):
    """A pipeline of these networks; the tokenizer's weights are random, but always the same."""
    torch.manual_seed(3)
    card = Card("sprites", "smoke", list("abcde"), Sampling(steps=4, temperature=4.0))
    pipeline = Pipeline(card, VQTokenizer(DECODER), nets["model"], None, DEVICE, bf16)
    return pipeline, pipeline.guidance_parts.setdefault("smoother", nets["toast"])


def test_weights_that_are_loaded_anew_count(gpu):
    """In-place changes reach the recorded steps, and images are those of a fresh pipeline."""
    networks = {name: module.to(gpu) for name, module in test_fast.parts().items()}
    pipeline, smoother = random_pipeline(networks)
    before = pipeline(range(5), guidance="self")
    weights = {k: v.flip(0) for k, v in networks["model"].state_dict().items()}
    networks["model"].load_state_dict(weights)
    with torch.no_grad():
        smoother.top_down_transform.mul_(-3.0)
    after = pipeline(range(5), guidance="self")
    fresh = random_pipeline(networks)[0](range(5), guidance="self")
    assert not after.trajectory.tokens.equal(before.trajectory.tokens)
    assert after.trajectory.tokens.equal(fresh.trajectory.tokens)
    torch.testing.assert_close(after.images, fresh.images, atol=0.02, rtol=0)


def test_images_of_the_compiled_decoder(nets):
    """In bfloat16 pixels are off by little more than a grey level on average."""
    tokens = torch.arange(64, device=DEVICE).view(4, 16) % 20
    half, exact = (random_pipeline(nets, bf16)[0] for bf16 in (True, False))
    with torch.autocast("cuda", torch.bfloat16, enabled=half.bf16):
        images = half.tokenizer.decode(tokens)
    assert (images - exact.tokenizer.decode(tokens)).abs().mean() < 0.01


def test_too_little_memory_is_one_sentence(nets, tmp_path, capsys):
    pipeline, smoother = random_pipeline(nets)
    for name, part in (("tokenizer", pipeline.tokenizer), ("transformer", nets["model"]),
                       ("smoother", smoother)):  # fmt: skip
        part.save_pretrained(tmp_path / name)
    write_json(tmp_path / "smoother" / "training.json", {"smoothing": {"kind": "toast"}})
    write_card(tmp_path, pipeline.card)
    torch.cuda.empty_cache()
    _, whole = torch.cuda.mem_get_info()
    command = ["sample", "--model", str(tmp_path), "--device", "cuda", "--out",
               str(tmp_path / "grid.png"), "--guidance", "self", "--bf16"]  # fmt: skip
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / whole)
    try:
        assert main([*command, "--num", "20000", "--batch-size", "20000"]) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert capsys.readouterr().err.strip().endswith(TOO_BIG)
    assert main([*command, "--num", "10", "--batch-size", "5"]) == 0  # it goes on with less
    assert "10 of 10 images" in capsys.readouterr().out


CONFIG = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-3, warmup=2, ema=0.5)


def some_tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, (2, 48, 16), generator=generator).short(), torch.arange(48) % 5


def transformer_task():
    return TransformerTask(test_fast.network(0, replace(test_fast.CONFIG)), *some_tokens())


def smoother_task():
    nets = test_fast.parts()
    return SmootherTask(nets["toast"], nets["model"], *some_tokens(), torch.randn(20, 8))


@pytest.mark.parametrize("task", [transformer_task, smoother_task])
def test_a_training_step_in_bfloat16(task, tmp_path):
    if not has_bf16("cuda"):
        pytest.skip("this GPU has no bfloat16")
    made = task()
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    half, exact = (
        fit(made if bf16 else task(), replace(CONFIG, bf16=bf16), tmp_path / str(bf16), 0, DEVICE)
        for bf16 in (True, False)
    )
    assert half["device"] == torch.cuda.get_device_name()
    first, reference = (report["history"][0]["loss"] for report in (half, exact))
    assert first != reference and first == pytest.approx(reference, rel=0.03)
    moved = [(v.cpu() != before[k].cpu()).any() for k, v in made.model.state_dict().items()]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("task", [transformer_task, smoother_task])
def test_a_stopped_training_goes_on(task, tmp_path, monkeypatch):
    """Stopped after 3 of 6 steps and started again, it ends with the same weights."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    plain = replace(CONFIG, bf16=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, stopped, resumed = task(), task(), task()
        fit(whole, plain, tmp_path / "whole", 0, DEVICE)
        losses, calls = stopped.losses, []

        def until_the_fourth(*arguments):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return losses(*arguments)

        stopped.losses = until_the_fourth
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, plain, tmp_path / "part", 0, DEVICE)
        fit(resumed, plain, tmp_path / "part", 0, DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    want = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, want[key], atol=1e-5, rtol=1e-4)
