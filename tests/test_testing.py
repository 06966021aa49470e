"""check_protocol: one problem per thing that an author has missed."""

from __future__ import annotations

import types

import numpy as np
import pytest
from test_discovery import install

from dinoeval import protocols
from dinoeval.models.checkpoints import tensor_digest
from dinoeval.testing import check_protocol, tiny_backbone, tiny_image_folder, tiny_images, tiny_state

GOOD = '''"""Do something."""
import dataclasses

from dinoeval.paper.rows import PaperRow
from dinoeval.results import Scores

VERSION = 1
PAPER_ROWS = (PaperRow(source="Table 1", protocol="texture", network="vit_s16", metric="top1", value=50.0, decimals=1),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    data: str = "digits"
    """Dataset."""
    k: int | None = None
    """Neighbors (default: all)."""


def run(config, session):
    """Run."""
    record = session.record("texture", VERSION, config)
    record.use_data(config.data)
    samples = {"path": ["a", "b"], "top1": [1, 0]}
    return record.result(Scores(metrics={"top1": 50.0}, standard_errors={"top1": 35.4}, samples=samples))
'''


def protocol(tmp_path, monkeypatch, *changes: tuple[str, str], entry: str = "texture") -> types.ModuleType:
    """Install the good protocol with replacements and import it."""
    source = GOOD
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    name = install(tmp_path, monkeypatch, package="acme-texture", entry=entry, source=source)
    namespace = __import__(name)
    assert isinstance(namespace, types.ModuleType)
    return namespace


def test_complete_protocol_has_no_problem(tmp_path, monkeypatch):
    assert check_protocol(protocol(tmp_path, monkeypatch)) == []


STATIC = {
    "docstring of the module": ('"""Do something."""', "", "docstring"),
    "VERSION": ("VERSION = 1\n", 'VERSION = "1"\n', "VERSION"),
    "Config missing": ("class Config:", "class Options:", "Config is missing"),
    "Config not frozen": ("(frozen=True, kw_only=True)", "(kw_only=True)", "frozen"),
    "Config not keyword-only": ("(frozen=True, kw_only=True)", "(frozen=True)", "keyword-only"),
    "docstring of Config": ('    """Options."""\n', "", "Config has no docstring"),
    "docstring of a field": ('    """Dataset."""\n', "", "Config.data"),
    "default of a field": ('data: str = "digits"', "data: str", "Config.data has no default"),
    "meaning of None": ("Neighbors (default: all).", "Neighbors.", "Config.k"),
    "option of every protocol": ("    k: int", "    device: int", "Config.device"),
    "Config raises": ("\n\ndef run", "\n    def __post_init__(self):\n        raise ValueError(3)\n\n\ndef run", "ValueError: 3"),
    "parameters of run": ("def run(config, session):", "def run(session, config):", "run(config, session)"),
    "docstring of run": ('    """Run."""\n', "", "run has no docstring"),
    "torch at import": ("import dataclasses\n", "import dataclasses\nimport torch\n", "torch"),
    "print at import": ("import dataclasses\n", "import dataclasses\nprint()\n", "prints"),
    "protocol of a row": ('protocol="texture", network', 'protocol="knn", network', "PAPER_ROWS[0].protocol"),
    "source of a row": ('source="Table 1"', 'source=""', "PAPER_ROWS[0]"),
    "type of the rows": ("PAPER_ROWS = (", "PAPER_ROWS = 3, (", "PAPER_ROWS[0]"),
}


@pytest.mark.parametrize("case", STATIC)
def test_check_reports_what_is_missing(tmp_path, monkeypatch, case):
    old, new, fragment = STATIC[case]
    problems = check_protocol(protocol(tmp_path, monkeypatch, (old, new)), run=False)
    assert any(fragment in problem for problem in problems), problems


def test_check_reports_too_many_fields(tmp_path, monkeypatch):
    more = "".join(f'    field{number}: int = 0\n    """Number."""\n' for number in range(11))
    problems = check_protocol(protocol(tmp_path, monkeypatch, ("    k: int", f"{more}    k: int")), run=False)
    assert any("13 fields" in problem for problem in problems)


def test_check_reports_a_taken_name(tmp_path, monkeypatch):
    problems = check_protocol(protocol(tmp_path, monkeypatch, entry="knn"), run=False)
    assert any("dinoeval and acme-texture" in problem for problem in problems)


@pytest.mark.parametrize("name", ["embed", "Texture", "two words"])
def test_check_reports_an_unusable_name(tmp_path, monkeypatch, name):
    problems = check_protocol(protocol(tmp_path, monkeypatch, entry=name), run=False)
    assert any(f"'{name}'" in problem for problem in problems)


def test_check_reports_a_missing_entry_point(tmp_path, monkeypatch):
    module = protocol(tmp_path, monkeypatch)
    (tmp_path / "acme_texture-1.0.dist-info/entry_points.txt").write_text("")
    problems = check_protocol(module, run=False)
    assert any("pyproject.toml" in problem for problem in problems)


RUN = {
    "error": ("    record.use_data", "    raise ValueError('reason')\n    record.use_data", "ValueError: reason"),
    "no Result": ("    return record.result", "    return 3\n    return record.result", "int"),
    "protocol": ('session.record("texture"', 'session.record("other"', "'other'"),
    "version": ("VERSION, config", "2, config", "Result.version"),
    "percent": ('metrics={"top1": 50.0}', 'metrics={"top1": 5000.0}', "top1"),
    "NaN": ('metrics={"top1": 50.0}', 'metrics={"top1": float("nan")}', "top1"),
    "no metric": ('metrics={"top1": 50.0}, standard_errors={"top1": 35.4}', "metrics={}, standard_errors={}", "metrics is empty"),
    "error of no metric": ('standard_errors={"top1"', 'standard_errors={"top5"', "top5"),
    "lengths of samples": ('"top1": [1, 0]', '"top1": [1]', "samples"),
    "not JSON": ('"top1": [1, 0]', '"top1": [1, object()]', "JSON"),
    "changed by JSON": ('"top1": [1, 0]', '"top1": [1, 0], "box": [(1,), (0,)]', "changes"),
    "no outcome": ('"top1": [1, 0]', '"top1": [(1,), (0,)]', "samples.top1[0]"),
}


@pytest.mark.parametrize("case", RUN)
def test_check_reports_problems_of_the_trial_run(tmp_path, monkeypatch, case):
    problems = check_protocol(protocol(tmp_path, monkeypatch, RUN[case][:2]))
    assert any(RUN[case][2] in problem for problem in problems), problems


@pytest.mark.parametrize("name", protocols.builtin_names())
def test_built_in_protocol_is_complete(name):
    assert check_protocol(protocols.get_protocol(name), run=False) == []


def test_tiny_backbone_is_seeded_and_counts_as_random():
    one, other, changed = tiny_backbone(), tiny_backbone(), tiny_backbone(seed=1)
    assert one.provenance.random
    assert one.digest == other.digest == tensor_digest(tiny_state())
    assert one.digest != changed.digest


def test_tiny_images_do_not_depend_on_the_count():
    np.testing.assert_array_equal(np.asarray(tiny_images(3)[1]), np.asarray(tiny_images(2)[1]))


def test_tiny_image_folder_has_two_splits(tmp_path):
    folder = tiny_image_folder(tmp_path / "data", classes=2, train=3, val=1, val_name="test", extension="jpg")
    assert len(list(folder.glob("train/*/*.jpg"))) == 6
    assert len(list(folder.glob("test/*/*.jpg"))) == 2
