"""Write benchmarks/README.md from benchmarks/results/*.json, so that no number on the page is typed by hand.

    python benchmarks/scoreboard.py
    python benchmarks/scoreboard.py --add RESULT "COMMAND"

--add first stores a Result, written by --json, without its samples and without the paths of this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import scoreboard_patches
import scoreboard_speed
from measurement import RESULTS, ROOT

HEAD = """\
# Benchmarks

Measurements, with the commands that made them. `CHECKOUT` is a checkout of facebookresearch/dino at 7c446df, which the scripts run next to
dinoeval on the same machine. `python benchmarks/scoreboard.py` writes this page from `results/`.
"""
RERUN = """\
## Rerun everything

Each script writes its record to `results/` (`--out FILE`: elsewhere), and its `--help` describes its inputs. `--tiny --out FILE` runs it
in seconds on small synthetic inputs; `python -m pytest tests/benchmarks` does so for all scripts. A script without a checkout leaves that
side out and says so in the record, and `DINOEVAL_RELEASED=CHECKOUT` makes the tests run the released code too.

```
{commands}
```

Two scripts check changes of the code. The first compares every protocol, readout, training step and figure with
`results/regression.json`, bit by bit. The second changes one constant, comparison, sign or order at a time and runs the tests.

```
python benchmarks/regression.py --against benchmarks/results/regression.json
python benchmarks/mutations.py
```

Then `python benchmarks/scoreboard.py` writes this page.
"""
SCORED = ("knn_*.json", "*_cifar10*_vit_xs8_32.json")
"""Files of Results, which --add stores."""


def read(name: str) -> dict:
    """Return a record."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a table, and an empty line."""
    names = list(header)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def parity() -> list[str]:
    """Networks, training and k-NN against the released code."""
    record = read("parity")
    training = record["training"]
    return [
        "## Parity with the released code",
        "",
        f"`{record['command']}`: same random weights, same inputs, {record['released']}, torch {record['torch']}. Largest absolute differences:",
        "",
        *table(
            ("network", "size", "[CLS]", "tokens of the last 4 blocks", "last attention"),
            (
                (row["arch"], row["size"], *(f"{row[name]:.1e}" for name in ("cls", "tokens_of_last_4_blocks", "attention")))
                for row in record["networks"]
            ),
        ),
        f"Training, {training['steps']} steps on fixed crops: losses differ by at most {training['relative_loss']:.1e} (relative), the weights of the",
        f"teacher by {training['teacher_weights']:.1e}. The loss goes from {training['first_loss']:.2f} to {training['last_loss']:.2f}.",
        "",
        *parity_pretraining(read("parity_pretraining")),
        *parity_knn(read("parity_knn")),
    ]


def parity_pretraining(record: dict) -> list[str]:
    """Parts of pretraining against public code."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = [(row["part"], row["of"], row.get("steps", "-"), f"{row['largest_difference']:.1e}") for row in record["rows"]]
    return [
        f"`{record['command']}`: parts of pretraining against public code ({versions}) on equal inputs. Differences are relative:",
        "",
        *table(("part", "compared with", "steps of training", "largest difference"), rows),
    ]


def parity_knn(record: dict) -> list[str]:
    """k-NN by both command lines, and the queries that differ."""
    images, seconds = record["images"], record["seconds"]
    lines = [
        f"`{record['command']}`: both command lines on CIFAR-10, {images['train']:,} + {images['val']:,} images, ViT-Ti/56 with random weights"
        f" ({seconds['dinoeval']} s and {seconds['released']} s). The released top-5 is compared on queries with five classes among their neighbors:",
        "",
    ]
    rows = []
    for row in record["rows"]:
        top5 = [f"{row['top5_with_5_classes'][side]:.4f}" if "top5_with_5_classes" in row else "-" for side in ("dinoeval", "released")]
        top1 = [f"{row['top1'][side]:.2f}" for side in ("dinoeval", "released")]
        rows.append((row["k"], *top1, f"{row['queries_with_5_classes']:,}", *top5))
    lines += table(("k", "top-1 dinoeval", "top-1 released", "queries with 5 classes", "top-5 dinoeval", "top-5 released"), rows)
    for row in record["rows"]:
        k = row["k"]
        for query in row.get("differing_queries", []):
            agrees = query["dinoeval_on_released_features"] == query["released"]
            result = "gives the released answer" if agrees else "differs, too"
            lines += [
                f"At k = {k} query {query['query']} differs. The cosines of its neighbors {k} and {k + 1} are {query['cosine_gap_after_last_neighbor']:.1e} apart, "
                f"the votes of its fifth and sixth class {query['relative_gap_of_fifth_and_sixth_class']:.1e} (relative). The vote of dinoeval on the features of the "
                f"released code {result}.",
                "",
            ]
    return lines


def parity_classification() -> list[str]:
    """Networks of other libraries, the linear probe and logistic regression."""
    record = read("parity_classification")
    networks = [(row["arch"], f"{row['difference_to_released']:.1e}", row.get("difference_to_timm", "-")) for row in record["networks"]]
    epochs = []
    for row in record["linear"]:
        sides = (row["dinoeval"], row["released"])
        losses = [f"{side['loss']:.7f}" if "loss" in side else "-" for side in sides]
        epochs.append((row["readout"], *losses, *(f"{side[metric]:.3f}" for metric in ("top1", "top5") for side in sides)))
    header = [f"{metric} {side}" for metric in ("loss", "top-1", "top-5") for side in ("dinoeval", "released")]
    return [
        "## Parity of classification",
        "",
        f"`{record['command']}`: random weights in the layout of the released full checkpoints, timm {record['timm']}. Largest absolute differences of features:",
        "",
        *table(("network", "from torchvision or facebookresearch/xcit", "from timm"), networks),
        "One epoch of the linear probe (center crops, same head, order and batches), and a head file with random weights in the released layout:",
        "",
        *table(("features", *header), epochs),
        *parity_logistic(read("parity_logistic")),
    ]


def parity_logistic(record: dict) -> list[str]:
    """Both solvers on the same features."""
    rows = []
    for row in record["rows"]:
        subset = f"{row['images']:,} ({row['runs']} {'subsets' if row['runs'] > 1 else 'subset'})"
        rows.append((subset, *(f"{row[solver]['top1']:.2f}" for solver in ("cyanure", "sklearn")), f"{row['difference']:+.2f}"))
    return [
        f"Logistic regression (`{record['command']}`): cyanure against scikit-learn on the {record['dims']} dims of {record['network']}, CIFAR-10:",
        "",
        *table(("training images", "top-1 cyanure", "top-1 scikit-learn", "difference"), rows),
    ]


def scores() -> list[str]:
    """k-NN scores of checkpoints."""
    rows = []
    for path in sorted(RESULTS.glob(SCORED[0])):
        result = json.loads(path.read_text())
        if result["config"].get("train_subset"):
            continue
        checkpoint = f"{result['backbone']['weights']} ({result['backbone']['arch']})"
        for k in result["config"]["k"]:
            cells = [f"{result['metrics'][name]:.2f} ± {result['standard_errors'][name]:.2f}" for name in (f"top1@{k}", f"top5@{k}")]
            rows.append((checkpoint, result["data"]["name"], k, *cells, f"`{result['details']['command']}`"))
    return ["## Scores", "", *table(("checkpoint", "dataset", "k", "top-1", "top-5", "command"), rows)]


def classification() -> list[str]:
    """Every protocol on the same images and checkpoint."""
    rows = []
    for path in sorted(RESULTS.glob(SCORED[1])):
        result = json.loads(path.read_text())
        for metric in ("top1@20", "top1", "top1_best_on_val"):
            if metric in result["metrics"]:
                deviation = result.get("deviations", {}).get(metric)
                score = f"{result['metrics'][metric]:.2f} ± {result['standard_errors'][metric]:.2f}"
                subset, spread = result["config"].get("train_subset") or "all", "-" if deviation is None else f"{deviation:.2f}"
                rows.append((result["protocol"], subset, metric, score, spread, f"`{result['details']['command']}`"))
    header = ("protocol", "training images", "metric", "percent", "standard deviation over subsets", "command")
    return ["## Classification of CIFAR-10 by every protocol", "", *table(header, rows)]


def reliability() -> list[str]:
    """Extractions, training runs and index builds that were killed."""
    record, training, index = read("reliability"), read("reliability_training"), read("reliability_search")
    rows = record["rows_when_killed"]
    lines = [
        "## Reliability",
        "",
        "Processes killed with SIGKILL at random times and resumed by the same command:",
        "",
        f"- `{record['command']}`: {record['bit_identical']} of {record['runs']} extractions ended bit-identical to an uninterrupted one, and {record['resumed']} resumed from stored rows. "
        f"They were killed after {min(rows)} to {max(rows)} of 400 rows (-1: before the first or after the last).",
    ]
    for protocol in ("linear", "finetune", "train", "train on 2 processes"):
        found = training[protocol]
        lines.append(
            f"- `{training['command']}`, {protocol}: {found['equal_to_uninterrupted']} of {len(found['on_disk_when_killed'])} ended with all numbers of an uninterrupted run "
            f"(on disk when killed: {'; '.join(found['on_disk_when_killed'])})."
        )
    equal = f"{index['equal_to_uninterrupted']} of {index['runs']} builds of a search index"
    lines += [f"- `{index['command']}`: {equal} matched uninterrupted builds byte for byte.", ""]
    found = read("reliability_inputs")
    lines += [
        f"`{found['command']}`: {found['inputs']:,} odd, corrupted and hostile files of {found['kinds']:,} kinds. Every command that takes such a file reads it in a child process.",
        "",
        "| files | accepted | rejected |",
        "|---|---|---|",
        *(f"| {row['area']} | {row.get('accepted', 0):,} | {row.get('rejected', 0):,} |" for row in found["areas"]),
        "",
        f"Tracebacks {found['traceback']}, hangs {found['hang']}, crashes {found['crash']}, executed code {found['executed']}, started processes or connections {found['reached']}, "
        f"files that two commands read differently {found['different']}.",
        "",
    ]
    return lines


def rerun() -> list[str]:
    """The commands of all records that a script writes."""
    scored = {path for pattern in SCORED for path in RESULTS.glob(pattern)}
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if path not in scored]
    commands = sorted({record["command"] for record in records if "command" in record}, key=lambda command: command.split("benchmarks/")[1])
    return RERUN.format(commands="\n".join(command for command in commands if "mutations.py" not in command)).splitlines()


def add(path: str, command: str) -> None:
    """Store a Result as results/<protocol>_<data>_<arch>.json."""
    result = json.loads(Path(path).read_text())
    del result["samples"]
    for part, name in (("data", "name"), ("config", "data"), ("backbone", "weights")):
        result[part][name] = Path(result[part][name]).name
    result["notes"] = [note.partition("; heads in ")[0] for note in result["notes"]]
    result["details"]["command"] = command
    subset = result["config"].get("train_subset")
    data = f"{result['data']['name']}-{subset}" if subset else result["data"]["name"]
    target = RESULTS / f"{result['protocol']}_{data}_{result['backbone']['arch']}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("RESULT", "COMMAND"), help="first store a Result and the command that wrote it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/README.md", help="file to write (default: benchmarks/README.md)")
    args = parser.parse_args()
    if args.add:
        add(*args.add)
    parts = [
        *HEAD.splitlines(),
        "",
        *parity(),
        *parity_classification(),
        *scores(),
        *classification(),
        *scoreboard_speed.sections(read, table),
        *scoreboard_patches.sections(read, table),
        *reliability(),
        *rerun(),
    ]
    args.out.write_text("\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    main()
