"""Landmark retrieval: scores, distractors, comparisons, and what it rejects."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from factories import synthetic_images
from paper_results import missing_facts, reasons
from PIL import Image
from set_factories import revisited_set, synthetic_videos

import dinoeval
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import MULTISCALE, Thumbnail
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.forward import forward
from dinoeval.features.readout import Cls
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.paper.comparable import comparable
from dinoeval.results import Result
from dinoeval.session import SessionConfig
from dinoeval.verdicts import compare_results

OPTIONS = {"image_size": 32}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return synthetic_videos(tmp_path_factory.mktemp("videos"), videos=3, frames=10)


@pytest.fixture
def root(tmp_path, videos):
    return revisited_set(tmp_path / "sets", videos, queries=5, near=1, far=3)


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def slow_precision(cosines: np.ndarray, correct: set, junk: set) -> float:
    """Compute average precision by walking down the ranking."""
    area, found, seen, before = 0.0, 0, 0, 1.0
    for row in np.argsort(-cosines, kind="stable").tolist():
        if row not in junk:
            seen, found = seen + 1, found + (row in correct)
            area += (before + found / seen) / 2 * (row in correct)
            before = found / seen
    return area / len(correct)


def test_scores_equal_the_definition_on_single_images(backbone, root):
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), multiscale=True, **OPTIONS)
    assert result.config["multiscale"] is True
    content = pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())
    features = {}
    for key in ("imlist", "qimlist"):
        images = open_images([root / f"roxford5k/jpg/{name}.jpg" for name in content[key]])
        features[key] = l2_normalize(forward(backbone, images, Cls(), Thumbnail(32, MULTISCALE), batch_size=1))
    cosines = features["qimlist"] @ features["imlist"].T
    lists = [{name: set(query[name].tolist()) for name in ("easy", "hard", "junk")} for query in content["gnd"]]
    expected = {
        "mAP_easy": [slow_precision(cosines[q], one["easy"], one["junk"] | one["hard"]) for q, one in enumerate(lists)],
        "mAP_medium": [slow_precision(cosines[q], one["easy"] | one["hard"], one["junk"]) for q, one in enumerate(lists)],
        "mAP_hard": [slow_precision(cosines[q], one["hard"], one["junk"] | one["easy"]) for q, one in enumerate(lists)],
    }
    for metric, values in expected.items():
        assert result.samples[metric] == pytest.approx(values)
        assert result.metrics[metric] == pytest.approx(100 * np.mean(values))
    assert result.samples["path"] == [f"{name}.jpg" for name in content["qimlist"]]
    best = np.argsort(-cosines, axis=1)
    first = [next(row for row in best[q].tolist() if row not in one["junk"]) in one["easy"] | one["hard"] for q, one in enumerate(lists)]
    assert result.metrics["mP@1_medium"] == pytest.approx(100 * np.mean(first))
    assert set(result.metrics) == {f"{name}_{level}" for name in ("mAP", "mP@1", "mP@5", "mP@10") for level in ("easy", "medium", "hard")}


def test_result_has_intervals_and_names_all_differences(backbone, root, tmp_path):
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    for row in result.table:
        assert row["low"] <= result.metrics[row["metric"]] <= row["high"]
    assert any("10,000 bootstrap samples" in note and "queries" in note and "seed 0" in note for note in result.notes)
    assert (result.data["database"]["images"], result.data["queries"]["images"]) == (25, 5)
    assert result.transform == "thumbnail@1:32"
    for fact in ("data.database.images: 25", "data.queries.images: 5", "config.image_size: 32"):
        assert fact in reasons(result)
    assert "tiny.safetensors" in "; ".join(comparable(result).reasons)
    assert missing_facts(result) == set()
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").samples == result.samples


def test_queries_without_correct_images_are_not_averaged(backbone, root):
    path = root / "roxford5k/gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    content["gnd"][2]["hard"] = content["gnd"][2]["easy"][:0]
    path.write_bytes(pickle.dumps(content))
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    hard = result.samples["mAP_hard"]
    assert hard[2] is None
    assert result.metrics["mAP_hard"] == pytest.approx(100 * np.mean([value for value in hard if value is not None]))
    verdicts, _ = compare_results(result, result)
    assert {verdict.method for verdict in verdicts} == {f"paired: 0 outcomes gained, 0 lost; {verdicts[0].method.split('; ')[1]}"}
    for query in content["gnd"]:
        query["hard"] = query["hard"][:0]
    path.write_bytes(pickle.dumps(content))
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    assert "mAP_hard" not in result.metrics
    assert any("mAP_hard" in note and "left out" in note for note in result.notes)


def test_distractors_score_like_database_images(backbone, root, videos, tmp_path):
    without = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    frames = tmp_path / "frames"  # Rotated frames of the videos of the queries: similar to them, all different.
    frames.mkdir()
    for number, path in enumerate(path for paths in videos.values() for path in paths[::2]):
        Image.open(path).rotate(2).save(frames / f"{number}.jpg")
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), distractors=str(frames), **OPTIONS)
    assert result.metrics["mAP_medium"] < without.metrics["mAP_medium"]
    assert "config.distractors: frames" in reasons(result)
    larger = revisited_set(tmp_path / "larger", videos, queries=5, near=1, far=3)
    path = larger / "roxford5k/gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    for frame in frames.iterdir():
        (larger / f"roxford5k/jpg/distractor{frame.name}").symlink_to(frame)
        content["imlist"].append(f"distractor{frame.stem}")
    path.write_bytes(pickle.dumps(content))
    inside = dinoeval.evaluate("retrieval", backbone, data=str(larger), **OPTIONS)
    assert result.metrics == pytest.approx(inside.metrics)


def test_whitening_and_query_crop_change_the_scores(backbone, root, image_folder):
    whitening = {"whitening": str(image_folder)}
    several = ({}, {"query_crop": True}, whitening, {**whitening, "center_whitening": True})
    runs = [dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS, **options) for options in several]
    assert len({tuple(run.samples["mAP_medium"]) for run in runs}) == 4
    assert "config.query_crop: yes" in reasons(runs[1])
    assert "config.whitening" in reasons(runs[2])
    verdicts, reason = compare_results(runs[1], runs[0])
    assert not verdicts
    assert "query_crop" in reason


def test_two_networks_are_compared_in_pairs_of_queries(backbone, root, tmp_path):
    other = dinoeval.load(backbone.arch, weights="random")
    one, two = (dinoeval.evaluate("retrieval", network, data=str(root), **OPTIONS) for network in (backbone, other))
    verdicts, reason = compare_results(two, one)
    assert reason is None
    medium = next(verdict for verdict in verdicts if verdict.metric == "mAP_medium")
    gaps = np.array(two.samples["mAP_medium"]) - np.array(one.samples["mAP_medium"])
    assert medium.difference == pytest.approx(100 * gaps.mean())
    z = float(medium.method.split("; ")[1].split(" x ")[0])  # Two decimals.
    assert medium.tolerance == pytest.approx(100 * z * np.sqrt((gaps**2).sum()) / 5, rel=0.01)


def test_unreadable_images_are_named_or_skipped(backbone, root):
    names = pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())["imlist"]
    (root / f"roxford5k/jpg/{names[1]}.jpg").unlink()
    (root / f"roxford5k/jpg/{names[1]}.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=rf"{names[1]}\.jpg"):
        dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    session = SessionConfig(bad_images="skip")
    result = dinoeval.evaluate("retrieval", backbone, session=session, data=str(root), **OPTIONS)
    assert result.data["database"]["images"] == 24
    assert "cannot be read: 1" in reasons(result)
    assert result.metrics["mAP_easy"] < 100, "an image that cannot be read is not found"


def test_database_of_one_image_scores_100(backbone, tmp_path):
    folder = tmp_path / "roxford5k/jpg"
    folder.mkdir(parents=True)
    synthetic_images(1, (64, 48))[0].save(folder / "a.jpg")
    content = {"imlist": ["a"], "qimlist": ["a"], "gnd": [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}]}
    (tmp_path / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    result = dinoeval.evaluate("retrieval", backbone, data=str(tmp_path), **OPTIONS)
    assert result.metrics == {f"{name}_{level}": 100.0 for level in ("easy", "medium") for name in ("mAP", "mP@1", "mP@5", "mP@10")}


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"image_size": 0}, ConfigError, "--image-size .* 0"),
        ({"center_whitening": True}, ConfigError, "--center-whitening .*--whitening"),
        ({"distractors": "/nowhere"}, DataError, "--distractors /nowhere"),
        ({"image_size": 3}, ConfigError, r"\b3\b.*\b4\b"),
    ],
)
def test_run_rejects_invalid_options(backbone, root, options, error, named):
    with pytest.raises(error, match=named):
        dinoeval.evaluate("retrieval", backbone, data=str(root), **{**OPTIONS, **options})


def test_run_rejects_missing_data_and_a_transform(backbone, root):
    with pytest.raises(ConfigError, match="--data"):
        dinoeval.evaluate("retrieval", backbone)
    with pytest.raises(ConfigError, match="--image-size"):
        dinoeval.evaluate("retrieval", backbone, session=SessionConfig(transform="dino:64/64"), data=str(root))
