"""The records as rows, and the numbers that the prose takes from them."""

from math import log
from statistics import mean, stdev

from sgmgm.evidence.results import (
    FOLDER,
    hyperparameters,
    kind,
    preferred,
    reported,
    trainings,
)
from sgmgm.evidence.sweep import MAIN, read_records
from sgmgm.pipeline import SHIPPED
from sgmgm.utils.files import read_json

NAMES = "cifar10", "fashion-mnist", "sprites"
ROWS, TUNED = zip(*(reported(FOLDER / f"sweep-{name}.jsonl") for name in NAMES), strict=True)
C, F, S = BEST = [preferred(rows) for rows in ROWS]  # by method
SELF, NONE = F["self"], F["none"]
LARGE = preferred(reported(FOLDER / "large-fashion-mnist.jsonl")[0])
for rows, file in (
    (F, "sweep-fashion-mnist"),
    (LARGE, "large-fashion-mnist"),
    (C, "sweep-cifar10"),
):
    for name in ("precision", "density", "coverage"):  # by the second extractor: no table has them
        for row in rows.values():
            same = [r["second"][name] for r in read_records(FOLDER / f"{file}.jsonl")
                    if (r["settings"], r["num"]) == (row["settings"], row["num"])]  # fmt: skip
            row[f"second {name}"] = mean(same), stdev(same)
OLD, OLD_TUNED = reported(FOLDER / "earlier-fashion-mnist.jsonl")  # bfloat16, unequal grids
OLD_SELF, OLD_NONE = (preferred(OLD)[each] for each in ("self", "none"))
PUSHES, TUNED_PUSHES = reported(FOLDER / "controls-fashion-mnist.jsonl")
PUSHES, STRENGTH = preferred(PUSHES), TUNED_PUSHES[0]["strength"]
ORDERS, TUNED_ORDERS = reported(FOLDER / "orders-fashion-mnist.jsonl")
ORDERS = {(row["settings"]["guidance"], row["settings"]["order"]): row for row in ORDERS}
AGES = preferred(reported(FOLDER / "generators-fashion-mnist.jsonl")[0])
AGES = [[AGES[f"{name} (generator, {steps} steps)"] for name in ("self", "none")]
        for steps in (625, 1250, 2500)]  # fmt: skip
SMOOTHERS, CIFAR_SMOOTHERS = (
    {name[16:-1]: row for name, row in preferred(reported(
        FOLDER / f"smoothers-{name}.jsonl")[0]).items()}  # "rate 60", ...
    for name in NAMES[1::-1])  # fmt: skip
JOINT = {row["settings"]["guidance"]: row for row in trainings("fashion-mnist")}  # over three
ANEW = [r["weights"] for r in read_records(FOLDER / "trainings-fashion-mnist.jsonl")]  # in turn
ANEW = sorted(reported(FOLDER / "trainings-fashion-mnist.jsonl")[0],
              key=lambda row: ANEW.index(row["weights"]))  # fmt: skip
SINGLE = {
    name: [F[name], *(row for row in ANEW if row["settings"] == F[name]["settings"])]
    for name in JOINT
}  # a row for each training
OTHER = preferred(reported(FOLDER / "ablation-fashion-mnist.jsonl")[0])
OTHER = {name[6:-1].removeprefix("smoother-"): row for name, row in OTHER.items()}
HEAT = read_records(FOLDER / "temperature-fashion-mnist.jsonl")
OWN, LOCAL, FIRST, LONG, NAMED, VOCABULARY, SETS = (
    read_json(FOLDER / f"{name}.json") for name in (
        "own-images", "tokenizer-local-cifar10", "tokenizer-cifar10", "generator-trials-cifar10",
        "named", "vocabulary-cifar10", "tokenizer-local-other-sets"))  # fmt: skip
PLAIN, GUIDED = (dict(zip(*hyperparameters(NAMES[1])["network passes"][name], strict=True))
                 for name in ("none", "self"))  # fmt: skip


def cut(a, b, score="frechet"):
    """By how many per cent a row's score is below another's."""
    return 100 * (1 - a[score][0] / b[score][0])


def at_an_edge(row, tuning):
    """Whether a best setting has the least or the most of what was tried for its method."""
    tried = [r["settings"] for r in tuning if kind(r) == kind(row)]
    tried = [s for s in tried if s["anneal"] == row["settings"]["anneal"]]
    values = {key: {s[key] for s in tried} for key in ("scale", "temperature")}
    return any(row["settings"][k] in (min(v), max(v)) for k, v in values.items() if len(v) > 1)


def one(rows, nfe=16, guidance="self", **settings):
    """The row, or the scores of the tuning, with these settings."""
    same = (r for r in rows if kind(r)[:2] == (guidance, nfe))
    (row,) = (r for r in same if settings.items() <= r["settings"].items())
    return row.get("scores", row)


def two(row, score="frechet"):
    return f"{row[score][0]:.2f}"


EIGHT_STEPS = one(ROWS[2], 8, "none")
EIGHT_CIFAR = one(ROWS[0], 8, "none")
(LONGER,), LONGER_TUNED = reported(FOLDER / "ablation-sprites.jsonl")  # another smoother
EDGES = sum(at_an_edge(r[n], t) for r, t in zip(BEST, TUNED, strict=True) for n in MAIN)
OTHER_BLUR = one(ROWS[0], guidance="spatial", scale=0.5)
NEAR = one(ROWS[0], 15, "self+cfg", scale=0.5), one(ROWS[0], guidance="cfg", scale=1)
RIVALS = [F[each] for each in ("cfg", "sag", "spatial", "spatial-embeddings")]
STEPS = LONG["longest"]
HALF_PRECISION = one(OLD, temperature=4, anneal="linear", order="confidence")
RIGHT = [r["right"] for r in NAMED["named_rightly_of_40"] if r["model"] == "cifar10"][::-1]
SECOND = [read_json(SHIPPED / "second" / n / "training.json") for n in ("cifar10", "fashion-mnist")]
(SHIPS,) = (each for each in read_json(FOLDER / "extractors.json")
            if (each["model"], each["images"]) == ("cifar10", "rebuilt"))  # fmt: skip
ARMS = LOCAL["arms"][0] | FIRST["arms"][0], *LOCAL["arms"][2:5], LOCAL["arms"][5] | SHIPS
ARMS = [f"{arm['psnr']:.2f} | {arm['classifier']['frechet']:.2f} | {arm['second']['frechet']:.2f}"
        for arm in ARMS]  # fmt: skip
WIDE, EIGHT = "wide window, shipped before", "window 8, shipped now"
CLOTHES = SETS["fashion-mnist"]
SPRITES = SETS["window_8"]["sprites, longer"]
SAMPLED = {each: min(SPRITES["samples"][each], key=lambda row: row["frechet"])
           for each in (WIDE, EIGHT)}  # fmt: skip
SAID = {  # page: the parts of its sentences that have numbers, as the records make them
    "README.md": [
        f"{EDGES} of 15 are still at an edge",
        f"against plain sampling with 8 steps by only {cut(C['self'], EIGHT_CIFAR):.0f} %",
        f"by {cut(C['cfg'], C['self']):.0f} % at less than a third of the recall, or by "
        f"{cut(NEAR[1], C['self']):.0f} % at nearly the same",
    ],
    "docs/results.md": [
        f"removes {cut(SELF, NONE):.0f} % of the best unguided distance by the classifier and "
        f"{cut(SELF, NONE, 'second frechet'):.0f} % by the second extractor",
        f"15 best settings, {EDGES} are at an edge",
        "with 10,000 images it is {:.0f} % and {:.0f} %".format(
            *(cut(LARGE["self"], LARGE["none"], score) for score in ("frechet", "second frechet"))),
        "ties with it by the classifier and removes "
        f"{cut(F['cfg'], NONE, 'second frechet'):.0f} % by the second extractor",
        "removes {:.0f} % of the unguided distance by the classifier and {:.0f} % by the second "
        "extractor".format(*(cut(JOINT["self"], JOINT["none"], score)
                             for score in ("frechet", "second frechet"))),
        "Classifier-free guidance ties with plain sampling by the classifier, and removes "
        f"{cut(JOINT['cfg'], JOINT['none'], 'second frechet'):.0f} % by the second",
        "plain sampling on Fashion-MNIST by the classifier, and removes "
        f"{cut(F['self (smoother-lora)'], NONE, 'second frechet'):.0f} %",
        f"its distance is {-cut(S['self (smoother-lora)'], S['none']):.0f} % larger than that",
        "autoguidance ties by the classifier and removes "
        f"{cut(C['auto'], EIGHT_CIFAR, 'second frechet'):.0f} % by the second extractor",
        "distance is {:.0f} % below that of plain sampling by the classifier and {:.0f} % by "
        "the second extractor, but both".format(
            *(cut(ORDERS["self", "random"], ORDERS["none", "random"], score)
              for score in ("frechet", "second frechet"))),
        "there were {} for self-guidance in random order and {} in Halton order, and {} for plain "
        "sampling in each".format(*(
            sum((r["settings"]["guidance"], r["settings"]["order"]) == of for r in TUNED_ORDERS)
            for of in (("self", "random"), ("self", "halton"), ("none", "random")))),
        "by the second extractor it removes "
        f"{cut(SMOOTHERS['1200 steps'], NONE, 'second frechet'):.0f} %, as much as the two before",
        "its distance is {:.0f} % below that of TOAST and {:.0f} % below that of plain".format(
            *(cut(C["self (smoother-lora)"], C[name]) for name in ("self", "none"))),
        "`sharpened` are {:.0f} to {:.0f} % better than plain sampling".format(
            *(pick(cut(C[n], C["none"]) for n in ("sag", "spatial-embeddings", "sharpened"))
              for pick in (min, max))),
        "the class is right less often ({:.0f} % against {:.0f} %)".format(
            *(100 * C[name]["accuracy"][0] for name in ("self (smoother-lora)", "self"))),
        f"{cut(S['spatial'], S['self']):.0f} % smaller than self-guidance on sprites, and "
        f"{cut(S['spatial'], S['none']):.0f} % smaller than plain sampling",
        f"It takes {S['spatial']['ms']:.0f} ms an image, self-guidance {S['self']['ms']:.0f}",
        f"still {cut(NEAR[1], C['self']):.0f} % below that of self-guidance, and "
        f"{cut(NEAR[1], C['self'], 'second frechet'):.0f} % by the second extractor",
        f"is {cut(NEAR[1], C['self'], 'second recall'):.0f} % lower by the second extractor. The "
        f"class is right in {100 * NEAR[1]['accuracy'][0]:.0f} % of the images, against "
        f"{100 * C['self']['accuracy'][0]:.0f} %",
        f"{-cut(C['self+cfg'], C['cfg']):.0f} % larger than classifier-free guidance alone",
        f"takes less time ({F['auto']['ms']:.0f} ms an image against {SELF['ms']:.0f})",
        f"kept for comparison, is {cut(OTHER_BLUR, C['none']):.0f} % better",
        f"has the class right more often ({100 * SELF['accuracy'][0]:.0f} % against "
        f"{100 * F['auto']['accuracy'][0]:.0f} %)",
        f"be {cut(LONGER, EIGHT_STEPS):.0f} % better than plain sampling at 8 steps each",
        f"(the table shows its best, {two(OLD_SELF)} at temperature 3)",
        "ties with no guidance by the classifier, and removes "
        f"{cut(PUSHES['auto (weak, 100 steps)'], NONE, 'second frechet'):.0f} %",
        f"Recall rises from {two(NONE, 'recall')} to {two(SELF, 'recall')}, and precision falls "
        f"from {two(NONE, 'precision')} to {two(SELF, 'precision')}",
        f"removes {cut(C['self'], EIGHT_CIFAR):.0f} % of its distance of {two(EIGHT_CIFAR)}, and "
        f"{cut(C['self'], EIGHT_CIFAR, 'second frechet'):.0f} % by the second extractor",
        f"has a distance {cut(F['auto'], SELF):.0f} % smaller on Fashion-MNIST",
        f"plain sampling is better with 8 passes: {two(EIGHT_CIFAR)}",
        f"removes {cut(C['cfg'], C['none']):.0f} % of the unguided distance by the classifier and "
        f"{cut(C['cfg'], C['none'], 'second frechet'):.0f} % by the second extractor",
        f"At temperature 4 the shipped one has a distance of {two(HALF_PRECISION)}",
        f"[coherence](glossary.md#coherence) {two(S['self'], 'coherence')} against "
        f"{two(S['none'], 'coherence')}",
        f"removes {cut(S['self'], EIGHT_STEPS):.0f} % of the distance, at the same recall",
        "{} against {} at recalls of {} and {}".format(
            *(two(row, each) for each in ("frechet", "recall") for row in NEAR)),
        f"KL(plain ‖ guided) of {STRENGTH:.2f} nats",
        f"The distance of autoguidance is {-cut(S['auto'], S['self']):.0f} % larger than that of "
        f"self-guidance, and that of classifier-free guidance {-cut(S['cfg'], S['self']):.0f} %",
        f"(`smoother-steps-400-rate-30`, {LONGER['tried']} settings",
        "also better than self-guidance and plain sampling, by {:.0f} % and {:.0f} %".format(
            *(cut(S["sharpened"], S[name]) for name in ("self", "none"))),
        "with all four it gains, {:.0f}, {:.0f}, {:.0f} and {:.0f} %".format(
            *(cut(*pair, "second frechet") for pair in (*AGES, (SELF, NONE)))),
        f"in Halton order its distance is {-cut(ORDERS['none', 'halton'], NONE):.0f} % larger",
        "In Halton order it removes {:.0f} % by the classifier and {:.0f} % by the second".format(
            *(cut(ORDERS["self", "halton"], ORDERS["none", "halton"], score)
              for score in ("frechet", "second frechet"))),
        f"the distance there is {two(LONGER)} in place of {two(S['self'])}",
    ],
    "docs/own-pictures.md": [
        *(f"| {part} | {n} | {OWN['minutes'][part]} |" for part, n in (
            ("classifier", 400), ("tokenizer", 800), ("transformer", 600), ("smoother", 60))),
        f"{100 * OWN['test_accuracy']:.0f} % of the test images", f"PSNR {OWN['psnr']} dB",
        "{} without guidance (16 steps), {} with self-guidance (s = 1, 8 steps). The 74 real test "
        "images themselves have {}".format(*OWN["frechet"].values()),
        "distance of {} (real test images: {})".format(*OWN["with_problems"]["frechet"].values()),
    ],
    "data/checkpoints/README.md": [
        "CIFAR-10 {}, Fashion-MNIST {}".format(*(f"{r['test_accuracy']:.2f}"[1:] for r in SECOND)),
    ],
    "data/checkpoints/about.toml": [
        "named {} of 40 unlabelled samples rightly; with self-guidance it was {}, and {} would be "
        "chance".format(*RIGHT, NAMED["chance"]),
    ],
    "notebooks/00_tour.ipynb": [
        f"from the {two(LARGE['none'])} of plain sampling to {two(LARGE['self'])}",
        *(f"({each} {two(LARGE['self'], each)} against {two(LARGE['none'], each)})"
          for each in ("precision", "recall")),
        f"had {SELF['tried']} settings to choose from and plain sampling {NONE['tried']}",
    ],
    "notebooks/01_vq_tokenization.ipynb": [
        *ARMS, f"occurs costs {STEPS['unigram_entropy_of_training_tokens']:.2f} nats",
        "90, 60 and 30 % of the tokens masked, the generator needs {:.2f}, {:.2f} and {:.2f}, "
        "which is {:.1f}, {:.1f} and {:.1f} % of that".format(*(
            factor * STEPS[f"{name}_0.{n}"] for name, factor in (("nll", 1), ("share", 100))
            for n in (9, 6, 3))),
        *("| {:.2f} | {:.2f} |".format(*(SPRITES["rebuilt"][each][score] for each in (WIDE, EIGHT)))
          for score in ("psnr", "frechet")),
        "| {} % | {} % |".format(*(SPRITES["guessed_by_left_neighbour"][e] for e in (WIDE, EIGHT))),
        "| {} | {} |".format(*(SPRITES["nll_of_last_batch"][each] for each in (WIDE, EIGHT))),
        f"Only {SPRITES['guessed_by_left_neighbour'][WIDE]} % of its tokens",
        "{} different tokens, where this one gives it {}".format(*(
            SPRITES["different_tokens"][each] for each in (WIDE, EIGHT))),
        "{:.1f} nats with the wide window and {:.1f} with the small one".format(*(
            log(SPRITES["perplexity"][each]) for each in (WIDE, EIGHT))),
        "need {:.0f} and {:.0f} % of that".format(*(
            100 * SPRITES["nll_of_last_batch"][each] / log(SPRITES["perplexity"][each])
            for each in (WIDE, EIGHT))),
        "| {frechet:.2f} | ".format(**SAMPLED[WIDE]) + "{frechet:.2f} |".format(**SAMPLED[EIGHT]),
        "| {:.0f} % | {:.0f} % |".format(*(100 * row["coherence"] for row in SAMPLED.values())),
        "distance of {:.2f}, and 400 images generated from its tokens one of {:.2f}. (It is larger "
        "than that of lesson 00, because few images make the distance larger: see lesson 07.) A "
        "window of 4 × 4 pixels gave {:.2f} and {:.2f}".format(*(
            value for each in ("shipped", "local") for value in (
                CLOTHES["rebuilt"][each]["classifier"]["frechet"],
                min(row["classifier"]["frechet"] for row in CLOTHES["samples"][each])))),
        f"and gave {SETS['window_8']['fashion-mnist']['rebuilt classifier']['frechet']:.2f}",
    ],
    "notebooks/03_parallel_decoding.ipynb": [
        f"{two(ORDERS['none', 'random'])} against {two(NONE)} of <code>confidence</code>. "
        f"<code>halton</code> stays behind with {two(ORDERS['none', 'halton'])}"],
    "notebooks/04_spatial_vs_semantic_smoothing.ipynb": [
        f"far ahead: {two(S['self'])} against {two(EIGHT_STEPS)}"],
    "notebooks/05_adapter_fine_tuning.ipynb": [
        f"plain sampling has a distance of {two(EIGHT_STEPS)} there",
        "({} against {})".format(*(two(C[n]) for n in ("self (smoother-lora)", "self"))),
        f"and 30 % wrong tokens it is {two(LONGER)}, and with the shipped one of 100 steps and "
        f"60 % it is {two(S['self'])}"],
    "notebooks/06_guided_cuda_sampling.ipynb": [
        "{:.2f} ± {:.2f} in bf16 and {:.2f} ± {:.2f} in `float32`".format(
            *HALF_PRECISION["frechet"], *one(ROWS[1], scale=1, temperature=4)["frechet"])],
    "notebooks/08_capstone.ipynb": [
        f"that is {cut(SELF, F['sharpened']):.0f} % on Fashion-MNIST ({two(SELF)} against "
        f"{two(F['sharpened'])} of `sharpened`), {cut(C['self'], C['sharpened']):.0f} % on "
        f"CIFAR-10 ({two(C['self'])} against {two(C['sharpened'])}) and nothing on sprites",
        f"{EDGES} of the 15 best settings",
        f"at 16: about {GUIDED[16]:.1f} against {PLAIN[16]:.1f}. At 32 passes it gains less: "
        f"about {GUIDED[32]:.1f} against {PLAIN[32]:.1f}",
        f"at 4 steps has about {GUIDED[8]:.1f}, <em>none</em> at 8 about {PLAIN[8]:.1f}. At 4 "
        f"passes it loses, {GUIDED[4]:.1f} against {PLAIN[4]:.1f}",
    ],
}  # fmt: skip
FIXED = {  # numbers that no measurement of the course gives, and why
    "docs/glossary.md": ["log 2 = 0.69"],
    "docs/results.md": ["had 250 steps and 30 % corrupted tokens, one with 60 %"],
    "notebooks/02_masked_transformer.ipynb": [  # arithmetic, then published numbers
        "log 2 = 0.69", "cost 0.36, 1.61 and 2.30", "0.7 x 0.36 + 0.2 x 1.61 + 0.1 x 2.30 = 0.80",
        "| 6.18 |", "| 1.97 |", "| 1.52 |", "| 3.22 |", "| 1.61 |", "So 3.22 is",
        "from 6.56 to 3.22"],
    "notebooks/03_parallel_decoding.ipynb": [  # what solutions of exercises gave, once
        "its coherence was 0.53 (0.49 to 0.57)", "masking 90 %", "random 90 % masked",
        "0.89 (0.86 to 0.92) for compounding 25, 0.86 (0.83 to 0.90) for linear 11.2, and 0.79 "
        "(0.72 to 0.86) for linear 25", "28 % of the results", "own class in 47 %",
        "class in 96 %"],
    "notebooks/07_fid_evaluation.ipynb": [  # of a diagram, a range of pixels, label smoothing
        "by less than 0.01", "probability of only about 0.91",
        "6.40, plus what the spreads differ in, 0.25", "precision 0.67", "recall 0.38",
        "[0.25, 0.75]"],
    "notebooks/08_capstone.ipynb": [  # the paper's, and a sentence of test_verdicts
        "3.22 against 6.56", "between 4.3 and 5.0"],
    "notebooks/exercises/02_masked_transformer.ipynb": [  # arithmetic, a goal and a setting
        "log 4 = 1.39", "reach 0.40", "rate of 0.01"],
}  # fmt: skip
