"""Downloads, from a real server on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import threading

import pytest
import torch

from dinoeval.errors import CheckpointError
from dinoeval.models import download
from dinoeval.models.zoo import ZOO, Weights

_buffer = io.BytesIO()
torch.save({"weights": torch.arange(100_000.0)}, _buffer)
CONTENT = _buffer.getvalue()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.endswith("cut.pth"):  # promise more than is sent
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
            return
        for name, content in (("unsized.pth", CONTENT[:5000]), ("page.pth", b"<html>Log in to this network</html>")):
            if self.path.endswith(name):  # no length is promised, and what comes is no checkpoint
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)
                return
        super().do_GET()


@pytest.fixture
def host(tmp_path, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.pth").write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DINOEVAL_OFFLINE", "0")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def weights(url: str, **facts) -> Weights:
    return Weights(name="some", arch="vit_s16", url=url, **facts)


def test_a_download_is_kept_and_its_unknown_hash_recorded_and_checked_ever_after(host):
    path = download.ensure_weights(weights(f"{host}/a.pth"))
    assert path.read_bytes() == CONTENT
    entry = json.loads((path.parent / "weights.lock").read_text())["some"]
    assert entry == {"url": f"{host}/a.pth", "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
    assert download.ensure_weights(weights("http://127.0.0.1:9/a.pth")) == path  # no second download
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"its sha256 is .*the one recorded .*weights\.lock"):
        download.ensure_weights(weights(f"{host}/a.pth"))


def test_a_download_of_another_hash_than_the_known_one_leaves_nothing(host):
    one = weights(f"{host}/a.pth", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="the known is 0000"):
        download.ensure_weights(one)
    assert [entry.name for entry in download.local_path(one).parent.iterdir()] == []


@pytest.mark.parametrize("name", ["cut.pth", "absent.pth", "unsized.pth", "page.pth"])
def test_a_broken_download_names_address_and_place_and_leaves_nothing(host, name):
    one = weights(f"{host}/{name}")
    with pytest.raises(CheckpointError, match=name if name in ("unsized.pth", "page.pth") else f"{host}/{name}"):
        download.ensure_weights(one)
    assert list(download.local_path(one).parent.iterdir()) == []  # nor is a hash of it recorded


def test_without_a_network_the_error_names_the_address_and_where_to_put_the_file(monkeypatch):
    for offline in ("1", "0"):
        monkeypatch.setenv("DINOEVAL_OFFLINE", offline)
        one = weights("http://127.0.0.1:9/x/file.pth")
        with pytest.raises(CheckpointError) as caught:
            download.ensure_weights(one)
        assert "http://127.0.0.1:9/x/file.pth" in str(caught.value)
        assert str(download.local_path(one)) in str(caught.value)


def test_a_file_put_there_by_hand_is_taken():
    one = weights("http://127.0.0.1:9/hand.pth")
    download.local_path(one).parent.mkdir(parents=True)
    download.local_path(one).write_bytes(CONTENT)
    assert download.ensure_weights(one).read_bytes() == CONTENT


def test_the_table_is_complete_and_consistent():
    """Eleven backbones of the README with full checkpoints and heads, and the files named elsewhere."""
    backbones = [row for row in ZOO.values() if row.kind == "backbone" and row.url]
    assert len(backbones) == 11
    assert sum(row.kind == "linear head" for row in ZOO.values()) == 9
    assert len({row.url for row in ZOO.values()}) == len(ZOO)
    assert len({row.filename for row in ZOO.values()}) == len(ZOO)  # they share one folder
    assert {name: ZOO[name].published["knn"] for name in ("vit_s16", "vit_s8", "vit_b16", "vit_b8", "resnet50")} == {
        "vit_s16": 74.5, "vit_s8": 78.3, "vit_b16": 76.1, "vit_b8": 77.4, "resnet50": 67.5,
    }  # fmt: skip
