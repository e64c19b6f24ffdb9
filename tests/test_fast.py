import inspect
import warnings
from contextlib import nullcontext
from functools import lru_cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgmgm import fast, pipeline, smoothing
from sgmgm.guidance import GUIDANCES, make_guidance
from sgmgm.pipeline import Pipeline
from sgmgm.sampling import ORDERS, decode, generators_for, prepare
from sgmgm.smoothing import LoraSmoother, ToastSmoother
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils import devices
from sgmgm.utils.errors import InputError

from .accelerated import Accelerated

CONFIG = TransformerConfig(16, 32, 3, 4, 48, 20, 5, dropout=0.1)


def network(seed, config=CONFIG):
    torch.manual_seed(seed)
    model = MaskedTransformer(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def disturbed(module, amount=0.3):
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(amount * torch.randn_like(parameter))
    return module.eval()


def parts(layers=3):
    config = TransformerConfig(16, 32, layers, 4, 48, 20, 5, dropout=0.1)
    model = network(0, config)
    return {
        "model": model,
        "weak": network(1, TransformerConfig(16, 16, 1, 2, 24, 20, 5)),
        "toast": disturbed(ToastSmoother.for_transformer(model, tg_factor=3)),
        "toast with class": disturbed(
            ToastSmoother.for_transformer(model, tg_factor=3, keep_class=True)
        ),
        "lora": disturbed(LoraSmoother(model, rank=2)),
    }


@pytest.fixture(scope="module")
def deep():
    return parts()


VARIANTS = [(name, "toast") for name in GUIDANCES] + [
    (name, smoother) for name in ("self", "self+cfg") for smoother in ("toast with class", "lora")
]


def both(found, name, smoother, batch=6, dtype=torch.float32, **options):
    """Trajectories of `sampling.decode` and of the fast one, for the same seeds."""
    model = found["model"]
    guidance = make_guidance(name, model, 1.3, options.pop("scale_schedule", "constant"),
                             weak=found["weak"], smoother=found[smoother])  # fmt: skip
    labels = torch.arange(batch) % 5
    canvas = options.pop("canvas", model.blank.expand(batch, -1))
    settings = {"steps": 6, "temperature": 4.0} | options
    return [
        function(
            given, labels, canvas, generators=generators_for(range(10, 10 + batch)), **settings
        )
        for function, given in (
            (decode, guidance),
            (fast.decode, fast.FastGuidance(guidance, dtype)),
        )
    ]


def assert_same(slow, quick):
    assert slow.tokens.equal(quick.tokens) and slow.canvases.equal(quick.canvases)
    assert slow.sampled.equal(quick.sampled) and slow.kept.equal(quick.kept)
    torch.testing.assert_close(slow.confidence, quick.confidence, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name, smoother", VARIANTS)
def test_the_same_tokens_as_decode(name, smoother, layers, deep):
    assert_same(*both(deep if layers == 3 else parts(1), name, smoother))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("remask_known", [False, True])
def test_the_same_for_every_order_and_with_given_tokens(order, remask_known, deep):
    canvas = deep["model"].blank.repeat(6, 1)
    canvas[1, :5], canvas[2, 3], canvas[4] = 7, 0, torch.arange(16)
    slow, quick = both(deep, "self", "toast", order=order, canvas=canvas, steps=5,
                       remask_known=remask_known, temperature=30.0)  # fmt: skip
    assert_same(slow, quick)
    full = canvas[4:5].expand(6, -1)
    assert both(deep, "none", "toast", canvas=full, order=order)[1].tokens.equal(full)


@pytest.mark.parametrize(
    "options", [{"schedule": "linear"}, {"anneal": "compounding"}, {"steps": 1}, {"steps": 20},
                {"scale_schedule": "interval"}, {"batch": 1}]
)  # fmt: skip
def test_the_same_for_other_settings(options, deep):
    assert_same(*both(deep, "self", "toast", **options))


def test_another_guidance_brings_its_scale_and_schedule(deep):
    """The networks of a fast guidance are made once: only scale and schedule are taken over."""
    kinds = (1.3, "constant"), (4.0, "linear")
    first, other = (make_guidance("cfg", deep["model"], *kind) for kind in kinds)
    guided = fast.FastGuidance(first, torch.float32).adopt(other)
    labels, canvas = torch.arange(6) % 5, deep["model"].blank.expand(6, -1)
    slow, quick, before = (
        function(each, labels, canvas, steps=6, generators=generators_for(range(6)))
        for function, each in ((decode, other), (fast.decode, guided), (decode, first))
    )
    assert_same(slow, quick)
    assert not slow.tokens.equal(before.tokens)


def test_bfloat16_predicts_nearly_the_same(deep):
    canvas = deep["model"].blank.repeat(3, 1)
    canvas[:, :7] = torch.arange(7)
    at = torch.arange(7, 16).expand(3, -1)
    labels = torch.tensor([0, 4, 2])
    with torch.no_grad():
        for name, smoother in VARIANTS:
            guidance = make_guidance(name, deep["model"], 1.0, weak=deep["weak"],
                                     smoother=deep[smoother])  # fmt: skip
            exact = guidance(canvas, labels)[:, 7:].softmax(-1)
            half = fast.FastGuidance(guidance, torch.bfloat16)(canvas, labels, at)
            assert half.dtype == torch.float32 and half.shape == (3, 9, 20)
            error = (half.softmax(-1) - exact).abs().sum(-1) / 2  # total variation
            assert 0 < error.mean() < 0.06, name


def test_logits_that_are_not_finite_name_the_step(deep):
    class Broken(fast.FastGuidance):
        calls = 0

        def __call__(self, canvas, labels, at):
            self.calls += 1
            logits = super().__call__(canvas, labels, at)
            return logits * (float("nan") if self.calls == 3 else 1)

    model = deep["model"]
    guided = Broken(make_guidance("none", model), torch.float32)
    with pytest.raises(InputError, match="logits of step 3 hold NaN or infinity"):
        fast.decode(guided, torch.arange(2), model.blank.expand(2, -1), 5)


class HostWatch(TorchDispatchMode):
    """Refuses every operation that touches a tensor of the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, out)):
            assert not isinstance(each, torch.Tensor) or each.device.type == "cuda", function
        return out


def test_no_step_waits_for_the_host(monkeypatch):
    """On CUDA a look at a value would break the recording; tensors without data cannot be read."""
    monkeypatch.setattr(fast.copy, "deepcopy", lambda module: module)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_: module)
    monkeypatch.setattr(MaskedTransformer, "_init", lambda *_: None)
    monkeypatch.setattr(fast, "can_compile", lambda: False)
    # constants are kept, but not these, which hold no data
    monkeypatch.setattr(smoothing, "blur_matrix", lru_cache(smoothing.blur_matrix.__wrapped__))
    size = {"size": (5, 2, 6, 16), "dtype": torch.int32}
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            model = MaskedTransformer(CONFIG).eval()
            toast = ToastSmoother.for_transformer(model).eval()
            canvas, labels = torch.zeros(6, 16).long(), torch.zeros(6).long()
            counts = torch.zeros(5, 17).long()
            inputs = (labels, canvas, torch.zeros(**size), counts)
        for name in GUIDANCES:
            guidance = make_guidance(name, model, weak=model, smoother=toast)
            guided = fast.FastGuidance(guidance, torch.float32)
            guided(canvas, labels, canvas)  # the first runs copy constants to the GPU
            # the order acts after the guidance: one of them shows all orders
            for order in ("confidence", "random", "remask")[: 3 if name == "self" else 1]:
                settings = ((16, 14, 12, 8, 3), (3.0, 2.0, 1.0, 0.5, 0.0), order, True)
                with HostWatch():
                    trajectory, finite = fast.run(guided, *inputs, *settings)
                assert trajectory.tokens.device.type == finite.device.type == "cuda"
                assert trajectory.tokens.shape == (6, 16) and finite.shape == (5,)
        with pytest.raises(DataDependentOutputException):
            bool(finite.all())
        with HostWatch(), pytest.raises(AssertionError, match="aten"):
            torch.zeros(3).to("cuda")


def test_all_layers_compile_to_few_graphs(deep):
    """No break inside a layer, and no graph of its own for each layer or number of positions."""
    counter = CompileCounter()
    layers = [fast.FastLayer(each, torch.float32) for each in deep["model"].transformer_layers]
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, fast.FusedLinear):
                part.packed = None  # as on CUDA, for which layers are compiled
        layer.compile(backend=counter, fullgraph=True)
    with torch.no_grad():
        x = torch.randn(4, 17, 32)
        for width in (15, 14, 12, 8, 3):
            at = torch.arange(width).expand(4, -1)
            for layer in layers[:-1]:
                layer(layer(x), x)
            layers[-1](x, at=at)
            layers[-1](x, x, at)
    assert 0 < counter.frame_count <= 6  # top-down or not; all, some, or any positions


TINY = TokenizerConfig(
    resolution=16,
    hidden_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    num_embeddings=16,
    quantized_embed_dim=8,
    norm_groups=4,
)


@pytest.mark.parametrize("able", [False, True])
def test_a_prepared_decoder_gives_the_same_images(able, monkeypatch):
    tokenizer = VQTokenizer(TINY).eval()
    tokens = torch.arange(64).view(1, 64) % TINY.num_embeddings
    before = tokenizer.decode(tokens)
    asked = []
    monkeypatch.setattr(fast, "can_compile", lambda: able)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self))
    fast.prepare_decoder(tokenizer.decoder)
    assert asked == [tokenizer.decoder] * able
    weights = [p for p in tokenizer.decoder.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    torch.testing.assert_close(tokenizer.decode(tokens), before, rtol=1e-4, atol=1e-4)


def test_where_nothing_can_be_compiled_one_sentence_says_why(monkeypatch):
    real = torch.ones
    monkeypatch.setattr(torch, "ones", lambda n, device: real(n))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert fast.can_compile.__wrapped__()

    def fail(function):
        raise RuntimeError("Failed to find C compiler.\nPlease set CC.")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.warns(UserWarning, match=r"here \(Failed to find C compiler\.\): the fast path"):
        assert not fast.can_compile.__wrapped__()


def test_without_bfloat16_the_pipeline_computes_in_float32(monkeypatch):
    """Most laptops have none, and software bfloat16 is many times slower than float32."""
    for module in (fast, pipeline):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    plain, quick = (Pipeline.from_pretrained("sprites", "cpu", bf16) for bf16 in (False, True))
    for scale in (0.0, 3.0):  # the fast form of a guidance is kept for all scales
        options = {"steps": 3, "guidance": "self", "scale": scale}
        want, drawn = (each([0, 3], **options) for each in (plain, quick))
        assert torch.equal(want.trajectory.tokens, drawn.trajectory.tokens)
        torch.testing.assert_close(want.images, drawn.images)


def test_it_is_said_once_that_bfloat16_is_missing(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    devices.has_bf16.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no bfloat16 on this cpu: float32") as said:
            assert not devices.has_bf16("cpu") and not devices.has_bf16("cpu")
        assert len(said) == 1
    finally:
        devices.has_bf16.cache_clear()


@pytest.mark.parametrize("machine, able", [("x86_64", False), ("AMD64", False), ("arm64", True)])
def test_emulated_bfloat16_does_not_count(machine, able, monkeypatch):
    """What mkldnn supports on AVX-512 alone is slower than float32."""
    monkeypatch.setattr(devices.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with warnings.catch_warnings(action="ignore"):
        assert devices.has_bf16.__wrapped__("cpu") == able
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert devices.has_bf16.__wrapped__("cpu")


def test_matrices_are_folded_where_there_is_float64(deep):
    """MPS has none; a fold in float32 would not give the same tokens."""
    weight = deep["toast"].decoders[0].linear.weight
    there = weight.detach().as_subclass(Accelerated)
    with pytest.raises(TypeError, match="MPS"):
        there.double()
    assert type(fast.exact(there)) is torch.Tensor and fast.exact(there).equal(weight.double())
    # nothing else in the module computes in float64
    source = inspect.getsource(fast)
    assert source.count("double()") == 1 and "torch.float64" not in source


def test_a_merged_adapter_has_no_fast_form():
    found = parts(1)
    found["lora"].peft.merge_adapter()
    with pytest.raises(InputError, match="adapter was merged into the weights"):
        fast.FastGuidance(make_guidance("self", found["model"], smoother=found["lora"]))


class Recorder:
    """Stands for `torch.cuda`: a recording that fails."""

    def __getattr__(self, name):
        return lambda *args, **options: nullcontext()

    def Stream(self):  # noqa: N802
        return self

    def current_stream(self):
        return self

    def graph(self, graph):
        raise RuntimeError("operation not permitted")


@pytest.fixture
def trajectory(deep):
    """A guidance, what `run` takes, and what it gives."""
    model = deep["model"]
    guided = fast.FastGuidance(make_guidance("none", model), torch.float32)
    canvas, noise = model.blank.expand(2, -1), torch.zeros(3, 2, 2, 16, dtype=torch.int32)
    counts = torch.arange(17).expand(3, -1).clone()
    counts[:, 16] = torch.tensor([10, 5, 0])
    inputs = torch.arange(2), canvas, noise, counts
    settings = (16, 10, 5), (2.0, 1.0, 0.0), "confidence", False
    with torch.no_grad():
        yield guided, inputs, settings, fast.run(guided, *inputs, *settings)[0].tokens


class NoRoom(Recorder):
    """A recording for which there is no memory."""

    def graph(self, graph):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_recording_without_memory_is_no_other_failure(trajectory, monkeypatch):
    """It ends in the command's sentence, and the guidance is as it was."""
    guided, inputs, settings, _ = trajectory
    monkeypatch.setattr(fast.torch, "cuda", NoRoom())
    with pytest.raises(torch.OutOfMemoryError):
        guided.replay(inputs, settings)
    assert guided.records and not guided.graphs and guided.guidance.scale == 1.0


def test_a_recording_that_fails_is_said_and_done_without(trajectory, monkeypatch):
    guided, inputs, settings, want = trajectory
    monkeypatch.setattr(fast.torch, "cuda", Recorder())
    with pytest.warns(UserWarning, match="no CUDA graph: operation not permitted"):
        found, finite = guided.replay(inputs, settings)
    assert not guided.records and finite.all() and torch.equal(found.tokens, want)


class Replays:
    """Stands for a CUDA graph: computes from its inputs whenever it is replayed."""

    def __init__(self, guided, mine, settings):
        self.guided, self.mine, self.settings = guided, mine, settings
        self.results = fast.run(guided, *mine[:-1], *settings)

    def replay(self):
        self.guided.guidance.scale = self.mine[-1]
        trajectory, finite = fast.run(self.guided, *self.mine[:-1], *self.settings)
        for old, new in zip(
            (*self.results[0], self.results[1]), (*trajectory, finite), strict=True
        ):
            old.copy_(new)


def test_one_recording_serves_smaller_batches_and_every_scale(deep, monkeypatch):
    """A job's last batch is smaller, and a slider moves the scale: neither records anew."""
    model = deep["model"]
    guidance = make_guidance("cfg", model, 1.0)
    guided = fast.FastGuidance(guidance, torch.float32)
    labels, steps = torch.arange(4), 4
    taus, keys, counts = prepare(
        labels, model.blank.expand(4, -1), steps, "cosine", 3.0, "linear", "confidence", None
    )
    settings = ((16, *counts[:-1, 16].tolist()), tuple(taus), "confidence", False)
    inputs = (labels, model.blank.repeat(4, 1), keys, counts)
    mine = [x.clone() for x in (*inputs, torch.tensor(1.0))]
    with torch.no_grad():
        graph = Replays(guided, mine, settings)
        key = (torch.Size([16]), torch.Size([steps, 2]), settings, guided.guidance.weight)
        guided.graphs = {key: (graph, mine, graph.results)}
        monkeypatch.setattr(fast.torch, "cuda", None)  # a new recording would fail
        for count, scale in ((4, 1.0), (3, 1.0), (1, 2.5), (4, 2.5)):
            guided.adopt(make_guidance("cfg", model, scale))
            some = (labels[:count], inputs[1][:count], keys[:, :, :count], counts)
            found, finite = guided.replay(some, settings)
            plain = fast.FastGuidance(make_guidance("cfg", model, scale), torch.float32)
            want, _ = fast.run(plain, *some, *settings)
            assert finite.all() and found.tokens.equal(want.tokens)
            assert found.kept.equal(want.kept)
        with pytest.raises(AttributeError):  # a size that comes again gets its own recording
            few = (labels[:2], inputs[1][:2], keys[:, :, :2], counts)
            for _ in range(2):
                guided.replay(few, settings)
    with pytest.raises(AttributeError):  # other settings are recorded
        guided.replay(inputs, (settings[0], (1.0, 1.0, 1.0, 0.0), *settings[2:]))


def test_weights_that_change_are_not_ignored():
    """The fast form is made anew when the transformer or the smoother was trained on."""
    pipe = Pipeline.from_pretrained("sprites", "cpu", bf16=True)
    before = pipe([0], steps=2, guidance="self").trajectory.tokens
    with torch.no_grad():
        pipe.guidance_part("smoother").top_down_transform.mul_(-3.0)
    after = pipe([0], steps=2, guidance="self", scale=3.0).trajectory.tokens
    slow = Pipeline.from_pretrained("sprites", "cpu")
    with torch.no_grad():
        slow.guidance_part("smoother").top_down_transform.mul_(-3.0)
    assert after.equal(slow([0], steps=2, guidance="self", scale=3.0).trajectory.tokens)
    assert not after.equal(before)
