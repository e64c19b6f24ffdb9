"""Results: from the kept records to the tables and plots that quote them.

`data/results/README.md` says what each file holds. `write` puts the numbers into the README and
`docs/results.md`.
"""

import math
import statistics
from pathlib import Path

from ..course.charts import hyperparameters as plot_hyperparameters
from ..course.charts import trade_off
from ..course.plots import Plot, image_rows, strips
from ..guidance import GUIDANCES
from ..pipeline import SHIPPED, Pipeline
from ..utils.errors import DataError
from ..utils.files import ROOT, read_json, write_bytes
from .cards import model_card, sample_grid
from .sweep import (
    ALL_SCORES,
    FACTS,
    MAIN,
    TUNING_SEED,
    curves,
    markdown_table,
    method,
    read_records,
    summarise,
    table,
)

FOLDER = ROOT / "data" / "results"
RESULTS = "<!-- results: written by `sgmgm results` -->", "<!-- end of results -->"
TABLES = "<!-- tables: written by `sgmgm results` -->", "<!-- end of tables -->"
CARD = (
    "± is the spread over {} sampling seeds of one training. The features of the scores also "
    "served the tokenizer's training. All methods began with the same grid of settings (*tried*). "
    "See [how to read them](../../../docs/results.md#how-to-read-the-tables)."
)
EXPERIMENTS = {"controls": "pushes of equal strength", "generators": "less trained generators",
               "smoothers": "smoothers trained otherwise",
               "orders": "other orders of decoding"}  # fmt: skip
MINUTES = "<!-- minutes: written by `sgmgm results` -->", "<!-- end of minutes -->"


def reported(path: str | Path, num: int | None = None) -> tuple[list[dict], list[dict]]:
    """A results file as rows of `summarise`, best distance first, and its tuning records.

    A file that does not exist has none. Rows are those of the seeds that tuned nothing, of `num`
    images or the most there are: the distance falls with the number of images, so only equal
    numbers compare. `tuned` is the distance of the same setting in the tuning (infinite without
    one), by which rows are chosen. `tried` counts the settings of that method and number of passes.
    """
    records = read_records(path) if Path(path).exists() else []
    final = [r for r in records if r["seed"] != TUNING_SEED]
    num = num or max((r["num"] for r in final), default=0)
    rows = summarise([r for r in final if r["num"] == num])
    tuning = [r for r in records if r["seed"] == TUNING_SEED]
    for row in rows:
        rivals = [r for r in tuning if kind(r) == kind(row)]
        own = [r["scores"]["frechet"] for r in rivals if r["settings"] == row["settings"]]
        row["tuned"] = min(own, default=math.inf)
        row |= {"tried": len(rivals)} if rivals else {}
    return rows, tuning


def kind(row: dict) -> tuple[str, float, str]:
    """What the tuning compares: method, number of network passes and order."""
    return method(row["settings"]), row["nfe"], row["settings"]["order"]


def chosen(rows: list[dict]) -> dict:
    """The row that the tuning prefers."""
    return min(rows, key=lambda row: (row["tuned"], row["frechet"]))


def within(rows: list[dict], passes: int = 16) -> list[dict]:
    """Of each method the rows with the most network passes up to this number."""
    allowed = sorted((row["nfe"], method(row["settings"])) for row in rows if row["nfe"] <= passes)
    most = {name: nfe for nfe, name in allowed}  # the last one of a method counts
    return [row for row in rows if row["nfe"] == most.get(method(row["settings"]))]


def best(rows: list[dict], guidance: str) -> dict:
    """Settings of the best row with this guidance `within` 16 passes; without one the guidance."""
    found = preferred(rows).get(guidance)
    return found["settings"] if found else {"guidance": guidance}


def compared(rows: list[dict]) -> dict[str, tuple[dict, dict]]:
    """Two fair comparisons, "passes" and "steps": the best self-guided row and the best plain one.

    At equal passes a guided image has half the steps; at equal steps it takes twice the passes.
    Self-guidance is that with the usual smoother.
    """
    ours, plain = ([row for row in rows if method(row["settings"]) == n] for n in ("self", "none"))
    fair = {"passes": lambda row: row["nfe"], "steps": lambda row: row["settings"]["steps"]}
    found = {}
    for what, count in fair.items():
        if shared := {count(row) for row in ours} & {count(row) for row in plain}:
            guided = chosen([row for row in ours if count(row) in shared])
            found[what] = guided, chosen([row for row in plain if count(row) == count(guided)])
    return found


def gain(rows: list[dict]) -> str:
    """Self-guidance against no guidance in words, each at its best, `compared` in two ways."""
    found = []
    for what, (guided, none) in compared(rows).items():
        count = guided["nfe"] if what == "passes" else guided["settings"]["steps"]
        (mine, spread), (its, other) = guided["frechet"], none["frechet"]
        found.append(
            f"at {count:g} {what} each {mine:.2f} ± {spread:.2f} against "
            f"{its:.2f} ± {other:.2f}, {100 * (mine / its - 1):+.0f} %"
        )
    return f"Self-guidance against none: {'; '.join(found)}." if found else ""


def outcome(ours: dict, other: dict) -> str:
    """Whether self-guidance "wins", "ties" or "loses": it ties where mean ± spread overlap."""
    (mine, spread), (its, rest) = ours["frechet"], other["frechet"]
    if mine + spread < its - rest:
        return "wins"
    return "loses" if mine - spread > its + rest else "ties"


def verdict(folder: str | Path = FOLDER) -> str:
    """Self-guidance against none and against its best rival on every data set: words and a table.

    The rival is the method, other than these two, with the lowest distance within 16 passes.
    """
    titles = {"passes": "none, at equal passes", "steps": "none, at equal steps",
              "rival": "its best rival, at equal passes"}  # fmt: skip
    words: dict[str, dict[str, list]] = {what: {} for what in titles}
    cells: dict[str, list] = {what: [f"against {title}"] for what, title in titles.items()}
    names = sweeps(folder)
    for name, path in names.items():
        rows, own = reported(path)[0], ("none", "self")
        rivals = [r for r in preferred(rows).values() if r["settings"]["guidance"] not in own]
        pairs = compared(rows)
        if rivals and "passes" in pairs:
            pairs["rival"] = pairs["passes"][0], min(rivals, key=lambda row: row["frechet"])
        for what, line in cells.items():
            if what not in pairs:
                line.append("")
                continue
            (mine, spread), (its, other) = (row["frechet"] for row in pairs[what])
            result, rival = outcome(*pairs[what]), method(pairs[what][1]["settings"])
            words[what].setdefault(result, []).append(name)
            line.append(
                f"{mine:.2f} ± {spread:.2f} : {its:.2f} ± {other:.2f}"
                f"{f' ({rival})' if what == 'rival' else ''}<br>"
                f"**{result}**, {100 * (mine / its - 1):+.0f} %"
            )
    said = [f"- Against **{titles[what]}**, self-guidance "
            + "; ".join(f"**{result}** on {' and '.join(', '.join(found[result]).rsplit(', ', 1))}"
                        for result in ("wins", "ties", "loses") if result in found) + "."
            for what, found in words.items() if found]  # fmt: skip
    lines = markdown_table(["Fréchet distance of self-guidance", *names], list(cells.values()))
    return "\n".join(said) + "\n\n" + lines


def files(folder: str | Path, pattern: str) -> dict[str, Path]:
    """The files of one kind in a results folder, by the data set or machine that they name."""
    return {p.stem.partition("-")[2]: p for p in sorted(Path(folder).glob(pattern))}


def sweeps(folder: str | Path) -> dict[str, Path]:
    """The sweeps' files in a results folder; DataError if there are none."""
    found = files(folder, "sweep-*.jsonl")
    if not found:
        raise DataError(f"{folder} holds no sweep-*.jsonl: write one with `sgmgm sweep`.")
    return found


def sources(folder: str | Path) -> list[tuple[str, str, list[dict]]]:
    """(data set, "" or what is special, rows) of every file whose methods are compared."""
    found = [(name, "", reported(path)[0]) for name, path in sweeps(folder).items()]
    large = files(folder, "large-*.jsonl")
    return found + [(name, ": more images", reported(path)[0]) for name, path in large.items()]


def columns(named: list[tuple[str, list[dict]]]) -> dict[str, list[dict]]:
    """Rows by a title that says data set, images and seeds; none of what was tuned only."""
    return {f"{n} ({rows[0]['num']:,} x {rows[0]['seeds']})": rows for n, rows in named if rows}


def preferred(rows: list[dict]) -> dict[str, dict]:
    """Of each method the row that the tuning prefers, `within` 16 passes."""
    ranked = sorted(within(rows), key=lambda row: (row["tuned"], row["frechet"]), reverse=True)
    return {method(row["settings"]): row for row in ranked}


def overview(folder: str | Path = FOLDER) -> str:
    """The Fréchet distance of every method on every data set, and what self-guidance gains."""
    found = columns(sorted(((n, rows) for n, _, rows in sources(folder)), key=lambda p: p[0]))
    best_of = [preferred(rows) for rows in found.values()]
    names = sorted({name for rows in best_of for name in rows})
    names.sort(key=lambda name: list(GUIDANCES).index(name.split(" ")[0]))
    lines = [[name, *(_distance(rows, name) for rows in best_of)] for name in names]
    gains = "\n".join(f"- {title}: {gain(rows)}" for title, rows in found.items())
    return f"{markdown_table(['guidance', *found], lines)}\n\n{gains}"


def brief(folder: str | Path = FOLDER) -> str:
    """Five guidances on each data set: distance, precision / recall, settings tried."""
    found = columns([(name, reported(path)[0]) for name, path in sweeps(folder).items()])
    best_of = [{n: r for n, r in preferred(rows).items() if n in MAIN} for rows in found.values()]
    lines = [[name, *(_distance(rows, name, True) for rows in best_of)] for name in MAIN]
    pairs = [[rows[n]["frechet"][0] for n in ("self", "none") if n in rows] for rows in best_of]
    change = [f"{100 * (p[0] / p[1] - 1):+.0f} %" if len(p) == 2 else "" for p in pairs]
    return markdown_table(["guidance", *found], [*lines, ["self against none", *change]])


def _distance(rows: dict[str, dict], name: str, more: bool = False) -> str:
    """A cell: the distance, bold if it is the best of its column, and what `brief` adds."""
    if name not in rows:
        return ""
    (mean, spread), row = rows[name]["frechet"], rows[name]
    text = f"{mean:.2f} ± {spread:.2f}"
    text = f"**{text}**" if mean == min(r["frechet"][0] for r in rows.values()) else text
    scores = " / ".join(f"{row[each][0]:.2f}" for each in ("precision", "recall"))
    return f"{text}<br>{scores}<br>{row.get('tried', 0)} tried" if more else text


def markdown(folder: str | Path = FOLDER) -> str:
    """All tables of a results folder, a heading for each data set."""
    parts = []
    for name, special, rows in sources(folder):
        parts += [f"**{name}{special}**", table(rows, (*FACTS, *ALL_SCORES)), gain(rows)]
    for name in files(folder, "ablation-*.jsonl"):
        parts += [f"**{name}: other smoothers and schedules**", table(ablation(name, folder))]
    for what, title in EXPERIMENTS.items():
        for name in files(folder, f"{what}-*.jsonl"):
            parts += [f"**{name}: {title}**", table(experiment(what, name, folder))]
    for name in files(folder, "trainings-*.jsonl"):
        parts += [f"**{name}: three trainings**", table(trainings(name, folder))]
    return "\n\n".join(part for part in parts if part)


def rows_of(dataset: str, folder: str | Path, *kinds: str, num: int = 0) -> list[list[dict]]:
    """The rows of some files of a data set, of `num` images or the most there are."""
    return [reported(Path(folder) / f"{kind}-{dataset}.jsonl", num)[0] for kind in kinds]


def experiment(what: str, dataset: str, folder: str | Path = FOLDER) -> list[dict]:
    """Rows of one of the `EXPERIMENTS`, beside no guidance and the shipped self-guidance."""
    rows, swept = rows_of(dataset, folder, what, "sweep")
    known, usual = [row["settings"] for row in rows], preferred(swept) if rows else {}
    rows += [usual[n] for n in ("none", "self") if n in usual and usual[n]["settings"] not in known]
    return sorted(rows, key=lambda row: row["frechet"][0])


def trainings(dataset: str, folder: str | Path = FOLDER) -> list[dict]:
    """Rows over the shipped and other trainings: mean and deviation of the trainings' means."""
    anew, shipped = rows_of(dataset, folder, "trainings", "sweep")
    joint = []
    for settings in {str(row["settings"]): row["settings"] for row in anew}.values():
        rows = [row for row in shipped + anew if row["settings"] == settings]
        means = {name: [row[name][0] for row in rows] for name in ALL_SCORES if name in rows[0]}
        over = {name: (statistics.mean(of), statistics.stdev(of)) for name, of in means.items()}
        joint.append(rows[0] | over | {"seeds": sum(row["seeds"] for row in rows)})
    return sorted(joint, key=lambda row: row["frechet"][0])


def ablation(dataset: str, folder: str | Path = FOLDER) -> list[dict]:
    """Rows of the smoothers that do not ship, beside the shipped ones and no guidance."""
    (rows,) = rows_of(dataset, folder, "ablation")
    num, passes = max((row["num"] for row in rows), default=0), {row["nfe"] for row in rows}
    earlier, swept = rows_of(dataset, folder, "earlier", "sweep", num=num)
    shipped: dict[str, list] = {}
    for row in earlier or swept:  # what they were tuned along with
        if row["settings"]["guidance"] in ("none", "self") and row["nfe"] in passes:
            shipped.setdefault(method(row["settings"]), []).append(row)
    rows += [chosen(same) for same in shipped.values()]
    return sorted(rows, key=lambda row: row["frechet"][0])


def hyperparameters(dataset: str, folder: str | Path = FOLDER) -> dict[str, dict[str, tuple]]:
    """Fréchet distance against each hyperparameter of self-guidance, while tuning (figure 6).

    hyperparameter -> curve -> (its x values, distances). At every point the other hyperparameters
    have the best values that were tried. Scale 0 is no guidance.
    """

    def points(source: str) -> list[dict]:
        _, tuning = reported(Path(folder) / f"{source}-{dataset}.jsonl")
        found = [r["settings"] | r["scores"] | {"nfe": r["nfe"]} for r in tuning]
        usual = {"order": "confidence", "anneal": "linear"}
        return [p for p in found if method(p) in ("none", "self") and usual.items() <= p.items()]

    def curve(points: list[dict], x: str, **fixed) -> tuple:
        least: dict[float, float] = {}
        for point in points:
            if fixed.items() <= point.items():
                least[point[x]] = min(point["frechet"], least.get(point[x], math.inf))
        return tuple(sorted(least)), tuple(least[value] for value in sorted(least))

    known = points("sweep")
    more = points("steps") or known
    both = {g: curve(more, "nfe", guidance=g) for g in ("none", "self")}
    charts = {
        "guidance scale s": {"self, 8 steps": curve(known, "scale", steps=8)},
        "temperature": {f"{g}, {n} steps": curve(known, "temperature", guidance=g, steps=n)
                        for g, n in (("none", 16), ("self", 8))},
        "network passes": both if all(len(xs) > 1 for xs, _ in both.values()) else {},
    }  # fmt: skip
    drawn = {t: {n: line for n, line in c.items() if len(line[0]) > 1} for t, c in charts.items()}
    return {title: lines for title, lines in drawn.items() if lines}


def benchmarks(folder: str | Path = FOLDER) -> dict[str, dict]:
    """What `scripts.benchmark` measured, by the name of the machine."""
    return {name: read_json(path) for name, path in files(folder, "benchmark-*.json").items()}


def speed(folder: str | Path = FOLDER) -> str:
    """A line for each benchmark: guided images a second, the fast path against the plain loop."""
    lines = []
    for record in benchmarks(folder).values():
        row = record["batches"][-1]
        eager, quick = (row[path] for path in record["ways"])
        precision = record["ways"][1].split()[1]
        lines.append(
            f"Self-guided sampling, {record['size']} size, {record['steps']} steps, "
            f"{row['batch']} images at once, on {record['device']}"
            f"{', without bfloat16' * (precision != 'bf16')}: "
            f"{quick['images_per_second']:.1f} images/s, {record['speedup']:.1f} times the eager "
            f"float32 loop's {eager['images_per_second']:.1f}, at {quick['share']:.0%} of the "
            f"machine's measured {precision} matrix peak."
        )
    return "\n".join(lines)


def minutes(folder: str | Path = FOLDER) -> str:
    """How long the lessons compute, from `course.json`: the report of one `sgmgm course run`."""
    path = Path(folder) / "course.json"
    advice = "`sgmgm doctor` predicts how long each lesson computes on your machine."
    if not path.is_file():
        return advice
    report = read_json(path)
    took = [each["seconds"] / 60 for each in report["lessons"]]
    where = f" on {report['dataset']}" if report.get("dataset") else ""  # else each on its own
    how = f"profile `{report['profile']}`{where} ({report['device']})"
    return (f"With {how} all lessons together compute for {sum(took):.0f} minutes, and the longest "
            f"for {max(took):.0f}. {advice}")  # fmt: skip


def put_between(text: str, block: str, marks: tuple[str, str] = RESULTS) -> str:
    """A text with `block` in place of what stood between two marks."""
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise DataError(f"the text needs one line {begin!r} and one {end!r}.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def pages(folder: str | Path = FOLDER, root: str | Path = ROOT) -> dict[Path, str]:
    """The README and the page of results, with the numbers of a results folder."""
    readme, page = Path(root) / "README.md", Path(root) / "docs" / "results.md"
    summary = "\n\n".join(p for part in (overview, speed) if (p := part(folder)))
    first = put_between(readme.read_text(encoding="utf-8"), brief(folder))
    second = put_between(page.read_text(encoding="utf-8"), summary)
    return {readme: put_between(first, minutes(folder), MINUTES),
            page: put_between(second, markdown(folder), TABLES)}  # fmt: skip


def card(place: Path, rows: list[dict]) -> str:
    """The card of a pipeline folder, with these rows as its scores."""
    scores = (table(rows), gain(rows), CARD.format(rows[0]["seeds"])) if rows else ()
    return model_card(place, "\n\n".join(scores))


def write_cards(folder: str | Path = FOLDER) -> list[Path]:
    """Write the card and the image grid of every shipped model; returns the cards."""
    written = []
    for place in sorted(file.parent for file in SHIPPED.glob("*/pipeline.json")):
        rows = reported(Path(folder) / f"sweep-{place.name}.jsonl")[0]
        pipeline = Pipeline.from_pretrained(place, "cpu")
        variants = [best(rows, guidance) for guidance in ("none", "self")]
        if pipeline.card.sampling.guidance not in ("none", "self"):
            variants.append({})  # its own setting
        sample_grid(pipeline, place / "samples.png", variants)
        written.append(place / "README.md")
        write_bytes(written[-1], card(place, rows).encode())
    return written


def gallery(folder: str | Path = FOLDER, seed: int = 0, device: str = "cpu") -> Plot:
    """One image of each class from every shipped model: plain, self-guided, and its own setting."""
    images = {}
    for place in sorted((c.parent for c in SHIPPED.glob("*/pipeline.json")), reverse=True):
        pipeline = Pipeline.from_pretrained(place, device)
        labels = list(range(len(pipeline.card.classes)))
        seeds = [seed + label for label in labels]
        rows = reported(Path(folder) / f"sweep-{place.name}.jsonl")[0]
        for name, title in (("none", "plain"), ("self", "self-guided")):
            key = f"{place.name},\n{title}"
            images[key] = pipeline(labels, seeds=seeds, **best(rows, name)).images
        if pipeline.card.sampling.guidance == "cfg":
            images[f"{place.name},\nclassifier-free"] = pipeline(labels, seeds=seeds).images
    return image_rows(images)


def temperatures(folder: str | Path = FOLDER, dataset: str = "fashion-mnist") -> Plot:
    """The README's figure: plain and self-guided images at rising temperatures, same seeds.

    Above each strip stand the scores of many more images, from `temperature-DATASET.jsonl`: the
    distance by the classifier and by the second extractor, precision and recall by the former.
    """
    records = read_records(Path(folder) / f"temperature-{dataset}.jsonl")
    pipeline = Pipeline.from_pretrained(SHIPPED / dataset, "cpu")
    rows: dict[str, list] = {}
    labels = list(range(len(pipeline.card.classes)))
    for heat in sorted({record["settings"]["temperature"] for record in records}):
        of = {r["settings"]["guidance"]: r for r in records if r["settings"]["temperature"] == heat}
        pair = []
        for name, title in (("none", "plain"), ("self", "self-guided")):
            first, second = of[name]["scores"], of[name]["second"]
            said = "" if rows else f"{title}\n"  # above the first row
            said += f"Fréchet {first['frechet']:.2f} / {second['frechet']:.2f}, precision "
            said += f"{first['precision']:.2f}, recall {first['recall']:.2f}"
            pair.append((said, pipeline(labels, **of[name]["settings"]).images))
        rows[f"τ = {heat:g}"] = pair
    return strips(rows)


def write(folder: str | Path = FOLDER, root: str | Path = ROOT) -> list[Path]:
    """Put the numbers into the README and the page of results, and make all plots."""
    written = {path: text.encode() for path, text in pages(folder, root).items()}
    written[Path(folder) / "gallery.png"] = gallery(folder).png()
    if (Path(folder) / "temperature-fashion-mnist.jsonl").exists():
        written[Path(folder) / "temperatures.png"] = temperatures(folder).png()
    for name, path in sweeps(folder).items():
        if tuning := reported(path)[1]:
            written[path.with_suffix(".png")] = trade_off(curves(tuning)).png()
            if charts := hyperparameters(name, folder):
                plot = plot_hyperparameters(charts, "Fréchet distance")
                written[path.with_name(f"hyperparameters-{name}.png")] = plot.png()
    for path, content in written.items():
        write_bytes(path, content)
    return list(written)
