"""Exercises: generated from their solutions; checks that pass them and see through mistakes."""

import contextlib
import math
from statistics import mean, median, stdev

import nbformat
import pytest
import torch
import torch.nn.functional as F

from scripts import exercises as generator
from sgmgm.course import exercises, runner

from . import wrong_networks

FOLDER = runner.ROOT / "notebooks"
SOLUTIONS = runner.find_lessons([], FOLDER / "solutions")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(cell):
    return "solution" in cell.metadata.get("tags", [])


def run(path):
    """Execute a notebook's code in this process: what each check says, None where all is right."""
    names, said = {}, {}
    for cell in code(nbformat.read(path, as_version=4)):
        if not cell.source.startswith("exercises."):
            exec(cell.source, names)
            continue
        name = cell.source.removeprefix("exercises.").split("(")[0]
        try:
            said[name] = exec(cell.source, names)
        except exercises.NotYet as error:
            said[name] = str(error)
    return said


# --- the notebooks -----------------------------------------------------------------------------


def test_every_lesson_with_exercises_has_solutions():
    lessons = {path.name for path in runner.find_lessons([], FOLDER)}
    for path in SOLUTIONS:
        assert path.name in lessons
        assert f"exercises/{path.name}" in (FOLDER / path.name).read_text()
    pointing = {name for name in lessons if f"exercises/{name}" in (FOLDER / name).read_text()}
    assert pointing == {path.name for path in SOLUTIONS}


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_are_what_the_solutions_give(path):
    solution = nbformat.read(path, as_version=4)
    nbformat.validate(solution)
    written = FOLDER / "exercises" / path.name
    assert nbformat.read(written, as_version=4) == generator.exercise(solution), (
        "run `python -m scripts.exercises` and commit what it writes"
    )
    tasks = [cell.source for cell in solution.cells if "minutes)*" in cell.source]
    assert 2 <= len(tasks) <= 6 and len(tasks) == sum(map(tagged, code(solution)))
    for task in tasks:
        assert "*(easy" in task or "*(medium" in task or "*(hard" in task
        assert "<summary>Hint" in task


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_pass_and_stubs_fail(path, capsys):
    solved = run(path)
    assert len(solved) >= 2 and not any(solved.values()), solved
    assert capsys.readouterr().out.splitlines() == [f"{name}: right." for name in solved]
    stubs = run(FOLDER / "exercises" / path.name)
    assert stubs.keys() == solved.keys()
    for name, sentence in stubs.items():
        assert sentence == f"{name} returns None: write its body, and return the result."
    assert not capsys.readouterr().out


def spoiled(answer, how):
    """A solution's answer with one thing wrong."""
    if isinstance(answer, str):
        return answer + "?"
    if isinstance(answer, tuple):
        return tuple(spoiled(part, how) for part in answer)
    if isinstance(answer, list):
        return [spoiled(part, how) for part in answer] if how != "turned" else answer[::-1]
    if not isinstance(answer, torch.Tensor):
        return {"nothing": 0.0, "all alike": 1.0}.get(how, answer * 1.05)
    if answer.dtype == torch.bool:
        return ~answer if how in ("turned", "larger") else torch.zeros_like(answer)
    return {
        "nothing": torch.zeros_like(answer),
        "all alike": answer[:1].expand_as(answer) if answer.ndim else answer + 1,
        "turned": answer.roll(1, 0) if answer.ndim else -answer,
        "larger": answer * 1.05 if answer.is_floating_point() else answer.roll(1, -1),
    }[how]


@pytest.mark.parametrize("how", ["nothing", "all alike", "turned", "larger"])
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_check_rejects_spoiled_answers(path, how, capsys):
    names, passed = {}, []
    for cell in code(nbformat.read(path, as_version=4)):
        if not cell.source.startswith("exercises."):
            exec(cell.source, names)
            continue
        name = cell.source.removeprefix("exercises.").split("(")[0]
        right = names[name]
        with contextlib.suppress(exercises.NotYet):
            getattr(exercises, name)(lambda *a, right=right: spoiled(right(*a), how))
            passed.append(name)
    assert not passed


def test_a_stub_keeps_signature_and_docstring_only():
    source = 'def f(x):\n    """What."""\n    return x\n\n\n'
    source += 'def g(y):\n    """Two\n    lines."""\n    a = 1\n'
    names = {}
    exec(generator.stub(source), names)
    assert "return" not in generator.stub(source) and "a = 1" not in generator.stub(source)
    assert names["f"](1) is None and names["g"].__doc__ == "Two\n    lines."
    solution = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, metadata={"tags": ["solution"]})]
    )
    (stub,) = generator.exercise(solution).cells
    assert "return" not in stub.source and "solution" not in stub.metadata.get("tags", [])


def test_the_command_writes_the_exercises(tmp_path, capsys):
    (tmp_path / "solutions").mkdir()
    for path in SOLUTIONS[:3]:
        (tmp_path / "solutions" / path.name).write_bytes(path.read_bytes())
    for wanted, count in ((["01"], 1), ([], 3)):  # one alone; then all of them
        assert generator.main(wanted, tmp_path) == 0
        written = sorted(path.name for path in (tmp_path / "exercises").iterdir())
        assert len(written) == count and f"{count} notebooks" in capsys.readouterr().out
        for name in written:
            kept = (FOLDER / "exercises" / name).read_bytes()
            assert (tmp_path / "exercises" / name).read_bytes() == kept
    assert generator.main(["77"], tmp_path) == 2
    assert generator.main([], tmp_path / "none") == 2


# --- wrong answers -----------------------------------------------------------------------------


def chosen(table, tuning):
    return min(table.values(), key=lambda row: row[tuning])


def mean_but(row, tuning):
    return mean([value for seed, value in row.items() if seed != tuning])


def apart(a, b, spread):
    gap = abs(mean(a) - mean(b)) > spread(a) + spread(b)
    return gap and ("A" if mean(a) < mean(b) else "B")


def frame(side, width):
    hidden = torch.ones(side, side, dtype=torch.bool)
    hidden[width : side - width, width : side - width] = False
    return hidden.flatten()


def cosine_hidden(t, n):
    return max(1, round(math.cos(math.pi * t / 2) * n))


def places(n, hidden, generator):
    return torch.randperm(n, generator=generator) < hidden


def some_wrong(tokens, where, rate, generator, shift):
    return torch.where(
        (torch.rand(tokens.shape, generator=generator) < rate) & where, tokens + shift, tokens
    )


def corrupted(tokens, hidden, rate, codes, generator):
    chosen = (torch.rand(tokens.shape, generator=generator) < rate) & ~hidden
    shift = torch.randint(1, codes, tokens.shape, generator=generator)
    return torch.where(chosen, (tokens + shift) % codes, tokens)


def one_place(tokens, hidden, rate, codes, generator):
    chosen = (torch.rand(tokens.shape[1], generator=generator) < rate) & ~hidden
    shift = torch.randint(1, codes, tokens.shape, generator=generator)
    return torch.where(chosen, (tokens + shift) % codes, tokens)


def redrawn(tokens, hidden, rate, codes, generator):
    first, second = (torch.randint(codes, tokens.shape, generator=generator) for _ in range(2))
    other = torch.where(first == tokens, second, first)
    chosen = torch.rand(tokens.shape, generator=generator) < rate
    return torch.where(chosen & ~hidden, other, tokens)


def unseeded(tokens, hidden, rate, codes, generator):
    chosen = (torch.rand(tokens.shape) < rate) & ~hidden
    return torch.where(chosen, (tokens + torch.randint(1, codes, tokens.shape)) % codes, tokens)


def random_codes(tokens, hidden, rate, codes, generator):
    random = torch.randint(codes, tokens.shape, generator=generator)
    chosen = torch.rand(tokens.shape, generator=generator) < rate
    return torch.where(chosen & ~hidden, random, tokens)


def in_place(tokens, hidden, rate, codes, generator):
    tokens[~hidden] = 0
    return tokens


def each_loss(logits, tokens):
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def mean_loss(logits, tokens, where):
    return F.cross_entropy(logits[where], tokens[where])


def cosines(x, anchors):
    return F.cosine_similarity(x[:, None], anchors[:, None], dim=-1)


def switched(x, weight, change, on):
    return torch.where(on[:, None, None], x @ (weight + change).T, x @ weight.T)


def toast(x, a, b, blank, weights, values, down=reversed, step=lambda x, a: x @ a.T, chain=True,
          read=lambda old, new, b: new @ b.T, first=0, value=lambda v, h, td: v(h) + v(td),
          ask=lambda h, td: h, keep=1):  # fmt: skip
    """TOAST's second pass, with one part of it replaced."""
    signals, start = {}, x
    for i in down(range(len(a))):
        old = x if chain else start
        x = step(old, a[i])
        signals[i] = read(old, x, b[i])
    h = blank
    for i, v in enumerate(values):
        td = signals[len(a) - 1 - i if first else i]
        h = keep * h + weights(ask(h, td)) @ value(v, h, td)
    return h


def ranks(score):
    return score.argsort(1).argsort(1)


def overwritten(z, e):
    z.data = e.data
    return z


def perplexity_of(tokens):
    p = tokens.bincount() / tokens.numel()
    return float((-torch.xlogy(p, p).sum()).exp())


def pooled(images):
    share = images.flatten().bincount().double() / images.numel()
    return share[images].prod(1).sum()


def busy(steps, n):
    """The sampler's own rule, which keeps at least one token a step."""
    left = [n]
    for k in range(1, steps + 1):
        floor = math.floor(n * math.cos(math.pi * k / 2 / steps))
        left.append(max(0, min(left[-1] - 1, floor)))
    return [a - b for a, b in zip(left, left[1:], strict=False)]


def whole_blur(x, grid):
    mean = F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False)
    return mean.flatten(2).transpose(1, 2).reshape(x.shape)


def edge_blur(x):
    grid = F.pad(x.transpose(1, 2).unflatten(2, (4, 4)), (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(grid, 3, 1).flatten(2).transpose(1, 2)


def flat_blur(x):
    return (x.roll(1, 1) + x + x.roll(-1, 1)) / 3


def padded_blur(x):
    grid = x.transpose(1, 2).unflatten(2, (4, 4))
    return F.avg_pool2d(grid, 3, 1, 1).flatten(2).transpose(1, 2)


def ball_share(points, centres, k):
    radius = torch.cdist(centres, centres).kthvalue(k, dim=1).values
    return (torch.cdist(points, centres) <= radius).any(1).double().mean()


def covered(real, fake, k):
    radius = torch.cdist(real, real).kthvalue(k, dim=1).values
    return (torch.cdist(fake, real) <= radius).any(0).double().mean()


def flops(n, m, d, f):
    return 2 * (2 * n * d * d + m * (2 * d * d + 2 * d * f) + 2 * m * n * d)


def cfg(model, canvas, labels, none, s, rule=None):
    both = model(canvas.repeat(2, 1), torch.cat((labels, torch.full_like(labels, none))))
    plain, free = both.chunk(2)
    return rule(plain, free) if rule else plain + s * (plain - free)


def cfg_calls(model, canvas, labels, none, s):
    plain, free = model(canvas, labels), model(canvas, torch.full_like(labels, none))
    return plain + s * (plain - free)


def loop(plain, smooth, canvas, steps, scale, noise, rule=None, share=None, judge=None, m=None):
    """Guided decoding, with one part of it replaced."""
    first, codes = canvas, noise.shape[-1]
    count = (m or (lambda masked: masked.sum(1)))(first >= codes)
    for k in range(steps):
        masked = canvas >= codes
        known = share(first, canvas, k / steps) if share else (~masked).float().mean(1)
        s, p, q = scale(known)[:, None, None], plain(canvas), smooth(canvas)
        guided = rule(p, q, s) if rule else p + s * (p - q)
        tokens = (guided.log_softmax(-1) + noise[k]).argmax(-1)
        score = judge(p, guided, noise[k]) if judge else guided.log_softmax(-1)
        score = score.gather(-1, tokens[..., None])[..., 0].masked_fill(~masked, torch.inf)
        left = torch.as_tensor(count * math.cos(math.pi * (k + 1) / 2 / steps)).floor()
        kept = ranks(score) >= left.expand(len(canvas))[:, None]
        canvas = torch.where(kept & masked, tokens, canvas)
    return canvas


def two_ends(counts, distances, other):
    slope = (distances[0] - distances[-1]) / (1 / counts[0] - 1 / counts[-1])
    return distances[-1] + slope * (1 / other - 1 / counts[-1])


def spans(work, wait, clock, repeats, warm=0, before=True, after=True):
    """The times of calls, with or without what makes them true."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        if before:
            wait()
        begun = clock()
        work()
        if after:
            wait()
        times.append(clock() - begun)
    return times


def ratios(old, new, wait, clock, repeats, warm=1, middle=median, **how):
    for work in (old, new) * warm:
        work()
    rest = wait, clock, 1
    return middle(spans(old, *rest, **how)[0] / spans(new, *rest, **how)[0] for _ in range(repeats))


def first_rows(real, fake, count):
    return tuple(torch.arange(len(labels)) < count for labels in (real, fake))


def each_class(labels, counts):
    keep = torch.zeros(len(labels), dtype=torch.bool)
    for c, count in enumerate(counts):
        keep[(labels == c).nonzero()[:count]] = True
    return keep


def decided(rows, ours, rival, nfe, cost="nfe", choose=lambda table: chosen(table, 0),
            report=lambda row: [row[seed] for seed in row if seed], spread=stdev,
            gain=lambda a, b: 100 * (a / b - 1)):  # fmt: skip
    """A claim, with one of its rules broken."""
    scores = []
    for method in (ours, rival):
        table = {}
        for row in rows:
            if row["method"] == method and row[cost] == nfe:
                table.setdefault(row["tau"], {})[row["seed"]] = row["frechet"]
        scores.append(report(choose(table)))
    said = {"A": "wins", "B": "loses", False: "ties"}[apart(*scores, spread)]
    return said, gain(*map(mean, scores))


# check -> wrong answers, each with words that the message must hold
WRONG = {
    "saving": [
        (lambda side, n, k: side * side * 8 / (n * math.log2(k)), "three colours"),
        (lambda side, n, k: side * side * 24 / (n * k), "log2(K) bits"),
        (lambda side, n, k: n * math.log2(k) / (side * side * 24), "inverse"),
        (lambda side, n, k: side * side * 3 / n, "count bits"),
        (lambda side, n, k: side * side * 24 - n * math.log2(k), "times smaller, not"),
    ],
    "mask_tokens": [
        (lambda tokens, hidden, mask: torch.where(hidden, tokens, mask), "mask what should be"),
        (lambda tokens, hidden, mask: torch.where(hidden, 0, tokens), "yours holds [0, 0, 0]"),
        (lambda tokens, hidden, mask: tokens.masked_fill_(hidden, mask), "make a new one"),
        (lambda tokens, hidden, mask: torch.full_like(tokens, mask), "must stay as it is"),
        (lambda tokens, hidden, mask: tokens[~hidden], "shape"),
    ],
    "honest": [
        (lambda table, tuning: min(mean_but(row, tuning) for row in table.values()), "chance"),
        (lambda table, tuning: mean(chosen(table, tuning).values()), "leave it out"),
        (lambda table, tuning: median([v for s, v in chosen(table, tuning).items() if s != tuning]),
         "is best, and its other seeds give"),
        (lambda table, tuning: chosen(table, tuning)[tuning], "report the others"),
        (lambda table, tuning: 4.5, "you get 4.5"),
    ],
    "verdict": [
        (lambda a, b: "A" if mean(a) < mean(b) else "B", "is a tie"),
        (lambda a, b: "A" if min(a) > max(b) else "B" if max(a) < min(b) else "tie", "small dist"),
        (lambda a, b: "tie", "not overlap"),
        (lambda a, b: "A" if max(a) < min(b) else "B" if max(b) < min(a) else "tie", "not overlap"),
        (lambda a, b: a, "the answer is"),
        (lambda a, b: None, "write its body"),
        (lambda a, b: apart(a, b, stdev) or None, "or 'tie', not None"),
        (lambda a, b: apart(a, b, lambda x: (max(x) - min(x)) / 2) or "tie", "is a tie"),
    ],
    "claim": [
        (lambda *given: decided(*given, cost="steps"), "16 steps each"),
        (lambda *given: decided(*given, choose=lambda t: min(
            t.values(), key=lambda row: mean_but(row, 0))), "chose ours by the seeds"),
        (lambda *given: decided(*given, report=lambda row: list(row.values())), "contain seed 0"),
        (lambda *given: decided(*given, report=lambda row: [row[0], row[0]]), "the tuning seeds"),
        (lambda *given: decided(*given, gain=lambda a, b: 100 * (1 - a / b)), "is negative"),
        (lambda *given: decided(*given, gain=lambda a, b: 100 * (1 - b / a)), "not by ours"),
        (lambda *given: decided(*given, gain=lambda a, b: a / b - 1), "that is a share"),
        (lambda *given: decided(*given, gain=lambda a, b: 7), "you get 7.0 %"),
        (lambda *given: decided(*given, spread=lambda x: 0), "ties with 2.5 against 2.2"),
        (lambda *given: decided(*given)[0], "two things"),
    ],
    "border": [
        (lambda side, width: ~frame(side, width), "in-painting"),
        (lambda side, width: frame(side, width + 1), "masks 12 cells"),
        (lambda side, width: frame(side, width).roll(1), "other ones"),
        (lambda side, width: frame(side, width).view(side, side), "shape"),
    ],
    "nearest_code": [
        (lambda v, c: torch.cdist(v, c).argmax(1), "you chose code"),
        (lambda v, c: (v @ c.T).argmax(1), "away"),
        (lambda v, c: torch.cdist(v, c), "shape (20, 8) where (20,)"),
        (lambda v, c: c[torch.cdist(v, c).argmin(1)][:, 0], "torch.float32 where torch.int64"),
        (lambda v, c: torch.cdist(v, c).argmin(1) + 8, "8 codes"),
        (lambda v, c: torch.cdist(v, c).argmin(1) - 1, "yours go from -1"),
        (lambda v, c: torch.zeros(len(v)).long(), "you chose code 0"),
        (lambda v, c: torch.cdist(v, c, p=1).argmin(1), "you chose code"),
        (lambda v, c: (c.square().sum(1) - v @ c.T).argmin(1), "you chose code"),
        (lambda v, c: [0] * len(v), "returns a list"),
    ],
    "straight_through": [
        (lambda z, e: e, "it receives none"),
        (lambda z, e: z, "forward"),
        (lambda z, e: z + (e - z), "it receives 0"),
        (lambda z, e: e.detach(), "no gradient comes back"),
        (overwritten, "it overwrites z"),
        (lambda z, e: (z - z.detach()).mean(0) + e.detach(), "gradient unchanged"),
        (lambda z, e: z - z.detach() + e, "the codes e receive"),
    ],
    "perplexity": [
        (lambda t, k: len(t.unique()), "30, 1 and 1 times"),
        (lambda t, k: -sum(p * math.log(p) for p in [1 / 8] * 8), "is 8.00, yours 2.08"),
        (lambda t, k: (lambda p: (-(p * p.log()).sum()).exp())(
            t.flatten().bincount(minlength=k) / t.numel()), "0 log 0"),
        (lambda t, k: "many", "not a number"),
        (lambda t, k: mean(perplexity_of(row) for row in t), "is 8.00, yours 4.00"),
    ],
    "cosine_mask": [
        (lambda t, n, g: places(n, max(1, round((1 - t) * n)), g), "the cosine schedule masks 59"),
        (lambda t, n, g: ~places(n, cosine_hidden(t, n), g), "covers 0 of 64 tokens and keeps 64"),
        (lambda t, n, g: torch.arange(n) < cosine_hidden(t, n), "at random"),
        (lambda t, n, g: (torch.arange(n) < cosine_hidden(t, n)).roll(
            int(torch.randint(n, (1,), generator=g))), "side by side"),
        (lambda t, n, g: places(n, cosine_hidden(t, n), g.manual_seed(g.initial_seed())),
         "do not seed it anew"),
        (lambda t, n, g: places(n, cosine_hidden(t, 64), g), "from N"),
        (lambda t, n, g: places(64, cosine_hidden(t, n), g), "from N"),
        (lambda t, n, g: torch.zeros(n).bool().index_fill(
            0, torch.randperm(64, generator=g)[: cosine_hidden(t, n)], True), "from N"),
        (lambda t, n, g: torch.randperm(n) < cosine_hidden(t, n), "the same seed gives two masks"),
        (lambda t, n, g: places(n, round(math.cos(math.pi * t / 2) * n), g), "masks 1 and"),
        (lambda t, n, g: places(n, math.floor(max(1, math.cos(math.pi * t / 2) * n)), g),
         "t = 0.84 your mask covers 15 of 64 tokens and keeps 49, where the cosine schedule masks "
         "16 and keeps 48"),
    ],
    "masked_loss": [
        (lambda x, t, h: each_loss(x, t).mean(), "all positions"),
        (lambda x, t, h: each_loss(x, t)[~h].mean(), "visible positions"),
        (lambda x, t, h: each_loss(x, t)[h].sum(), "sum"),
        (lambda x, t, h: sum(each_loss(x, t)[i][h[i]].mean() for i in (0, 1)) / 2, "mean of means"),
        (lambda x, t, h: 7.0, "your loss is 7.000, the right one"),
    ],
    "one_step_chance": [
        (lambda images: 1.0, "BBBB and ABAB one step is right with probability 0.2963, not 1"),
        (lambda images: 1 / len(images), "not 0.3"),
        (pooled, "not 0.1875"),
        (lambda images: (images[:, None] == images[None]).double().mean(1).prod(1).mean(), "add"),
    ],
    "tokens_kept": [
        (lambda steps, n: [n // steps] * steps, "step 1 keeps 4"),
        (lambda steps, n: [n], "keep 4 numbers"),
        (lambda steps, n: [1] * steps, "keep 4 tokens in all; there are 16"),
        (lambda steps, n: n // steps, "returns a int, not a list of numbers"),
        (lambda steps, n: [math.nan] * steps, "not finite"),
        (lambda steps, n: [n / (steps + 1)] * (steps + 1), "a whole number of tokens"),
        (busy, "with T = 8 step 2 keeps 1 of 4"),
        (lambda steps, n: (lambda left: [a - b for a, b in zip(left, left[1:], strict=False)])(
            [round(n * math.cos(math.pi * k / 2 / steps)) for k in range(steps + 1)]),
         "rounded down"),
    ],
    "keep": [
        (lambda s, known, left: ranks(s) >= left, "known"),
        (lambda s, known, left: ranks(s.masked_fill(known, 88.7)) >= left, "whatever their score"),
        (lambda s, known, left: ranks(s.masked_fill(known, torch.inf)) < left, "True is what"),
        (lambda s, known, left: s.masked_fill(known, torch.inf).argsort(1) >= left, "rank is the"),
        (lambda s, known, left: torch.ones_like(known).scatter(
            1, s.masked_fill(known, torch.inf).argsort(1)[:, : left or None], False),
         "in row 0 10 positions stay masked, but left = 0"),
        (lambda s, known, left: (ranks(s.masked_fill(known, -9e9)) < s.shape[1] - left) | known,
         "low score"),
        (lambda s, known, left: ranks(s.masked_fill(known, torch.inf)) >= left + 1, "5 positions"),
    ],
    "compounding": [
        (lambda tau, steps: [tau * (1 - k / steps) for k in range(1, steps + 1)], "linear"),
        (lambda tau, steps: [tau * math.prod(1 - i / steps for i in range(k))
                             for k in range(1, steps + 1)], "step 1"),
        (lambda tau, steps: [tau], "4 temperatures, not 1"),
        (lambda tau, steps: tau, "returns a float, not a list of numbers"),
    ],
    "guide": [
        (lambda p, q, s: p + s * (p - q), "straight line through the probabilities"),
        (lambda p, q, s: q * (p / q) ** s / (q * (p / q) ** s).sum(-1, keepdim=True),
         "at s = 0 guided must be plain; yours is smooth"),
        (lambda p, q, s: p * (p / q) ** s, "add up to"),
        (lambda p, q, s: p.div_(q).log().mul_(s).softmax(-1), "make a new one"),
        (lambda p, q, s: p * (q / p) ** s / (p * (q / p) ** s).sum(-1, keepdim=True),
         "at s = -1 guided must be smooth."),
        (lambda p, q, s: (p + s * (p - q)).softmax(-1), "at s = 0 guided must be plain."),
        (lambda p, q, s: (p.log() + s * (p / q).log()).log_softmax(-1), "the logarithm of it"),
    ],
    "equal_temperature": [
        (lambda s, u: 1 / (1 + s), "for s = 1.5, u = 2 guidance"),
        (lambda s, u: 1 + s, "With u = inf smooth is uniform"),
        (lambda s, u: 1 / (1 + s - s * u) if u < 9 else 1 / (1 + s), "above 0"),
        (lambda s, u: -s, "above 0"),
        (lambda s, u: 1 / (1 + abs(s) * (1 - 1 / u)), "for s = -0.5, u = 2"),
    ],
    "classifier_free": [
        (lambda model, x, c, none, s: cfg_calls(model, x, c, none, s), "called 2 times"),
        (lambda model, x, c, none, s: cfg(model, x, c, 0, s), "the labels of your batch are"),
        (lambda model, x, c, none, s: cfg(model, x, c, none, s, lambda p, q: q + s * (p - q)),
         "other convention"),
        (lambda model, x, c, none, s: cfg(model, x, c, none, s, lambda p, q: q + s * (q - p)),
         "away from the class"),
        (lambda model, x, c, none, s: cfg(model, x, c, none, s, lambda p, q: p + s * (q - p)),
         "the other way"),
        (lambda model, x, c, none, s: cfg(model, x.flip(0), c, none, s), "the label of its image"),
        (lambda model, x, c, none, s: model(x, c), "your batch has 2 rows"),
    ],
    "guided_decode": [
        (lambda *given: loop(*given, rule=lambda p, q, s: p + s * (q - p)), "towards smooth"),
        (lambda *given: loop(*given, rule=lambda p, q, s: p), "no effect"),
        (lambda *given: loop(*given, rule=lambda p, q, s: q + s * (p - q)), "other convention"),
        (lambda *given: loop(*given, share=lambda first, x, r: (first < 5).float().mean(1)),
         "follows the first canvas"),
        (lambda *given: loop(*given, share=lambda first, x, r: torch.full((3,), r)), "not k / T"),
        (lambda *given: loop(*given, share=lambda first, x, r: (x < 5).float().mean().expand(3)),
         "of its own"),
        (lambda plain, smooth, x, steps, scale, noise: loop(
            plain, smooth, x, steps, scale, noise[:1].expand_as(noise)), "noise[k - 1]"),
        (lambda plain, smooth, x, steps, scale, noise: loop(
            plain, smooth, x, steps, scale, 0 * noise), "the most likely token"),
        (lambda *given: loop(*given, judge=lambda p, guided, noise: guided), "common scale"),
        (lambda *given: loop(*given, judge=lambda p, guided, noise: p.log_softmax(-1)),
         "not by plain's"),
        (lambda *given: loop(*given, judge=lambda p, guided, noise: guided.log_softmax(-1) + noise),
         "without the noise"),
        (lambda *given: loop(*given, judge=lambda p, guided, noise: -guided.log_softmax(-1)),
         "least confident"),
        (lambda *given: loop(*given, judge=lambda p, guided, noise: noise), "follow its tokens"),
        (lambda *given: loop(*given, m=lambda masked: 16), "floor(M cos(pi k / (2 T))) is 9"),
        (lambda plain, smooth, x, *given: loop(plain, lambda _: smooth(x), x, *given),
         "the same canvas as plain"),
        (lambda plain, smooth, x, *given: loop(plain, lambda y: plain(y), x, *given),
         "plain is asked 8 times"),
        (lambda plain, smooth, x, *given: loop(plain, smooth, torch.full_like(x, 5), *given),
         "a token that was given"),
    ],
    "box_blur": [
        (flat_blur, "position 3 reaches position 4"),
        (lambda x: whole_blur(x, x.unflatten(1, (4, 4)).flatten(1).reshape(len(x), -1, 4, 4)),
         "the codes are mixed up"),
        (edge_blur, "right in the middle, not at the edge"),
        (lambda x: whole_blur(x, x.transpose(1, 2).reshape(len(x), -1, 4, 4)), "the side from N"),
        (lambda x: x.mean(-1, keepdim=True).expand_as(x), "over the codes"),
        (padded_blur, "position 0 becomes 0.44"),
        (lambda x: x, "3 x 3"),
    ],
    "corrupt": [
        (lambda t, h, rate, k, g: some_wrong(t, h | ~h, rate, g, 1) % k, "masked token"),
        (random_codes, "at times the true one"),
        (in_place, "make a new one"),
        (one_place, "the same positions"),
        (redrawn, "at a rate of 100 %"),
        (lambda t, h, rate, k, g: corrupted(t, h, rate, 4, g), "with K = 5"),
        (lambda t, h, rate, k, g: some_wrong(t, ~h, rate, g, 1), "4 codes"),
        (lambda t, h, rate, k, g: some_wrong(t, ~h, 1 - rate, g, 1) % k, "are wrong, where 30 %"),
        (lambda t, h, rate, k, g: some_wrong(t, ~h, 0.3, g, 1) % k, "at a rate of 60 %"),
        (lambda t, h, rate, k, g: some_wrong(t, ~h, rate, g, 1) % k, "equally likely"),
        (unseeded, "come from the generator"),
    ],
    "select": [
        (lambda x, a: x[:, None] * cosines(x, a)[..., None], "clamp"),
        (lambda x, a: x[:, None] * (x @ a.T).clamp(0, 1).transpose(1, 2)[..., None], "dot product"),
        (lambda x, a: F.normalize(x, dim=-1)[:, None] * cosines(x, a).clamp(0, 1)[..., None],
         "length"),
        (lambda x, a: cosines(x, a).clamp(0, 1), "shape (2, 3, 5)"),
        (lambda x, a: (x[:, None] * cosines(x, a).clamp(0, 1)[..., None]).transpose(1, 2),
         "shape (2, 5, 3, 4) where (2, 3, 5, 4)"),
    ],
    "lora": [
        (lambda x, w, a, b, alpha, on: x @ w.T + x @ a.T @ b.T, "alpha is not used"),
        (lambda x, w, a, b, alpha, on: x @ w.T + alpha * (x @ a.T @ b.T), "divided by the rank"),
        (lambda x, w, a, b, alpha, on: x @ w.T + alpha / 2 * (x @ a.T @ b.T), "from the arguments"),
        (lambda x, w, a, b, alpha, on: switched(x, w, alpha / len(a) * b @ a, on), "large matrix"),
        (lambda x, w, a, b, alpha, on: alpha / len(a) * (x @ a.T @ b.T), "change nothing"),
        (lambda x, w, a, b, alpha, on: x @ w.T + alpha / len(a) * (x @ a.T @ b.T),
         "where `on` is False"),
        (lambda x, w, a, b, alpha, on: (x @ w.T + alpha / len(a) * (x @ a.T @ b.T))
         * on[:, None, None], "the weight itself must stay"),
        (lambda x, w, a, b, alpha, on: x @ w.T + alpha / len(a) * (x @ a.T @ b.T)
         * (on if on.all() else ~on)[:, None, None], "True is on"),
    ],
    "auxiliary_loss": [
        (lambda x, t, z: mean_loss(x, z.clamp_max(3), (z < 4) & (z != t)), "the true tokens"),
        (lambda x, t, z: mean_loss(x, t, z >= 4), "at the masked positions"),
        (lambda x, t, z: mean_loss(x, t, z != t), "[MASK] differs from the truth"),
        (lambda x, t, z: mean_loss(x, t, z < 4), "all visible"),
        (lambda x, t, z: mean_loss(x, t, z >= 0), "all positions"),
        (lambda x, t, z: each_loss(x, t)[(z < 4) & (z != t)].sum(), "the sum"),
        (lambda x, t, z: (each_loss(x, t) * ((z < 4) & (z != t))).mean(), "divide by all"),
        (lambda x, t, z: mean_loss(x, t, (z < 4) & (z != t)), "on a blank canvas"),
        (lambda x, t, z: sum(mean_loss(x[i], t[i], (z[i] < 4) & (z[i] != t[i])) / 3
                             for i in range(3)), "mean over images of means"),
    ],
    "fair_control": [
        (lambda method, push, s, what, table: ("plain", s), "nobody could say"),
        (lambda method, push, s, what, table: ("trained for long", s), "in wrong and steps"),
        (lambda method, push, s, what, table: ("LoRA", 1.125), "differs in adapter; in question"),
        (lambda method, push, s, what, table: ("half of them", 12.0), "beyond the measured scales"),
        (lambda method, push, s, what, table: ("no wrong tokens", s), "own scale"),
        (lambda method, push, s, what, table: ("no wrong tokens", 6.0), "the nearest measured"),
        (lambda method, push, s, what, table: ("no wrong tokens", 7.5), "not proportional"),
        (lambda method, push, s, what, table: ("no wrong tokens", 1 + 5 * 0.26 / 0.32),
         "take the two neighbours"),
        (lambda method, push, s, what, table: ("no wrong tokens", 5.2), "you return 5.2"),
        (lambda method, push, s, what, table: "no wrong tokens", "two things"),
        (lambda method, push, s, what, table: ("no wrong tokens", 4.8) if what == "wrong"
         else ("LoRA", 1.125), "interpolated as well"),
    ],
    "second_pass": [
        (lambda *given: toast(*given, down=lambda layers: layers), "the last layer's A"),
        (lambda *given: toast(*given, step=lambda x, a: x @ a), "x @ A.T for rows"),
        (lambda *given: toast(*given, chain=False), "one chain"),
        (lambda *given: toast(*given, read=lambda old, new, b: old @ b.T), "its own A"),
        (lambda *given: toast(*given, read=lambda old, new, b: new), "B is missing"),
        (lambda x, a, b, blank, *rest: toast(x, a, b, x, *rest), "from the blank canvas"),
        (lambda *given: toast(*given, first=-1), "the wrong layers"),
        (lambda *given: toast(*given, value=lambda v, h, td: v(h) + td), "pass through W_v"),
        (lambda *given: toast(*given, value=lambda v, h, td: v(h + td)), "its bias once"),
        (lambda *given: toast(*given, value=lambda v, h, td: v(td)), "the signal's alone"),
        (lambda *given: toast(*given, value=lambda v, h, td: v(h)), "no effect"),
        (lambda *given: toast(*given, ask=lambda h, td: h + td), "queries and keys"),
        (lambda *given: toast(*given, keep=0), "adds to its input"),
        (lambda *given: toast(*given, value=lambda v, h, td: v(h) - v(td)), "line by line"),
    ],
    "passes": [
        (lambda guidance, steps: steps, "cfg with T = 1 takes 2 passes, not 1"),
        (lambda guidance, steps: steps * (1 + (guidance != "none")), "no second prediction"),
        (lambda guidance, steps: steps * {"none": 1, "spatial": 1}.get(guidance, 2), "self+cfg"),
    ],
    "last_layer_flops": [
        (lambda n, m, d, f: flops(n, m, d, f) / 2, "two operations"),
        (lambda n, m, d, f: flops(n, m, d, f) - 4 * n * m * d, "without weights"),
        (lambda n, m, d, f: flops(n, m, d, f) - 2 * n * m * d, "two products"),
        (lambda n, m, d, f: flops(n, n, d, f), "all its tokens"),
        (lambda n, m, d, f: flops(n, m, d, f) - 4 * (n - m) * d * d, "keys and values"),
        (lambda n, m, d, f: flops(n, m, d, f) - 4 * m * (n - m) * d, "compared with all L"),
        (lambda n, m, d, f: 1.0, "FLOP, not 1"),
    ],
    "frechet_1d": [
        (lambda x, y: (x.mean() - y.mean()) ** 2, "only the means"),
        (lambda x, y: (x.mean() - y.mean()) ** 2 + (x.var() - y.var()) ** 2, "not variances"),
        (lambda x, y: (x.mean() - y.mean()).abs() + (x.std() - y.std()) ** 2, "means has to be"),
        (lambda x, y: (x.mean() - y.mean()) ** 2 + (x.std() - y.std()).abs(), "deviations has"),
        (lambda x, y: ((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2).sqrt(), "root"),
        (lambda x, y: 0, "yours is 0.00"),
    ],
    "extrapolate": [
        (lambda counts, distances, n: distances[-1], "over 1 / N"),
        (lambda counts, distances, n: (distances[0] - distances[1]) / (1 / 100 - 1 / 200), "slope"),
        (lambda counts, distances, n: sum(distances) / 4, "images give 2.000; you get"),
        (lambda counts, distances, n: 2 * distances[-1] - distances[-2], "infinitely many"),
        (lambda counts, distances, n: two_ends(counts, distances, n), "Use all points"),
        (lambda counts, distances, n: max(0, two_ends(counts, distances, n)), "Use all points"),
    ],
    "median_time": [
        (lambda work, wait, clock, n: median(spans(work, wait, clock, n)), "must not count"),
        (lambda *given: median(spans(*given, warm=1, after=False)), "wait before you read"),
        (lambda *given: median(spans(*given, warm=1, before=False)), "in the queue before"),
        (lambda *given: mean(spans(*given, warm=1)), "is the mean"),
        (lambda *given: min(spans(*given, warm=1)), "the fastest call"),
        (lambda *given: max(spans(*given, warm=1)), "the slowest call"),
        (lambda *given: sum(spans(*given, warm=1)), "all calls together"),
        (lambda *given: 2 * median(spans(*given, warm=1)), "Measure each call alone"),
    ],
    "speedup": [
        (lambda *given: ratios(*given, warm=0), "each needs a call more"),
        (lambda *given: ratios(*given, after=False), "those of the queue"),
        (lambda *given: 1 / ratios(*given), "it is old / new"),
        (lambda old, new, *given: median(spans(old, *given, warm=1))
         / median(spans(new, *given, warm=1)), "take turns"),
        (lambda *given: ratios(*given, middle=mean), "One call was disturbed"),
    ],
    "to_unit": [
        (lambda x: (x + 1) / 2, "for images in [-1, 1]"),
        (lambda x: (x - x.min()) / (x.max() - x.min()), "stretch of the batch"),
        (lambda x: torch.stack([(i - i.min()) / (i.max() - i.min()) for i in x]),
         "you stretch each image"),
        (lambda x: x.clamp(0, 1), "you clamp"),
        (lambda x: x if x.min() >= 0 else (x + 1) / 2, "[-0.5, 0.5] come back in [0.2"),
        (lambda x: x if x.min() >= 0 else (x + 1) / 2 if x.min() < -0.5 else x + 0.5,
         "images in [0, 255] come back in"),
        (lambda x: x.mul_(0.5), "make a new one"),
    ],
    "same_classes": [
        (lambda real, fake: first_rows(real, fake, len(fake)), "must occur equally often"),
        (lambda real, fake: (real >= 0, fake >= 0), "[100, 100, 100] times among the reals"),
        (lambda real, fake: (each_class(real, [20] * 3), each_class(fake, [20] * 3)),
         "more could be kept, [100, 60, 20]"),
        (lambda real, fake: (real < 0, fake < 0), "too few"),
        (lambda real, fake: each_class(real, [100, 60, 20]), "two things"),
        (lambda real, fake: (real[:180], fake[:180]), "shape (180,) where (300,)"),
    ],
    "coverage": [
        (lambda real, fake, k: ball_share(fake, real, k + 1), "that is precision"),
        (lambda real, fake, k: ball_share(real, fake, k + 1), "that is recall"),
        (lambda real, fake, k: covered(real, fake, k), "k - 1"),
        (lambda real, fake, k: covered(real, fake, k + 2), "k + 1"),
        (lambda real, fake, k: 1.0, "you get 1.000"),
        (lambda real, fake, k: covered(real, fake, 4), "with k = 2"),
    ],
}  # fmt: skip
WRONG |= wrong_networks.WRONG


def test_every_check_has_wrong_answers():
    called = {name for path in SOLUTIONS for name in run(path)}
    assert called == WRONG.keys() and all(len(wrong) >= 2 for wrong in WRONG.values())
    own = vars(exercises).items()
    checks = {n for n, f in own if getattr(f, "__module__", "").startswith(exercises.__name__)}
    assert checks - {"NotYet"} == called


@pytest.mark.parametrize(
    "name, wrong, words",
    [(name, wrong, words) for name, cases in WRONG.items() for wrong, words in cases],
)
def test_wrong_answers_are_explained(name, wrong, words):
    with pytest.raises(exercises.NotYet) as found:
        getattr(exercises, name)(wrong)
    sentence = str(found.value)
    assert words in sentence, sentence
    assert found.value._render_traceback_() == [f"Not yet: {sentence}"]
