import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from offdiff.core.errors import InputError
from offdiff.core.files import sha256
from offdiff.data.catalogue import catalogue
from offdiff.data.download import fetch, require_unchanged
from offdiff.data.places import cache_dir, local_path, locate

ENTRY = catalogue()["hopper-medium-v2"]


@dataclass
class Server:
    """What is served, how badly, and what was asked for."""

    content: bytes
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    break_after: int | None = None
    """Bytes after which every connection is dropped."""
    chunk_pause: float = 0.0
    knows_ranges: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server_state: Server, *args: Any) -> None:
        self.state = server_state
        super().__init__(*args)

    def do_GET(self) -> None:
        state, asked = self.state, self.headers.get("Range")
        state.ranges.append(asked)
        if not self.path.endswith(".hdf5"):
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        total = len(state.content)
        if asked and state.knows_ranges and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        if asked and state.knows_ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            start = 0
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        body = state.content[start:]
        if state.break_after is not None:
            body = body[: state.break_after]
        for i in range(0, len(body), 1 << 14):
            self.wfile.write(body[i : i + (1 << 14)])
            time.sleep(state.chunk_pause)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    path = tmp_path / "served.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    state = Server(path.read_bytes())
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state))
    state.url = f"http://127.0.0.1:{httpd.server_port}/x.hdf5"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_whole_download(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.hdf5"
    assert fetch(server.url, target) == target
    assert target.read_bytes() == server.content
    assert (target.parent / "x.hdf5.sha256").read_text().split() == [sha256(target), "x.hdf5"]
    assert sorted(p.name for p in target.parent.iterdir()) == ["x.hdf5", "x.hdf5.sha256"]
    fetch(server.url, target)
    assert server.ranges == [None]


def test_broken_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = 100_000
    target = fetch(server.url, tmp_path / "x.hdf5", pause=0)
    assert target.read_bytes() == server.content
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    target, part = tmp_path / "x.hdf5", tmp_path / "x.hdf5.part"
    server.chunk_pause = 0.2
    code = (
        "import sys; from pathlib import Path; from offdiff.data.download import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    # The child asks in chunks of 256 kB, the whole is 240 kB: let it hold some of it on disk.
    code = "import offdiff.data.download as d; d.CHUNK = 1 << 14\n" + code
    child = subprocess.Popen([sys.executable, "-c", code, server.url, str(target)])
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline, "the download never began"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = part.stat().st_size
    assert not target.exists()
    assert 0 < held < len(server.content)
    server.chunk_pause = 0
    fetch(server.url, target)
    assert target.read_bytes() == server.content
    assert server.ranges == [None, f"bytes={held}-"]


def test_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "x.hdf5.part").write_bytes(server.content[:5000])
    assert fetch(server.url, tmp_path / "x.hdf5").read_bytes() == server.content


def test_complete_part_and_part_of_another_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.hdf5.part").write_bytes(server.content)
    assert fetch(server.url, tmp_path / "x.hdf5").read_bytes() == server.content
    (tmp_path / "y.hdf5.part").write_bytes(server.content + b"more")
    assert fetch(server.url, tmp_path / "y.hdf5", pause=0).read_bytes() == server.content


def test_what_is_no_hdf5_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>the dataset has moved</html>"
    with pytest.raises(InputError, match="gave 34 bytes that are no HDF5 file"):
        fetch(server.url, tmp_path / "x.hdf5")
    assert not list(tmp_path.glob("x.hdf5*"))


def test_without_network_one_sentence_says_what_to_put_where(tmp_path: Path) -> None:
    url, target = "http://127.0.0.1:9/hopper.hdf5", tmp_path / "hopper.hdf5"
    with pytest.raises(InputError) as caught:
        fetch(url, target, pause=0)
    assert f"fetch {url} elsewhere and put it at {target}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_absent_on_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot download x\.hdf5"):
        fetch(server.url + ".gone", tmp_path / "x.hdf5")
    assert len(server.ranges) == 1


def test_later_corruption_is_detected(server: Server, tmp_path: Path) -> None:
    target = fetch(server.url, tmp_path / "x.hdf5")
    require_unchanged(target, sha256(target))
    content = bytearray(server.content)
    content[-1] ^= 1
    target.write_bytes(content)
    with pytest.raises(InputError, match="differs from the SHA-256 recorded"):
        require_unchanged(target, sha256(target))


def test_files_already_here_are_found(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "theirs"))
    assert cache_dir() == tmp_path / "cache"
    assert local_path(ENTRY) is None
    base = server.url.removesuffix("x.hdf5")
    fetched = locate(ENTRY, base_url=base)
    assert fetched == tmp_path / "cache" / "d4rl" / "hopper_medium-v2.hdf5"
    theirs = tmp_path / "theirs" / "hopper_medium-v2.hdf5"
    theirs.parent.mkdir()
    theirs.write_bytes(server.content)
    assert locate(ENTRY, base_url=base) == theirs
    assert len(server.ranges) == 1


def test_two_at_once_make_one_file(server: Server, tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("no such file lock on Windows")
    server.chunk_pause = 0.02
    code = (
        "import sys; from pathlib import Path; from offdiff.data.download import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "x.hdf5")]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert (tmp_path / "x.hdf5").read_bytes() == server.content
