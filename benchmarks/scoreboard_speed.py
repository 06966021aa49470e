"""The part of benchmarks/README.md about speed, retrieval and search."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[str], dict]
Table = Callable[..., list[str]]


def sections(read: Read, table: Table) -> list[str]:
    """Return the lines of the page.

    Args:
        read: Returns a record by its name.
        table: Returns the lines of a table.
    """
    return [
        *speed(read, table),
        *linear(read("speed_linear")),
        *logistic(read("speed_logistic"), table),
        *retrieval(read, table),
        *search(read, table),
    ]


def hardware(record: dict) -> str:
    """Describe the machine of a record."""
    machine = record["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, faiss {machine['faiss-cpu']}"


def speed(read: Read, table: Table) -> list[str]:
    """Whole commands, k-NN and extraction."""
    startup = read("speed_startup")
    return [
        "## Speed",
        "",
        f"On {hardware(read('speed_knn'))}. Values are medians. Ratios are of programs that ran in turn on one machine.",
        "",
        f"**Whole commands** (`{startup['command']}`): `dinoeval --help` {startup['--help']:.2f} s; `dinoeval knn` on digits with an empty cache, offline,",
        f"{startup['knn']:.1f} s.",
        "",
        *knn(read("speed_knn"), table),
        *extraction(read("speed_extraction"), table),
    ]


def knn(record: dict, table: Table) -> list[str]:
    """The k-NN sweep."""
    seconds, ratios, runs = record["seconds"], record["speedup"], record["runs"]["dinoeval"]
    rows = [
        ("dinoeval", f"{seconds['dinoeval']:.1f}", 1),
        ("released `knn_classifier`, once per k", f"{seconds['released']:.1f}", f"{ratios['released']:.1f}"),
        ("scikit-learn, once per k (one run)", f"{seconds['sklearn']:.1f}", f"{ratios['sklearn']:.1f}"),
        (
            "MACs alone, at the best rate of this machine",
            f"{record['mac_limit_seconds']:.1f}",
            f"1/{record['dinoeval_over_mac_limit']:.2f}",
        ),
    ]
    return [
        f"**k-NN sweep** (`{record['command']}`): {record['problem']}.",
        "",
        *table(("", "seconds", "relative to dinoeval"), rows),
        f"The search adds at most {max(run['added_peak_mb'] for run in runs):.0f} MB to the memory of the process, for {record['features_mb']:.0f} MB of memory-mapped features; "
        f"the whole process uses {max(run['peak_mb'] for run in runs):.0f} MB.",
        "",
    ]


def extraction(record: dict, table: Table) -> list[str]:
    """From files to features."""
    rates, ratios = record["images_per_second"], record["speedup"]
    rows = [
        ("released `extract_features`", f"{rates['released']:.1f}", 1),
        ("dinoeval, fp32", f"{rates['dinoeval_fp32']:.1f}", f"{ratios['dinoeval_fp32']:.2f}"),
    ]
    if "dinoeval_bf16" in rates:
        rows.append(("dinoeval, bf16", f"{rates['dinoeval_bf16']:.1f}", f"{ratios['dinoeval_bf16']:.2f}"))
    cosine = record["smallest_cosine_bf16_fp32"]
    return [
        f"**JPEG files to [CLS]** (`{record['command']}`): {record['problem']}.",
        "",
        *table(("", "images per second", "relative to the released code"), rows),
        *(line for reason in record.get("left_out", []) for line in (f"Left out is {reason}.", "")),
        *([] if cosine is None else [f"Smallest cosine between a bf16 feature and its fp32 feature: {cosine:.5f}."]),
        f"fp32 runs at {record['gflops_fp32']:.0f} GFLOP/s end to end; features differ from the released ones by at most {record['difference_to_released']:.1e}.",
        "",
    ]


def linear(record: dict) -> list[str]:
    """Sweeps and cached features."""
    ratios = " and ".join(f"{ratio:.2f} times with {classes}" for classes, ratio in record["sweep_over_1_rate"].items())
    scatter = max(max(times) / min(times) for name, times in record["seconds"].items() if "cached" not in name) - 1
    return [
        f"**Linear probe** (`{record['command']}`): {record['problem']}. Compared with one learning rate, a sweep of 13 rates takes {ratios}, and 13 rates with",
        f"2 readouts {record['sweep_with_2_readouts_over_1_rate']:.2f} times (medians; single runs scatter by up to {scatter:.0%} here). An augmented epoch takes "
        f"{record['augmented_epoch_over_cached_epoch']:,.0f} times as long as one on cached features.",
        "",
    ]


def logistic(record: dict, table: Table) -> list[str]:
    """Solvers of logistic regression."""
    rows = [
        (way, f"{seconds:.1f}", f"{record['duality_gap'][way]:.1e}", f"{record['top1'][way]:.2f}")
        for way, seconds in record["median_seconds"].items()
    ]
    return [
        f"**Logistic regression** (`{record['command']}`): {record['problem']}.",
        "",
        *table(("solver", "seconds", "relative duality gap", "top-1"), rows),
    ]


def retrieval(read: Read, table: Table) -> list[str]:
    """Parity and speed of retrieval and copy detection."""
    parity, timed = read("parity_retrieval"), read("speed_retrieval")
    largest = {name: max(parity[name].values()) for name in ("random_rankings", "descriptors", "copy_detection")}
    rows = [
        (name, metric, f"{sides['dinoeval']:.4f}", f"{sides['released']:.4f}")
        for name, metrics in parity["datasets"].items()
        for metric, sides in metrics.items()
        if metric.startswith("mAP_") and "/" not in metric
    ]
    blocks = [abs(sides["dinoeval"] - sides["released"]) for sides in parity["datasets"]["copydays"].values()]
    batches, distractors = timed["batches"], timed["distractors"]
    rates = batches["images_per_second"]
    return [
        "## Retrieval and copy detection",
        "",
        f"`{parity['command']}`: against the released code and the evaluation of the revisited benchmark. Largest differences: random rankings "
        f"{largest['random_rankings']:.0e} (fractions), descriptors {largest['descriptors']:.0e}, GeM, whitening and average precision {largest['copy_detection']:.0e}.",
        "Both command lines on synthetic datasets, in percent (the released retrieval prints two decimals):",
        "",
        *table(("dataset", "metric", "dinoeval", "released"), rows),
        f"All {len(blocks)} blocks of Copydays agree within {max(blocks):.0e} points.",
        "",
        f"`{timed['command']}`: ViT-S/16 at {rates['batches']:.2f} images per second in batches of equal size, {rates['one_by_one']:.2f} one by one "
        f"({batches['median_speedup_of_batches']:.2f} times, the median of {len(batches['rounds']['one_by_one'])} paired rounds). "
        f"Ranking among {distractors['distractors']:,} x {distractors['dims']} distractors takes {distractors['seconds']:.0f} s and adds {distractors['added_peak_mb']} MB of peak memory. "
        "Synthetic datasets of the published size, a checkpoint trained for three epochs on CIFAR-10, seconds on a loaded machine:",
        "",
        *table(("dataset", "images", "mAP, percent", "seconds"), (dataset_row(name, row) for name, row in timed["datasets"].items())),
    ]


def dataset_row(name: str, record: dict) -> tuple[str, str, str, str]:
    """Return a row of the table of datasets."""
    images = ", ".join(f"{count:,} {split}" for split, count in record["images"].items())
    metrics = [metric for metric in ("mAP_medium", "mAP_hard", "mAP_strong") if metric in record["metrics"]]
    shown = ", ".join(f"{metric.removeprefix('mAP_')} {record['metrics'][metric]:.2f}" for metric in metrics)
    return name, images, shown, f"{record['seconds']:.0f}"


def search(read: Read, table: Table) -> list[str]:
    """Indexes, and duplicates that were added to real images."""
    indexes, copies = read("speed_search"), read("duplicates")
    rows = []
    for size, kinds in indexes["vectors"].items():
        for kind, record in kinds.items():
            if kind == "write":
                continue
            query = record.get("query", record)
            ways = [query[f"{count}_at_a_time"] for count in (1, 100)]
            rates = " / ".join(f"{way['queries_per_second']:,.1f}" for way in ways)
            built = record["build"]["seconds_to_build"] if "build" in record else kinds["write"]["seconds_to_draw_and_write"]
            recall = f"{query['recall@10_of_other_queries']:.3f}" if "query" in record else "exact"
            rows.append((size, kind, f"{built:.0f}", rates, recall, f"{max(way['added_mb'] for way in ways):.0f}"))
    found = []
    for name, record in copies["datasets"].items():
        threshold = record["calibrated"]["cosine"]
        row = next(row for row in record["thresholds"] if abs(row["threshold"] - threshold) < 1e-6)
        recalls = ", ".join(f"{kind} {share:.2f}" for kind, share in row["recall"].items())
        found.append((name, f"{threshold:.5f}", f"{row['precision']:.2f}", recalls))
    header = ("vectors", "index", "build, s", "queries per second, 1 / 100 at a time", "recall@10", "MB that a query adds")
    return [
        "## Search",
        "",
        f"`{indexes['command']}`: synthetic vectors; recall@10 against exact search, for queries that are not in the index.",
        "",
        *table(header, rows),
        f"`{copies['command']}`: copies of {copies['copied']} images, added to each dataset and found at the calibrated threshold.",
        "",
        *table(("dataset", "threshold", "precision of pairs", "recall by kind of copy"), found),
    ]
