"""Downloads from a local HTTP server: resumed, checked, shared by processes, refused in a line."""

import errno
import hashlib
import logging
import multiprocessing
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from imagenet_jax.errors import UserError
from imagenet_jax.weights import catalog, download

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path, except for /moved, /missing and /busy.

    Answers HEAD as Hugging Face does for repositories that have only w.bin.

    Attributes:
      content: what it serves.
      etag: the ETag that it names.
      commit_of_main_only: whether it names no commit in answers about a commit, as proxies do.
      warning: a warning for huggingface_hub to log; "": none.
      cut: the next answers end after this many bytes each.
      ranges: whether it knows the header Range.
      requests: the (path, Range) that it got.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.cut, self.ranges = CONTENT, SHA256, [], True
        self.commit_of_main_only, self.warning = False, ""
        self.requests = []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.server.requests.append((self.path, "HEAD"))
        is_there = self.path.endswith("/w.bin")
        self.send_response(200 if is_there else 404)
        headers = {
            "X-Repo-Commit": "c" * 40,
            "X-Linked-ETag": f'"{self.server.etag}"',
            "Content-Length": str(len(self.server.content)),
        }
        if self.server.commit_of_main_only and "/main/" not in self.path:
            del headers["X-Repo-Commit"]
        for name, value in (headers if is_there else {"X-Error-Code": "EntryNotFound"}).items():
            self.send_header(name, value)
        if self.server.warning:
            self.send_header("X-HF-Warning", self.server.warning)
        self.end_headers()

    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        server.requests.append((self.path, span))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", server.url("w.pth"))
            self.end_headers()
            return
        if self.path in ("/missing", "/busy"):
            self.send_error(404 if self.path == "/missing" else 503)
            return
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "w.pth"


def files(path):
    return sorted(p.name for p in path.parent.iterdir() if p.suffix not in (".lock", ".checked"))


def test_a_file_is_downloaded_once(server, path):
    for _ in range(2):
        download.download(server.url("w.pth"), path, SHA256[:8])
    assert path.read_bytes() == CONTENT
    assert server.requests == [("/w.pth", None)]
    assert files(path) == ["w.pth"]


def test_a_redirect_is_followed(server, path):
    download.download(server.url("moved"), path, SHA256)
    assert path.read_bytes() == CONTENT
    assert [p for p, _ in server.requests] == ["/moved", "/w.pth"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_continues_where_it_stopped(server, path, ranges):
    server.cut, server.ranges = [3_000_000, 1_000_000], ranges
    download.download(server.url("w.pth"), path, SHA256)
    assert path.read_bytes() == CONTENT
    second = "bytes=3000000-"
    third = "bytes=4000000-" if ranges else "bytes=1000000-"
    assert server.requests == [("/w.pth", None), ("/w.pth", second), ("/w.pth", third)]


def test_a_later_call_continues_a_download_that_was_given_up(server, path):
    server.cut = [1_000_000, 1, 1, 1]
    with pytest.raises(UserError, match=r"after 1,000,003 of 5,120,000 bytes.*put it at .*w\.pth"):
        download.download(server.url("w.pth"), path, SHA256)
    assert files(path) == [".w.pth.part"]
    download.download(server.url("w.pth"), path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1] == ("/w.pth", "bytes=1000003-")


def test_a_part_that_is_complete_is_not_downloaded_again(server, path):
    path.parent.mkdir()
    path.with_name(".w.pth.part").write_bytes(CONTENT)
    download.download(server.url("w.pth"), path, SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * (len(CONTENT) + 1)])
def test_a_part_of_another_file_is_dropped(server, path, part):
    path.parent.mkdir()
    path.with_name(".w.pth.part").write_bytes(part)
    download.download(server.url("w.pth"), path, SHA256)
    assert path.read_bytes() == CONTENT


def test_a_wrong_hash_leaves_no_file(server, path):
    with pytest.raises(UserError, match=f"SHA-256 {SHA256[:8]}..., not 01234567..."):
        download.download(server.url("w.pth"), path, "01234567")
    assert files(path) == []


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed."""
    names = []
    original = download._hash
    monkeypatch.setattr(download, "_hash", lambda path: names.append(path.name) or original(path))
    return names


def test_a_file_put_there_by_hand_is_hashed_once(path, hashed):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    for _ in range(2):
        download.download("http://127.0.0.1:9/w.pth", path, SHA256[:8])
    assert hashed == ["w.pth"]
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=f"is not the file at .*, not {SHA256[:8]}...; remove it"):
        download.download("http://127.0.0.1:9/w.pth", path, SHA256[:8])
    assert path.read_bytes() == CONTENT[1:]


def test_a_wrong_file_put_there_by_hand_is_refused_each_time(path):
    path.parent.mkdir()
    path.write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(UserError, match=r"w\.pth is not the file at .*; remove it") as error:
            download.download("http://127.0.0.1:9/w.pth", path, SHA256[:8])
        assert "\n" not in str(error.value)
    assert files(path) == ["w.pth"]


def test_a_downloaded_file_is_not_hashed_again(server, path, hashed):
    for _ in range(2):
        download.download(server.url("w.pth"), path, SHA256[:8])
    assert hashed == [".w.pth.part"]


def test_a_copy_in_a_folder_that_cannot_be_written_is_checked(path, hashed, monkeypatch):
    path.parent.mkdir()
    path.write_bytes(CONTENT)

    def write_text(*_):
        raise PermissionError

    monkeypatch.setattr(type(path), "write_text", write_text)
    for _ in range(2):
        download.download("http://127.0.0.1:9/w.pth", path, SHA256[:8])
    assert hashed == ["w.pth", "w.pth"]


@pytest.mark.parametrize(("name", "code"), [("missing", 404), ("busy", 503)])
def test_an_error_of_the_server_is_one_line(server, path, name, code):
    with pytest.raises(UserError, match=f"{name} returned {code} .*put it at {path}") as error:
        download.download(server.url(name), path)
    assert "\n" not in str(error.value)
    assert server.requests == [(f"/{name}", None)]


def test_without_a_network_the_error_says_what_to_do_by_hand(server, path):
    url = server.url("w.pth")
    server.server_close()
    server.shutdown()
    with pytest.raises(UserError, match=f"cannot be downloaded: .*download {url}.*at {path}"):
        download.download(url, path)


def test_a_full_disk_is_reported(server, path, monkeypatch):
    class Full:
        """A file on a disk that is full after 1 MB."""

        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            if self._file.tell() >= 1_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

    opened = type(path).open
    with monkeypatch.context() as patch:
        patch.setattr(
            type(path), "open",
            lambda self, mode="r": Full(opened(self, mode)) if self.suffix == ".part"
            else opened(self, mode),
        )  # fmt: skip
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            download.download(server.url("w.pth"), path, SHA256)
    assert len(server.requests) == 1
    assert not path.exists()
    download.download(server.url("w.pth"), path, SHA256)  # there is space again
    assert path.read_bytes() == CONTENT


def test_two_processes_download_a_file_once(server, path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=download.download, args=(server.url("w.pth"), path, SHA256))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() == CONTENT
    assert server.requests == [("/w.pth", None)]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"IMAGENET_JAX_CACHE\) cannot be written"):
        download.download(server.url("w.pth"), tmp_path / "file" / "w.pth")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IMAGENET_JAX_CACHE", raising=False)
    assert str(download.cache_folder()) == "/home/me/.cache/imagenet_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(download.cache_folder()) == "/caches/imagenet_jax"
    monkeypatch.setenv("IMAGENET_JAX_CACHE", "~/weights")
    assert str(download.cache_folder()) == "/home/me/weights"


class TestHub:
    """Files of Hugging Face, whose library downloads them."""

    def test_a_file_put_there_by_hand_needs_no_library(self, monkeypatch, tmp_path):
        monkeypatch.setenv("IMAGENET_JAX_CACHE", str(tmp_path))
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
        wanted = tmp_path / "microsoft" / "resnet-50" / "pytorch_model.bin"
        with pytest.raises(UserError, match=r"pip install 'imagenet_jax\[hub\]'.*put it at"):
            catalog.locate("microsoft/resnet-50")
        wanted.parent.mkdir(parents=True)
        wanted.write_bytes(b"x")
        assert catalog.locate("microsoft/resnet-50") == wanted

    @pytest.fixture
    def hub(self, server, monkeypatch):
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url("")[:-1])
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url(template[1:]))
        return server

    @pytest.fixture
    def log(self, hub, caplog, monkeypatch):
        """What huggingface_hub logs."""
        logger = logging.getLogger("huggingface_hub")
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        return caplog

    def test_the_second_name_is_tried_if_the_first_does_not_exist(self, hub, tmp_path):
        for _ in range(2):  # the second call finds the file
            found = download.download_from_hub("a/b", ("model.safetensors", "w.bin"), tmp_path)
            assert found == tmp_path / "w.bin"
            assert found.read_bytes() == CONTENT
        paths = [path for path, _ in hub.requests if path.startswith("/a/b/")]
        assert paths[:2] == [f"/a/b/resolve/main/{n}" for n in ("model.safetensors", "w.bin")]
        assert set(paths[2:]) == {f"/a/b/resolve/{'c' * 40}/w.bin"}
        assert [kind for _, kind in hub.requests].count(None) <= 2  # GET: of the file, of the API
        with pytest.raises(UserError, match="a/b has none of model.safetensors on Hugging Face"):
            download.download_from_hub("a/b", ("model.safetensors",), tmp_path)

    def test_another_hash_than_the_hub_names_is_refused(self, hub, tmp_path):
        hub.content = CONTENT[:-1] + b"x"
        with pytest.raises(UserError, match=f"has SHA-256 .*, not {SHA256}.*put it at"):
            download.download_from_hub("a/b", ("w.bin",), tmp_path)
        assert not (tmp_path / "w.bin").exists()

    def test_a_small_file_has_no_hash(self, hub, tmp_path):
        hub.etag = "d" * 40  # git's name of its content
        assert download.download_from_hub("a/b", ("w.bin",), tmp_path).read_bytes() == CONTENT

    def test_without_a_network_it_fails_at_the_first_try(self, hub, log, tmp_path):
        hub.shutdown()
        hub.server_close()
        start = time.monotonic()
        with pytest.raises(UserError) as error:
            download.download_from_hub("a/b", ("m.safetensors", "w.bin"), tmp_path)
        assert time.monotonic() - start < 5
        assert re.search(r"cannot be downloaded: .*refused; .*put it at .*m\.s", str(error.value))
        assert "\n" not in str(error.value)
        assert not log.records

    def test_with_the_offline_mode_of_the_library_nothing_is_requested(
        self, hub, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE` environment variable; .*put it at"):
            download.download_from_hub("a/b", ("m.safetensors", "w.bin"), tmp_path)
        assert not hub.requests

    def test_a_server_that_is_lost_after_the_first_answer_has_the_file(self, hub, tmp_path):
        hub.commit_of_main_only = True
        with pytest.raises(UserError, match=r"w\.bin cannot be downloaded: .*put it at .*w\.bin"):
            download.download_from_hub("a/b", ("w.bin",), tmp_path)

    def test_the_log_of_the_library_is_not_shown(self, hub, log, tmp_path):
        hub.warning = "a topic; a warning"
        download.download_from_hub("a/b", ("m.safetensors", "w.bin"), tmp_path)
        assert not log.records
        assert logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)
