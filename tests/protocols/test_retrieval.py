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
from dinoeval.protocols import retrieval
from dinoeval.results import Result
from dinoeval.session import SessionConfig
from dinoeval.verdicts import compare_results

OPTIONS = {"image_size": 64}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return synthetic_videos(tmp_path_factory.mktemp("videos"), videos=3, frames=10)


@pytest.fixture
def root(tmp_path, videos):
    return revisited_set(tmp_path / "sets", videos, queries=5, near=1, far=3)


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def slow_scores(cosines: np.ndarray, right: set, junk: set) -> float:
    """Average precision by walking down the list."""
    area, found, seen, before = 0.0, 0, 0, 1.0
    for row in np.argsort(-cosines, kind="stable").tolist():
        if row not in junk:
            seen, found = seen + 1, found + (row in right)
            area += (before + found / seen) / 2 * (row in right)
            before = found / seen
    return area / len(right)


def test_scores_equal_the_definition_on_features_made_one_by_one(backbone, root):
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), multiscale=True, **OPTIONS)
    content = pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())
    rows = {}
    for key in ("imlist", "qimlist"):
        images = open_images([root / f"roxford5k/jpg/{name}.jpg" for name in content[key]])
        rows[key] = l2_normalize(forward(backbone, images, Cls(), Thumbnail(64, MULTISCALE), batch_size=1))
    cosines = rows["qimlist"] @ rows["imlist"].T
    lists = [{name: set(query[name].tolist()) for name in ("easy", "hard", "junk")} for query in content["gnd"]]
    expected = {
        "mAP_easy": [slow_scores(cosines[q], one["easy"], one["junk"] | one["hard"]) for q, one in enumerate(lists)],
        "mAP_medium": [slow_scores(cosines[q], one["easy"] | one["hard"], one["junk"]) for q, one in enumerate(lists)],
        "mAP_hard": [slow_scores(cosines[q], one["hard"], one["junk"] | one["easy"]) for q, one in enumerate(lists)],
    }
    for metric, values in expected.items():
        assert result.samples[metric] == pytest.approx(values)
        assert result.metrics[metric] == pytest.approx(100 * np.mean(values))
    assert result.samples["path"] == [f"{name}.jpg" for name in content["qimlist"]]
    best = np.argsort(-cosines, axis=1)
    first = [next(row for row in best[q].tolist() if row not in one["junk"]) in one["easy"] | one["hard"] for q, one in enumerate(lists)]
    assert result.metrics["mP@1_medium"] == pytest.approx(100 * np.mean(first))
    assert set(result.metrics) == {f"{name}_{level}" for name in ("mAP", "mP@1", "mP@5", "mP@10") for level in ("easy", "medium", "hard")}


def test_intervals_and_what_the_result_says(backbone, root, tmp_path):
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    for row in result.table:
        assert row["low"] <= result.metrics[row["metric"]] <= row["high"]
    assert any("10,000 bootstrap samples of the queries" in note and "seed 0" in note for note in result.notes)
    assert (result.data["database"]["images"], result.data["queries"]["images"]) == (25, 5)
    assert result.transform == "thumbnail@1:64"
    for fact in ("data.database.images: 25", "data.queries.images: 5", "config.image_size: 64"):
        assert fact in reasons(result)
    assert "unknown weights" in "; ".join(comparable(result).reasons)
    assert missing_facts(result) == set()
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").samples == result.samples


def test_a_query_without_right_images_counts_nowhere(backbone, root):
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


def test_distractors_lower_the_score_as_if_they_were_in_the_database(backbone, root, videos, tmp_path):
    alone = dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    frames = tmp_path / "frames"  # of the queries' own videos, so close to them, but none the same as another
    frames.mkdir()
    for number, path in enumerate(path for paths in videos.values() for path in paths[::2]):
        Image.open(path).rotate(2).save(frames / f"{number}.jpg")
    result = dinoeval.evaluate("retrieval", backbone, data=str(root), distractors=str(frames), **OPTIONS)
    assert result.metrics["mAP_medium"] < alone.metrics["mAP_medium"]
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


def test_whitening_and_cropped_queries_change_the_score(backbone, root, image_folder):
    runs = [
        dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS, **options)
        for options in (
            {},
            {"query_crop": True},
            {"whitening": str(image_folder)},
            {"whitening": str(image_folder), "center_whitening": True},
        )
    ]
    assert len({tuple(run.samples["mAP_medium"]) for run in runs}) == 4
    assert "config.query_crop: yes" in reasons(runs[1])
    assert "config.whitening" in reasons(runs[2])
    verdicts, reason = compare_results(runs[1], runs[0])
    assert not verdicts
    assert "query_crop" in reason


def test_runs_of_two_networks_are_compared_query_by_query(backbone, root, tmp_path):
    other = dinoeval.load(backbone.arch, weights="random")
    one, two = (dinoeval.evaluate("retrieval", net, data=str(root), **OPTIONS) for net in (backbone, other))
    verdicts, reason = compare_results(two, one)
    assert reason is None
    medium = next(verdict for verdict in verdicts if verdict.metric == "mAP_medium")
    gaps = np.array(two.samples["mAP_medium"]) - np.array(one.samples["mAP_medium"])
    assert medium.difference == pytest.approx(100 * gaps.mean())
    z = float(medium.method.split("; ")[1].split(" x ")[0])  # two decimals of it
    assert medium.tolerance == pytest.approx(100 * z * np.sqrt((gaps**2).sum()) / 5, rel=0.01)


def test_unreadable_images(backbone, root):
    names = pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())["imlist"]
    (root / f"roxford5k/jpg/{names[1]}.jpg").unlink()
    (root / f"roxford5k/jpg/{names[1]}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{names[1]}.jpg"):
        dinoeval.evaluate("retrieval", backbone, data=str(root), **OPTIONS)
    session = SessionConfig(bad_images="skip")
    result = dinoeval.evaluate("retrieval", backbone, session=session, data=str(root), **OPTIONS)
    assert result.data["database"]["images"] == 24
    assert "cannot be read" in reasons(result)
    assert result.metrics["mAP_easy"] < 100  # what was not read is not found


def test_one_image_only(backbone, tmp_path):
    folder = tmp_path / "roxford5k/jpg"
    folder.mkdir(parents=True)
    synthetic_images(1, (64, 48))[0].save(folder / "a.jpg")
    content = {"imlist": ["a"], "qimlist": ["a"], "gnd": [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}]}
    (tmp_path / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    result = dinoeval.evaluate("retrieval", backbone, data=str(tmp_path), **OPTIONS)
    assert result.metrics == {f"{name}_{level}": 100.0 for level in ("easy", "medium") for name in ("mAP", "mP@1", "mP@5", "mP@10")}


def test_settings_of_the_paper_where_no_size_is_named():
    config = retrieval.Config
    assert retrieval.resolve_setting(config()) == (224, (1.0,))
    assert retrieval.resolve_setting(config(dataset="rparis6k")) == (512, MULTISCALE)
    assert retrieval.resolve_setting(config(dataset="rparis6k", image_size=224)) == (224, (1.0,))
    assert retrieval.resolve_setting(config(multiscale=True)) == (224, MULTISCALE)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"image_size": 0}, ConfigError, "--image-size"),
        ({"center_whitening": True}, ConfigError, "--whitening"),
        ({"distractors": "/nowhere"}, DataError, "--distractors"),
        ({"image_size": 3}, ConfigError, "smaller than a patch"),
    ],
)
def test_options_that_make_no_sense(backbone, root, options, error, says):
    with pytest.raises(error, match=says):
        dinoeval.evaluate("retrieval", backbone, data=str(root), **{**OPTIONS, **options})


def test_no_data_and_another_transform(backbone, root):
    with pytest.raises(ConfigError, match="--data"):
        dinoeval.evaluate("retrieval", backbone)
    with pytest.raises(ConfigError, match="--image-size"):
        dinoeval.evaluate("retrieval", backbone, session=SessionConfig(transform="dino:64/64"), data=str(root))
