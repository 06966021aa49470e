"""Write benchmarks/README.md from benchmarks/results/*.json, so that no number in it was typed by hand.

With `--add RESULT COMMAND` first keep a Result that --json wrote, without its samples and the paths of this machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scoreboard_patches import patches

HERE = Path(__file__).resolve().parent


def read(name: str) -> dict:
    return json.loads((HERE / f"results/{name}.json").read_text())


def machine(facts: dict) -> str:
    return f"{facts['machine']['processor']}, {facts['machine']['cores']} cores, torch {facts['machine']['torch']}, faiss {facts['machine']['faiss-cpu']}"


def parity() -> list[str]:
    facts = read("parity")
    rows = facts["networks"]
    lines = [
        "## Parity with the released code",
        "",
        f"`{facts['command']}`: same made-up weights, same pictures, {facts['released']}, torch {facts['torch']}. Largest absolute differences:",
        "",
        "| network | size | [CLS] | tokens of the last 4 blocks | last attention |",
        "|---|---|---|---|---|",
        *(
            f"| {row['arch']} | {row['size']} | {row['cls']:.1e} | {row['tokens of 4 blocks']:.1e} | {row['attention']:.1e} |"
            for row in rows
        ),
        "",
        f"Training, {facts['training']['steps']} steps on fixed crops: losses differ by at most {facts['training']['loss, relative']:.1e} (relative), the",
        f"teacher's weights by {facts['training']['teacher weights']:.1e}; the loss went from {facts['training']['first loss']:.2f} to "
        f"{facts['training']['last loss']:.2f}.",
        "",
    ]
    knn = read("parity_knn")
    lines += [
        f"`{knn['command']}`: both command lines on CIFAR-10, {knn['images']['train']:,} + {knn['images']['val']:,} images, ViT-Ti/56 with made-up weights"
        f" ({knn['ours seconds']} s and {knn['released seconds']} s):",
        "",
        "| k | top-1 ours | top-1 released | queries with five labels | top-5 of these, ours | top-5 of these, released |",
        "|---|---|---|---|---|---|",
    ]
    for row in knn["rows"]:
        top5 = [f"{row[name]:.4f}" if name in row else "-" for name in ("top5 of these, ours", "top5 of these, released")]
        lines.append(
            f"| {row['k']} | {row['top1 ours']:.2f} | {row['top1 released']:.2f} | {row['queries with five labels']:,} | {top5[0]} | {top5[1]} |"
        )
    for row in knn["rows"]:
        for one in row.get("queries that differ", []):
            gaps = (
                one["gap between the cosines of the last neighbour and the next"],
                one["relative gap between the sums of the fifth and the sixth class"],
            )
            same = "gives the released answer" if one["ours on the released features"] == one["released"] else "differs as well"
            lines += ["", f"At k = {row['k']} query {one['query']} differs: the cosines of its neighbours {row['k']} and {row['k'] + 1} are {gaps[0]:.1e} apart, the sums of its",
                      f"fifth and sixth class {gaps[1]:.1e} (relative). Our vote on the very features that the released code dumped {same}."]  # fmt: skip
    return [*lines, ""]


def scores() -> list[str]:
    lines = ["## Scores", "", "| checkpoint | data | k | top-1 | top-5 | command |", "|---|---|---|---|---|---|"]
    for path in sorted((HERE / "results").glob("knn_*.json")):
        facts = json.loads(path.read_text())
        if facts["config"].get("train_subset"):
            continue
        for k in facts["config"]["k"]:
            cells = [f"{facts['metrics'][f'{m}@{k}']:.2f} ± {facts['standard_errors'][f'{m}@{k}']:.2f}" for m in ("top1", "top5")]
            checkpoint = f"{facts['backbone']['weights']} ({facts['backbone']['arch']})"
            lines.append(f"| {checkpoint} | {facts['data']['name']} | {k} | {cells[0]} | {cells[1]} | `{facts['command']}` |")
    return [*lines, ""]


def parity_classification() -> list[str]:
    facts, logistic = read("parity_classification"), read("parity_logistic")
    timms = "to timm's"
    lines = [
        "## Parity of classification",
        "",
        f"`{facts['command']}`: made-up weights in the layout of the released full checkpoints, timm {facts['timm']}. Largest absolute differences of features:",
        "",
        "| network | to torchvision's, or facebookresearch/xcit's | to timm's |",
        "|---|---|---|",
        *(f"| {row['arch']} | {row['to the released network']:.1e} | {row.get(timms, '-')} |" for row in facts["backbones"]),
        "",
        "One epoch of the linear probe (central crops, same head, order and batches), and a made-up released head file:",
        "",
        "| features | loss ours | loss released | top-1 ours | top-1 released | top-5 ours | top-5 released |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["linear"]:
        losses = [f"{row[side]['loss']:.7f}" if "loss" in row[side] else "-" for side in ("ours", "released")]
        tops = [f"{row[side][metric]:.3f}" for metric in ("top1", "top5") for side in ("ours", "released")]
        lines.append(f"| {row['readout']} | {' | '.join(losses + tops)} |")
    return [*lines, "", *parity_logistic(logistic), ""]


def parity_logistic(facts: dict) -> list[str]:
    lines = [
        f"Logistic regression (`{facts['command']}`): cyanure against scikit-learn on the {facts['dims']} features of {facts['network']}, CIFAR-10:",
        "",
        "| training images | top-1 cyanure | top-1 scikit-learn | difference |",
        "|---|---|---|---|",
    ]
    for row in facts["rows"]:
        tops = [f"{row[solver]['top1']:.2f}" for solver in ("cyanure", "sklearn")]
        lines.append(f"| {row['images']:,} ({row['runs']} draws) | {' | '.join(tops)} | {row['difference']:+.2f} |")
    return lines


def speed_logistic(facts: dict) -> list[str]:
    lines = [
        f"**Logistic regression** (`{facts['command']}`): {facts['what']}.",
        "",
        "| solver | seconds | relative duality gap | top-1 |",
        "|---|---|---|---|",
    ]
    for way, seconds in facts["median seconds"].items():
        lines.append(f"| {way} | {seconds:.1f} | {facts['duality gap'][way]:.1e} | {facts['top1'][way]:.2f} |")
    return lines


def classification() -> list[str]:
    """Every protocol on the same images and checkpoint."""
    lines = [
        "## Classification of CIFAR-10 by every protocol",
        "",
        "| protocol | training images | metric | percent | deviation between subsets | command |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((HERE / "results").glob("*_cifar10*_vit_xs8_32.json")):
        facts = json.loads(path.read_text())
        for metric in ("top1@20", "top1", "top1_best_on_val"):
            if metric in facts["metrics"]:
                deviation = facts["deviations"].get(metric) if facts.get("deviations") else None
                part = facts["config"].get("train_subset") or "all"
                lines.append(
                    f"| {facts['protocol']} | {part} | {metric} | {facts['metrics'][metric]:.2f} ± {facts['standard_errors'][metric]:.2f} | "
                    f"{'-' if deviation is None else f'{deviation:.2f}'} | `{facts['command']}` |"
                )
    return [*lines, ""]


def speed_of_classification() -> list[str]:
    linear = read("speed_linear")
    ratios = " and ".join(f"{ratio:.2f} times with {classes}" for classes, ratio in linear["13 rates / 1 rate"].items())
    scatter = max(max(times) / min(times) for name, times in linear["seconds"].items() if "cached" not in name) - 1
    return [
        f"**Linear probe** (`{linear['command']}`): {linear['what']}. Relative to one rate, a sweep of 13 takes {ratios}; 13 rates x 2 readouts",
        f"{linear['13 rates x 2 readouts / 1 rate']:.2f} times (medians; single runs scatter by up to {scatter:.0%} here). An augmented epoch takes "
        f"{linear['augmented epoch / cached epoch']:,.0f} times as long as one on cached features.",
        "",
        *speed_logistic(read("speed_logistic")),
        "",
    ]


def bf16_closeness(extraction: dict) -> list[str]:
    least = extraction["least cosine of bf16 to fp32"]
    return [] if least is None else [f"Least cosine of a bf16 feature to its fp32 one: {least:.5f}."]


def speed() -> list[str]:
    knn, extraction, startup = read("speed_knn"), read("speed_extraction"), read("speed_startup")
    ours = knn["runs"]["ours"]
    bf16 = extraction["ratio bf16"]
    return [
        "## Speed",
        "",
        f"On {machine(knn)}. Medians; every ratio is of runs in turn on one machine.",
        "",
        f"**Whole commands** (`{startup['command']}`): `dinoeval --help` {startup['--help']:.2f} s; `dinoeval knn` on digits with an empty cache, offline,",
        f"{startup['knn']:.1f} s.",
        "",
        f"**k-NN sweep** (`{knn['command']}`): {knn['what']}.",
        "",
        "| | seconds | times ours |",
        "|---|---|---|",
        f"| dinoeval | {knn['median seconds']['ours']:.1f} | 1 |",
        f"| released `knn_classifier`, once a k | {knn['median seconds']['theirs']:.1f} | {knn['ratio theirs / ours']:.1f} |",
        f"| scikit-learn, once a k (one run) | {knn['median seconds']['sklearn']:.1f} | {knn['ratio sklearn / ours']:.1f} |",
        f"| the multiply-adds alone, at this machine's best rate | {knn['multiply-add limit, seconds']:.1f} | 1/{knn['ours over the limit']:.2f} |",
        "",
        f"Peak memory added by the search: {max(run['peak MB added'] for run in ours):.0f} MB for a bank of {knn['bank MB']:.0f} MB, memory-mapped; "
        f"{max(run['peak MB in all'] for run in ours):.0f} MB for the whole process.",
        "",
        f"**JPEG files to [CLS]** (`{extraction['command']}`): {extraction['what']}.",
        "",
        "| | images a second | times released |",
        "|---|---|---|",
        f"| released `extract_features` | {extraction['images a second']['theirs']:.1f} | 1 |",
        f"| dinoeval, fp32 | {extraction['images a second']['ours fp32']:.1f} | {extraction['ratio fp32']:.2f} |",
        f"| dinoeval, bf16 | {extraction['images a second'].get('ours bf16', '-')} | {bf16 if isinstance(bf16, str) else f'{bf16:.2f}'} |",
        "",
        *bf16_closeness(extraction),
        f"fp32 runs at {extraction['GFLOP a second of ours fp32']:.0f} GFLOP/s end to end; features differ from the released ones by at most "
        f"{extraction['largest difference to the released features']:.1e}.",
        "",
    ]


def retrieval() -> list[str]:
    parity, speed = read("parity_retrieval"), read("speed_retrieval")
    worst = {
        name: max(values.values())
        for name, values in parity.items()
        if name in ("random rankings, fractions", "descriptors", "copy detection")
    }
    lines = [
        "## Retrieval and copy detection",
        "",
        f"`{parity['command']}`: beside the released code and the revisited benchmark's own evaluation. Largest differences: random rankings "
        f"{worst['random rankings, fractions']:.0e} (fractions), descriptors {worst['descriptors']:.0e}, GeM, whitening and average precision {worst['copy detection']:.0e}.",
        "Both command lines on whole made-up sets, in percent (the released retrieval prints two decimals):",
        "",
        "| set | metric | ours | released |",
        "|---|---|---|---|",
    ]
    for name, metrics in parity["whole sets, percent (ours, released)"].items():
        for metric, (ours, theirs) in metrics.items():
            if metric.startswith("mAP_") and "/" not in metric:
                lines.append(f"| {name} | {metric} | {ours:.4f} | {theirs:.4f} |")
    blocks = [abs(ours - theirs) for ours, theirs in parity["whole sets, percent (ours, released)"]["copydays"].values()]
    rates, distractors = speed["ViT-S/16 at 224"]["images a second"], speed["distractors"]
    return [
        *lines,
        "",
        f"All {len(blocks)} blocks of the Copydays tree agree within {max(blocks):.0e} points.",
        "",
        f"`{speed['command']}`: ViT-S/16 at {rates['batches of equal size']:.2f} images a second in batches of equal size, {rates['one by one']:.2f} one by one "
        f"({speed['ViT-S/16 at 224']['batches over one by one, median of the rounds']:.2f} times, the median of {len(speed['ViT-S/16 at 224']['rounds']['one by one'])} paired rounds). "
        f"Ranking among {distractors['distractors']:,} x {distractors['dims']} distractors: {distractors['seconds']:.0f} s and {distractors['added peak memory, MB']} MB more peak memory. "
        "Made-up sets of the published size, a checkpoint of three epochs of CIFAR-10, seconds of a loaded machine:",
        "",
        "| set | images | mAP, percent | seconds |",
        "|---|---|---|---|",
        *(whole_row(name, facts) for name, facts in speed["made-up sets of the published size"].items()),
        "",
    ]


def whole_row(name: str, facts: dict) -> str:
    images = ", ".join(f"{count:,} {half}" for half, count in facts["images"].items())
    shown = ", ".join(
        f"{metric.removeprefix('mAP_')} {facts['metrics'][metric]:.2f}"
        for metric in ("mAP_medium", "mAP_hard", "mAP_strong")
        if metric in facts["metrics"]
    )
    return f"| {name} | {images} | {shown} | {facts['seconds']:.0f} |"


def search() -> list[str]:
    speed, copies = read("speed_search"), read("duplicates")
    lines = ["## Search", "", f"`{speed['command']}`: made-up rows; recall@10 against exact search, of queries that are not in the index.", "",
             "| rows | index | build, s | queries a second, 1 / 100 at a time | recall@10 | MB that a query adds |", "|---|---|---|---|---|---|"]  # fmt: skip
    for rows, kinds in speed.items():
        if " x " not in rows:
            continue
        for kind, facts in kinds.items():
            if kind == "write":
                continue
            query = facts.get("query", facts)
            ways = [query[way] for way in ("1 at a time", "100 at a time")]
            rates = " / ".join(f"{way['queries a second']:,.1f}" for way in ways)
            built = (
                f"{facts['build']['seconds to build']:.0f}" if "build" in facts else f"{kinds['write']['seconds to make and write']:.0f}"
            )
            recall = f"{facts['query']['recall@10 of other queries']:.3f}" if "query" in facts else "exact"
            lines.append(f"| {rows} | {kind} | {built} | {rates} | {recall} | {max(way['MB added'] for way in ways):.0f} |")
    lines += ["", f"`{copies['command']}`: {copies['planted']} pictures with copies planted among each set, found at the default threshold.", "",
              "| set | threshold | precision of pairs | recall by kind of copy |", "|---|---|---|---|"]  # fmt: skip
    for name, facts in copies["sets"].items():
        default = facts["measured"]["cosine"]
        row = next(row for row in facts["thresholds"] if abs(row["threshold"] - default) < 1e-6)
        recalls = ", ".join(f"{kind} {share:.2f}" for kind, share in row["recall"].items())
        lines.append(f"| {name} | {default:.5f} | {row['precision of pairs']:.2f} | {recalls} |")
    return [*lines, ""]


def reliability() -> list[str]:
    facts = read("reliability")
    moments = facts["rows done when killed (-1: none begun, or all done)"]
    return [
        "## Reliability",
        "",
        f"`{facts['command']}`: {facts['runs']} extractions killed with SIGKILL at random moments (after {min(moments)} to {max(moments)} of 400 rows; -1 is",
        f"before the first or after the last); {facts['bit-identical']} ended bit-identical to an undisturbed one, "
        f"{facts['resumed from rows of the killed run']} of them resumed from rows of the killed run.",
        "",
    ]


def reliability_training() -> list[str]:
    facts = read("reliability_training")
    lines = [f"`{facts['command']}`: runs killed with SIGKILL at random moments and resumed by the same command.", ""]
    for protocol in ("linear", "finetune"):
        row = facts[protocol]
        saved = "; ".join(row["saved when killed"])
        lines.append(
            f"- {protocol}: {row['equal to an uninterrupted run']} of {facts['runs']} ended with all numbers of an uninterrupted run (on disk when killed: {saved})."
        )
    built = read("reliability_search")
    lines.append(
        f"- `{built['command']}`: {built['equal to an undisturbed build']} of {built['runs']} killed builds of a search index ended byte by byte like undisturbed ones."
    )
    return [*lines, ""]


def add(path: str, command: str) -> None:
    """Keep a Result as results/<protocol>_<data>_<arch>.json."""
    facts = json.loads(Path(path).read_text())
    del facts["samples"]
    for part, name in (("data", "name"), ("config", "data"), ("backbone", "weights")):
        facts[part][name] = Path(facts[part][name]).name
    facts["notes"] = [note.partition("; heads in ")[0] for note in facts["notes"]]
    facts["command"] = command
    part = facts["config"].get("train_subset")
    data = f"{facts['data']['name']}-{part}" if part else facts["data"]["name"]
    target = HERE / f"results/{facts['protocol']}_{data}_{facts['backbone']['arch']}.json"
    target.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["--add"]:
        add(*sys.argv[2:])
    head = [
        "# Benchmarks",
        "",
        "Evidence, with the commands that made it. `CHECKOUT` is a checkout of facebookresearch/dino at 7c446df, which the scripts run beside",
        "dinoeval on the same machine. This page is written by `python benchmarks/scoreboard.py` from `results/`.",
        "",
    ]
    parts = [
        *parity(),
        *parity_classification(),
        *scores(),
        *classification(),
        *speed(),
        *speed_of_classification(),
        *retrieval(),
        *search(),
        *patches(read),
        *reliability(),
        *reliability_training(),
    ]
    (HERE / "README.md").write_text("\n".join([*head, *parts]).rstrip() + "\n")


if __name__ == "__main__":
    main()
