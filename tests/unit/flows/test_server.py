"""Which Prefect servers are accepted, and the one-line error for others, before any work."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reval.flows import foreground, server
from reval.flows.cli.train import train_and_show
from reval.flows.foreground import run_flow
from reval.flows.server import LocalServer, answers, check_api
from reval_core.errors import InputError, RevalError
from reval_core.storage.run_directory import RunDirectory
from tests.conftest import SMALL


@contextmanager
def http(status: int, body: bytes) -> Iterator[str]:
    """The API URL of a server that gives the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/api"
        running.shutdown()


def refusal(url: str) -> str:
    with pytest.raises(InputError) as refused:
        check_api(url)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "garbage",
        "127.0.0.1:4200",
        "http://",
        "ftp://a/api",
        "http://[::1",
        "http://a:99999/api",
        "http://a b/api",
        "http://a/api\n",
        "http://a\x1b[31m/api",
        "file:///etc/passwd",
        "https://:4200/api",
    ],
)
def test_an_invalid_url_is_refused(url: str) -> None:
    assert "is not a URL such as" in refusal(url)
    assert not answers(url)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>hello", "reports no version"),
        (200, b"true", "reports no version"),
        (200, b'{"version": "3.7.7"}', "reports no version"),
        (200, b"\xff\xfe", "is not a Prefect server"),
        (404, b"nothing", "is not a Prefect server (status 404)"),
        (500, b"", "is not a Prefect server (status 500)"),
        (302, b"", "is not a Prefect server (status 302)"),
        (401, b"", "denies access"),
        (200, b'"2.20.1"', "runs Prefect 2.20.1, and this is Prefect 3."),
    ],
)
def test_another_server_is_refused(status: int, body: bytes, said: str) -> None:
    with http(status, body) as url:
        assert said in refusal(url)


def test_a_server_of_this_version_is_accepted() -> None:
    with http(200, b'"3.0.0"') as url:
        check_api(url)
        assert "does not respond" in refusal(url.replace("http:", "https:"))


def test_a_server_that_does_not_respond_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        assert "does not respond" in refusal(closed)
        silent.listen()
        assert "does not respond (timed out)" in refusal(closed)


def test_prefect_cloud_needs_a_key_and_passwords_are_not_shown() -> None:
    assert "PREFECT_API_KEY" in refusal("https://api.prefect.cloud/api/accounts/a/workspaces/b")
    assert "secret" not in refusal("ftp://me:secret@host/api")


def test_a_server_that_accepts_everything_is_not_a_prefect_server() -> None:
    with http(200, b"<html>Angular serves on port 4200 too") as url:
        assert not answers(url)
    with http(200, b"true") as url:
        assert answers(url)


def test_no_flow_starts_with_another_kind_of_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "configured_api", lambda: "garbage")
    with pytest.raises(InputError, match="PREFECT_API_URL: garbage"):
        run_flow(lambda: pytest.fail("a flow was begun"))


def test_a_second_start_is_refused_before_prefect_is_contacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    monkeypatch.setattr(foreground, "run_flow", lambda flow: pytest.fail("Prefect was begun with"))
    with RunDirectory(tmp_path / "run").lock(), pytest.raises(InputError, match="is running it"):
        train_and_show(config, (), tmp_path / "run", as_json=False)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4201/api"),
        ("0.0.0.0", "http://127.0.0.1:4201/api"),
        ("::", "http://[::1]:4201/api"),
        ("10.1.2.3", "http://10.1.2.3:4201/api"),
    ],
)
def test_the_url_of_a_server_reaches_the_address_that_it_listens_on(host: str, url: str) -> None:
    assert LocalServer(host, 4201).url == url


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/prefect", "sqlite+aiosqlite:///x.db", "prefect", ""])
def test_other_databases_than_postgresql_are_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InputError, match=r"--database: .* is not a URL such as postgresql\+asyncpg://") as refused:
        start(LocalServer(database=url))
    assert "secret" not in str(refused.value)


def test_the_database_of_a_server_that_runs_already_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    database = "postgresql+asyncpg://me:secret@host/prefect"
    with http(200, b"true") as url:
        port = int(url.removesuffix("/api").rpartition(":")[2])
        monkeypatch.setattr(server, "configured_api", lambda: None)
        with pytest.raises(InputError, match=rf"--database: .*127\.0\.0\.1:{port}/api already; stop it, or omit"):
            start(LocalServer(port=port, database=database))


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "print('starting'); raise ConnectionRefusedError('no database there')"
    monkeypatch.setattr(server, "configured_api", lambda: None)
    monkeypatch.setattr(server, "_prefect", lambda *_: [sys.executable, "-c", why])
    monkeypatch.setenv("PREFECT_API_URL", "")
    with pytest.raises(RevalError, match="did not start: ConnectionRefusedError: no database there"):
        start(LocalServer(port=1))


def start(local: LocalServer) -> None:
    with server.server(local):
        pytest.fail("a server was started")
