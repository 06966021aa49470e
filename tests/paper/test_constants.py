"""Constants of the evaluations, as the paper, its released code or its authors state them.

Scripts are those of facebookresearch/dino at 7c446df. Issues are those of the same repository, answered by the authors.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from set_factories import copydays_tree, synthetic_videos

import dinoeval
from dinoeval.data import copydays as copydays_data
from dinoeval.data.frame_transforms import DAVIS_STD, MULTIPLE, FrameTransform
from dinoeval.data.transforms import DINO_TRANSFORM, MEAN, MULTISCALE, STD, CenterCrop
from dinoeval.features.readout import ClsGem, parse_readout
from dinoeval.figures.attention_maps import MASS, THRESHOLD
from dinoeval.figures.class_map import TsneConfig
from dinoeval.maths import heads, segmentation
from dinoeval.maths.heads import Heads
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.vit import LAYER_NORM_EPS
from dinoeval.paper.rows import rows_for
from dinoeval.protocols import copydays, davis, knn, linear, logistic, retrieval, segment
from dinoeval.throughput import ThroughputConfig


def test_evaluation_transform_equals_eval_knn():
    """eval_knn.py and eval_linear.py: resize 256 bicubic, crop 224, mean and standard deviation of ImageNet."""
    assert CenterCrop(resize=256, crop=224, interpolation="bicubic", mean=MEAN, std=STD, squash=False) == DINO_TRANSFORM
    assert DINO_TRANSFORM.crop / DINO_TRANSFORM.resize == 0.875
    assert (MEAN, STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_architectures_equal_vision_transformer():
    """vision_transformer.py: vit_tiny, vit_small and vit_base; the factories use 1e-6 in LayerNorm."""
    shapes = {name: parse_architecture(name) for name in ("vit_ti16", "vit_s16", "vit_s8", "vit_b16", "vit_b8")}
    assert {name: (one.patch_size, one.dim, one.depth, one.num_heads) for name, one in shapes.items()} == {
        "vit_ti16": (16, 192, 12, 3),
        "vit_s16": (16, 384, 12, 6),
        "vit_s8": (8, 384, 12, 6),
        "vit_b16": (16, 768, 12, 12),
        "vit_b8": (8, 768, 12, 12),
    }
    assert LAYER_NORM_EPS == 1e-6


def test_knn_constants_equal_eval_knn():
    """eval_knn.py: k of 10, 20, 100 and 200, temperature 0.07. The paper reports k = 20."""
    config = knn.Config()
    assert (config.k, config.temperature) == ((10, 20, 100, 200), 0.07)
    assert {row.metric for row in rows_for("knn") if not row.incomparable} == {"top1@20"}


def test_logistic_constants_equal_issue_121():
    """Issue 121: lambda = 0.1, to be divided by the number of images; a duality gap of 1e-3."""
    config = logistic.Config()
    assert (config.lambdas, config.tolerance, config.solver) == ((0.1,), 1e-3, "cyanure")


def test_linear_constants_equal_eval_linear():
    """eval_linear.py: 100 epochs, batch 128 on each of 8 GPUs, no weight decay, augmentation, all training images."""
    config = linear.Config()
    paper = {"epochs": 100, "train_batch_size": 8 * 128, "weight_decays": (0.0,), "features": "augmented"}
    assert {name: getattr(config, name) for name in paper} == paper
    assert heads.MOMENTUM == 0.9
    assert 0.001 in config.lrs, "the default of eval_linear.py"
    assert config.lrs == tuple(sorted(config.lrs))


def test_linear_head_starts_like_eval_linear():
    """LinearClassifier in eval_linear.py: weights from a normal distribution of 0.01, biases 0."""
    made = Heads([0.1], [0.0], 500, 100, seed=0, device=torch.device("cpu"))
    assert made.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert made.weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert not made.bias.any()


def test_linear_readout_depends_on_the_architecture():
    """README and appendix F.2: four [CLS] tokens for ViT-S, [CLS] and mean patch for ViT-B; eval_linear.py for others."""
    readouts = {arch: linear.default_readout(arch) for arch in ("vit_s16", "vit_s8", "vit_b16", "vit_b8", "resnet50", "xcit_small_12_p8")}
    assert list(readouts.values()) == ["last4", "last4", "clsavg", "clsavg", "cls", "cls"]
    assert [parse_readout(name).feature_shape(dim, (14, 14)) for name, dim in (("last4", 384), ("clsavg", 768))] == [(1536,), (1536,)]


def test_retrieval_settings_equal_the_readme():
    """README and issue 90: 224 pixels at one scale for Oxford, 512 at the scales 1, 0.71 and 0.5 for Paris."""
    config = retrieval.Config
    assert pytest.approx((1, 1 / math.sqrt(2), 1 / 2)) == MULTISCALE
    assert retrieval.resolve_setting(config()) == (224, (1.0,))
    assert retrieval.resolve_setting(config(dataset="rparis6k")) == (512, MULTISCALE)
    assert retrieval.resolve_setting(config(dataset="rparis6k", image_size=224)) == (224, (1.0,))
    assert retrieval.resolve_setting(config(multiscale=True)) == (224, MULTISCALE)
    assert not config().query_crop, "the paper queries with whole images"
    assert retrieval.KS == (1, 5, 10)


def test_copydays_constants_equal_eval_copy_detection():
    """eval_copy_detection.py: power 4, 20 ranks, uncentered whitening; its blocks have 157 images, strong/ has 229."""
    config = copydays.Config()
    assert (config.gem_p, config.ap_cutoff, config.center_whitening) == (4.0, 20, False)
    assert parse_readout("gem") == ClsGem(4.0)
    counts = copydays_data.PUBLISHED_COUNTS
    assert (len(counts), counts["strong"], set(counts.values()), sum(counts.values())) == (20, 229, {157, 229}, 3_212)
    assert copydays_data.JPEG_QUALITIES == (3, 5, 8, 10, 15, 20, 30, 50, 75)
    assert copydays_data.CROPS == (10, 15, 20, 30, 40, 50, 60, 70, 80)


@pytest.mark.parametrize(("arch", "size"), [("vit_xs16", 224), ("vit_xs8", 320)])
def test_copydays_image_size_depends_on_the_patch(arch, size, tmp_path):
    """Table 4: 224 pixels for ViT-B/16, 320 for ViT-B/8. Images are resized to a square (eval_copy_detection.py)."""
    videos = synthetic_videos(tmp_path / "videos", videos=1, frames=1)
    root = copydays_tree(tmp_path / "copydays", videos["video0"], scenes=1, strong=1, blocks=False)
    result = dinoeval.evaluate("copydays", dinoeval.load(arch, weights="random", device="cpu"), data=str(root))
    assert result.config["image_size"] == size
    assert result.transform == CenterCrop(size, size, squash=True).id


def test_davis_constants_equal_eval_video_segmentation():
    """eval_video_segmentation.py: 480 pixels, multiples of 64, 7 frames, radius 12, top 5, temperature 0.1, red 0.228."""
    config = davis.Config()
    paper = {"image_size": 480, "resize_backend": "opencv", "context_frames": 7, "radius": 12, "top_k": 5, "temperature": 0.1}
    assert {name: getattr(config, name) for name in paper} == paper
    assert (config.edge_cases, MULTIPLE, DAVIS_STD) == ("released", 64, (0.228, 0.224, 0.225))
    assert (FrameTransform().side, FrameTransform().mean, FrameTransform().std) == (480, MEAN, DAVIS_STD)
    assert FrameTransform().size(854, 480) == (832, 480)


def test_davis_metric_constants_equal_davis2017_evaluation():
    """metrics.py of davis2017-evaluation: contours match within 0.8 % of the diagonal, decay has four bins."""
    assert (segmentation.TOLERANCE, segmentation.BINS) == (0.008, 4)
    assert math.ceil(segmentation.TOLERANCE * math.hypot(480, 854)) == 8


def test_segment_constants_equal_the_main_text():
    """Figure 4: masks of 60 % of the attention; visualize_attention.py resizes to 480 pixels; issue 54: instances."""
    config = segment.Config()
    assert (config.mass, config.image_size, config.objects) == (0.6, 480, "instance")


def test_figure_constants_equal_the_paper():
    """Masks of 60 % (Figure 4), threshold 0.2 (issue 92, Figure 3), and t-SNE of 30 dimensions (appendix)."""
    assert (MASS, THRESHOLD) == (0.6, 0.2)
    assert dataclasses.astuple(TsneConfig())[:4] == (30, 20.0, 200.0, 5000)


def test_throughput_batch_equals_table_1():
    """Table 1: images per second with 128 images per forward pass."""
    assert ThroughputConfig().batch_size == 128
