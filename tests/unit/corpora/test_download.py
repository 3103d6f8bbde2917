"""Downloads are complete, verified and resumable, and never mix two files, also if the server fails."""

import fcntl
import hashlib
import json
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from seqtk.corpora.download import RetryPolicy, fetch
from seqtk.corpora.spec import RemoteFile
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from tests.unit.corpora.fake_server import Served, Shelf, files_of_at_most

BODY = random.Random(7).randbytes(900_000)
FILE = RemoteFile("http://far.away/a.zip", length=len(BODY), digest=f"sha256:{hashlib.sha256(BODY).hexdigest()}")
UNKNOWN = replace(FILE, length=None, digest=None)
HURRY = RetryPolicy(attempts=3, pause=0.0, timeout=5.0)


def get(shelf: Shelf, target: Path, published: RemoteFile = FILE) -> str:
    return fetch(published, f"{shelf.url}/a.zip", target, reporter=Reporter(), retry=HURRY)


def error_lines(shelf: Shelf, target: Path, published: RemoteFile = FILE) -> list[str]:
    with pytest.raises(UserError) as caught:
        get(shelf, target, published)
    assert not target.exists()
    lines = str(caught.value).splitlines()
    assert 2 <= len(lines) <= 3
    return lines


def files_next_to(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_file_is_downloaded(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY)
    target = tmp_path / "host" / "a.zip"
    assert get(shelf, target) == "length and sha256 as published"
    assert target.read_bytes() == BODY
    assert files_next_to(target) == ["a.zip"]
    assert get(shelf, target) == "length and sha256 as published"
    assert shelf.requests == [("a.zip", None)]
    assert all(agent and agent.startswith("seqtk/") for agent in shelf.agents)


def test_file_without_published_checksum_is_reported(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY)
    assert get(shelf, tmp_path / "a.zip", UNKNOWN) == "neither length nor checksum is published"


@pytest.mark.parametrize("published", [FILE, UNKNOWN])
def test_broken_connections_are_resumed(shelf: Shelf, tmp_path: Path, published: RemoteFile) -> None:
    shelf.files["a.zip"] = Served(BODY, drops=[300_000, 0, 10, 500_000])
    get(shelf, tmp_path / "a.zip", published)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [asked for _, asked in shelf.requests] == [
        None,
        *(f"bytes={n}-" for n in (300_000, 300_000, 300_010, 800_010)),
    ]


@pytest.mark.parametrize("served", [Served(BODY, etag=None), Served(BODY, etag='W/"1"')])
def test_download_without_etag_is_resumed_by_date(shelf: Shelf, tmp_path: Path, served: Served) -> None:
    shelf.files["a.zip"] = replace(served, date="Fri, 03 Mar 2006 00:00:00 GMT", drops=[1000])
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert shelf.requests[1] == ("a.zip", "bytes=1000-")


def test_download_without_etag_and_date_is_restarted(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, etag=None, drops=[1000])
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert shelf.requests == [("a.zip", None)] * 2


def test_download_restarts_if_server_ignores_ranges(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, ranges=False, drops=[1000, 2000])
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_download_restarts_if_server_sends_a_wrong_range(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, wrong_range=True, drops=[1000])
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.parametrize("published", [FILE, UNKNOWN])
def test_download_restarts_if_file_on_server_changed(shelf: Shelf, tmp_path: Path, published: RemoteFile) -> None:
    other = bytes(len(BODY))
    shelf.files["a.zip"] = Served(other, etag='"old"', drops=[5000, 0, 0, 0])
    error_lines(shelf, tmp_path / "a.zip", published)
    assert (tmp_path / "a.zip.partial").stat().st_size == 5000
    shelf.files["a.zip"] = Served(BODY, etag='"new"')
    get(shelf, tmp_path / "a.zip", published)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert shelf.requests[-1] == ("a.zip", "bytes=5000-")


def test_partial_file_of_a_different_url_is_discarded(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "a.zip.partial").write_bytes(b"x" * 100)
    (tmp_path / "a.zip.partial.json").write_text(json.dumps({"url": "http://else.where/a.zip", "version": '"1"'}))
    shelf.files["a.zip"] = Served(BODY)
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.parametrize("notes", ["", "[]", "{", '{"url": 1}'])
def test_partial_file_with_an_invalid_record_is_discarded(shelf: Shelf, tmp_path: Path, notes: str) -> None:
    (tmp_path / "a.zip.partial").write_bytes(b"x" * 100)
    (tmp_path / "a.zip.partial.json").write_text(notes)
    shelf.files["a.zip"] = Served(BODY)
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_partial_file_longer_than_the_file_is_discarded(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "a.zip.partial").write_bytes(b"x" * (len(BODY) + 1))
    (tmp_path / "a.zip.partial.json").write_text(json.dumps({"url": f"{shelf.url}/a.zip", "version": '"1"'}))
    shelf.files["a.zip"] = Served(BODY)
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [asked for _, asked in shelf.requests] == [f"bytes={len(BODY) + 1}-", None]


def test_temporary_http_errors_are_retried(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, errors=[503, 429])
    get(shelf, tmp_path / "a.zip")
    assert len(shelf.requests) == 3


def test_partial_file_is_kept_when_retries_run_out(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, drops=[4000, 0, 0, 0])
    lines = error_lines(shelf, tmp_path / "a.zip")
    assert "the connection ended after 4,000 of 900,000 bytes" in lines[0]
    assert "the first 4,000 bytes" in lines[1]
    get(shelf, tmp_path / "a.zip")
    assert shelf.requests[-1] == ("a.zip", "bytes=4000-")


def test_retries_are_limited_without_range_requests(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, ranges=False, drops=[4000] * 50)
    error_lines(shelf, tmp_path / "a.zip")
    assert len(shelf.requests) == 1 + HURRY.attempts


def test_http_404_fails_without_a_retry(shelf: Shelf, tmp_path: Path) -> None:
    lines = error_lines(shelf, tmp_path / "a.zip")
    assert lines[0] == f"{shelf.url}/a.zip cannot be downloaded: 404 Not Found."
    assert "mirror=URL" in lines[1]
    assert len(shelf.requests) == 1


def test_refused_connection_is_retried_and_reported(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    messages: list[str] = []
    with pytest.raises(UserError, match="cannot be downloaded: Connection refused"):
        fetch(
            FILE,
            f"http://127.0.0.1:{port}/a.zip",
            tmp_path / "a.zip",
            reporter=Reporter(messages.append),
            retry=HURRY,
        )
    assert messages == ["a.zip: Connection refused; trying again in 0 s"] * (HURRY.attempts - 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (Served(BODY[:-1]), "The file on the server has 899,999 bytes, not 900,000"),
        (Served(BODY, announced=900_001), "The file on the server has 900,001 bytes, not 900,000"),
        (Served(BODY + b"x", announced=0), "it has 900,001 bytes, not 900,000"),
        (Served(BODY[:-1], announced=900_000), "cannot be downloaded"),
        (Served(BODY[:-1], announced=0), "cannot be downloaded"),
        (Served(bytes(900_000)), "its sha256 is"),
        (Served(b"<!DOCTYPE html><title>Log in</title>", content_type="text/html; charset=utf-8"), "is a web page"),
        (Served(b"\n <HTML>".ljust(900_000)), "is a web page"),
    ],
)
def test_file_that_differs_from_published_is_refused(shelf: Shelf, tmp_path: Path, served: Served, words: str) -> None:
    shelf.files["a.zip"] = replace(served, drops=[])
    assert words in "\n".join(error_lines(shelf, tmp_path / "a.zip"))
    shelf.files["a.zip"] = Served(BODY, etag='"right"')
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_wrong_content_length_ends_in_an_error(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY, announced=1_000_000)
    lines = error_lines(shelf, tmp_path / "a.zip", UNKNOWN)
    assert "cannot be downloaded" in lines[0]


def test_wrong_existing_file_is_refused_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match="it has 4 bytes, not 900,000"):
        get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == b"mine"
    assert shelf.requests == []


def test_second_process_cannot_download_the_same_file(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY)
    with open(tmp_path / "a.zip.partial", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "Another process is downloading" in error_lines(shelf, tmp_path / "a.zip")[0]
    get(shelf, tmp_path / "a.zip")


def test_download_resumes_after_a_full_disk(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["a.zip"] = Served(BODY)
    with files_of_at_most(400_000):
        lines = error_lines(shelf, tmp_path / "a.zip")
    assert "does not fit" in lines[0]
    assert "Free some space" in lines[2]
    get(shelf, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert shelf.requests[-1] == ("a.zip", "bytes=400000-")
