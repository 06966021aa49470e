"""Readouts, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls, ClsAvg, ClsGem, LastCls, Patches, parse_readout
from dinoeval.models.backbone import Tokens

# One image, two dims, one row of two patches. Block 1: [CLS] (1, 2). Block 2: [CLS] (3, 4), patches (2, -1) and (4, 1).
EARLIER = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])
LAST = torch.tensor([[[3.0, 4.0], [2.0, -1.0], [4.0, 1.0]]])
TOKENS = Tokens(cls=LAST[:, 0], patches=LAST[:, 1:].reshape(1, 1, 2, 2), layers=(EARLIER, LAST))


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        (Cls(), [3, 4]),
        (LastCls(2), [1, 2, 3, 4]),  # earliest block first
        (LastCls(1), [3, 4]),
        (ClsAvg(), [3, 3, 4, 0]),  # interleaved: cls 0, mean (2 + 4) / 2, cls 1, mean (-1 + 1) / 2
        (ClsGem(1), [3, 4, 3, 0.5000005]),  # -1 is clamped to 1e-6
        (ClsGem(2), [3, 4, 10**0.5, 0.5**0.5]),  # sqrt((4 + 16) / 2), sqrt((~0 + 1) / 2)
    ],
)
def test_readout_equals_hand_computed_values(readout, expected):
    torch.testing.assert_close(readout(TOKENS), torch.tensor([expected], dtype=torch.float32))
    assert readout.feature_shape(2, (1, 2)) == (len(expected),)


def test_patches_readout_keeps_grid():
    assert Patches()(TOKENS).shape == (1, *Patches().feature_shape(2, (1, 2))) == (1, 1, 2, 2)


def test_parse_readout_inverts_id():
    for readout in (Cls(), LastCls(4), ClsAvg(), ClsGem(4), ClsGem(2.5), Patches()):
        assert parse_readout(readout.id) == readout
    assert parse_readout("gem") == ClsGem(4)
    for wrong in ("last0", "gem0", "mean", "last"):
        with pytest.raises(ConfigError, match=f"'{wrong}'"):
            parse_readout(wrong)


def test_last_layers_are_four_by_default():
    """Appendix F: the features of ViT-S are the [CLS] tokens of the last four blocks."""
    assert LastCls() == parse_readout("last4") == LastCls(4)
