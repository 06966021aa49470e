"""Downloads of weights, from a real server on this machine."""

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


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.endswith("cut.pth"):  # announces more than it sends
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
            return
        for name, content in (("unsized.pth", CONTENT[:5000]), ("page.pth", b"<html>Log in to this network</html>")):
            if self.path.endswith(name):  # announces no length, and sends no checkpoint
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
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DINOEVAL_OFFLINE", "0")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def weights(url: str, **fields) -> Weights:
    return Weights(name="some", arch="vit_s16", url=url, **fields)


def test_download_is_kept_and_unpublished_hash_recorded(host):
    path = download.ensure_weights(weights(f"{host}/a.pth"))
    assert path.read_bytes() == CONTENT
    entry = json.loads((path.parent / "weights.lock").read_text())["some"]
    assert entry == {"url": f"{host}/a.pth", "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
    assert download.ensure_weights(weights("http://127.0.0.1:9/a.pth")) == path  # no second download
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"a\.pth.*sha256 .*recorded .*weights\.lock"):
        download.ensure_weights(weights(f"{host}/a.pth"))


def test_download_with_wrong_hash_leaves_no_file(host):
    one = weights(f"{host}/a.pth", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="known one is 0000"):
        download.ensure_weights(one)
    assert [entry.name for entry in download.local_path(one).parent.iterdir()] == []


@pytest.mark.parametrize("name", ["cut.pth", "absent.pth", "unsized.pth", "page.pth"])
def test_broken_download_raises_and_leaves_no_file(host, name):
    one = weights(f"{host}/{name}")
    with pytest.raises(CheckpointError, match=name if name in ("unsized.pth", "page.pth") else f"{host}/{name}"):
        download.ensure_weights(one)
    assert list(download.local_path(one).parent.iterdir()) == []  # no lock file either


def test_offline_error_names_address_and_destination(monkeypatch):
    for offline in ("1", "0"):
        monkeypatch.setenv("DINOEVAL_OFFLINE", offline)
        one = weights("http://127.0.0.1:9/x/file.pth")
        with pytest.raises(CheckpointError) as caught:
            download.ensure_weights(one)
        assert "http://127.0.0.1:9/x/file.pth" in str(caught.value)
        assert str(download.local_path(one)) in str(caught.value)


def test_file_saved_by_hand_is_used():
    one = weights("http://127.0.0.1:9/hand.pth")
    download.local_path(one).parent.mkdir(parents=True)
    download.local_path(one).write_bytes(CONTENT)
    assert download.ensure_weights(one).read_bytes() == CONTENT


def test_zoo_is_complete_and_consistent():
    """The README lists eleven backbones, nine of them with a full checkpoint and a linear head."""
    backbones = [row for row in ZOO.values() if row.kind == "backbone" and row.url]
    assert len(backbones) == 11
    assert sum(row.kind == "linear head" for row in ZOO.values()) == 9
    assert len({row.url for row in ZOO.values()}) == len(ZOO)
    assert len({row.filename for row in ZOO.values()}) == len(ZOO)  # they share one folder
