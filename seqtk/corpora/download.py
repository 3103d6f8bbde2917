"""Downloads one file by HTTP, checks it, and continues a download that was interrupted.

A download is called `NAME.partial` until it is complete and checked. `NAME.partial.json` records its URL and version
(ETag or date), so that a rerun requests only the rest of the same version (Range with If-Range, RFC 9110, 13.1.5 and
14.2). If the server does not support ranges, or has a new version of the file, it sends the whole file, and the
download starts over. So parts of two versions are never joined.
"""

import fcntl
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import Any

from seqtk import __version__
from seqtk.corpora.spec import RemoteFile, check_file
from seqtk.utils.errors import UserError
from seqtk.utils.files import disk_full_errors
from seqtk.utils.progress import Reporter

_CHUNK_BYTES = 1 << 18
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # status codes of temporary problems
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_ADVICE = "Try again later, or use mirror=URL, or source=FOLDER for files that you have."


@dataclass(frozen=True)
class RetryPolicy:
    """Settings of repeated attempts to reach a server."""

    attempts: int = 5  # maximum number of consecutive attempts without new bytes
    pause: float = 2.0  # seconds before the second attempt; each later pause is twice as long
    timeout: float = 60.0  # maximum number of seconds without a byte


def fetch(
    published: RemoteFile, url: str, target: Path, *, reporter: Reporter, retry: RetryPolicy | None = None
) -> str:
    """Downloads `url` to `target`, unless `target` exists, and compares the file with the published one.

    Returns the result of the comparison as text, for example "length and sha256 as published". Raises UserError if the
    file cannot be downloaded, or differs from the published file.
    """
    if target.is_file():
        return check_file(
            target, published, advice="Remove the file, then run the same command again.", reporter=reporter
        )
    with _opened(target, url) as partial:
        _receive(published, partial, reporter=reporter, retry=retry or RetryPolicy())
        advice = "The file was removed. Run the same command again, or use a different mirror=URL."
        try:
            checked = check_file(partial.path, published, advice=advice, reporter=reporter)
        except UserError:
            partial.remove()
            raise
        partial.finish(target)
    return checked


class _Partial:
    """An incomplete download, open for writing."""

    def __init__(self, target: Path, url: str, file: FileIO) -> None:
        self.path = _beside(target, ".partial")
        self.url = url
        self.version: str | None = None
        self._notes = _beside(target, ".partial.json")
        self._file = file
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == url:
                self.version = notes["version"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # the version of the bytes in the file is unknown
        if self.version is None:
            self.start_over(None)

    @property
    def size(self) -> int:
        """The number of bytes received."""
        return os.fstat(self._file.fileno()).st_size

    def start_over(self, version: str | None) -> None:
        """Discards the bytes received so far, and records `version` as the version of the bytes that follow."""
        self._file.truncate(0)
        self.version = version
        with disk_full_errors(self._notes):
            self._notes.write_text(json.dumps({"url": self.url, "version": version}), encoding="utf-8")

    def write(self, chunk: bytes) -> None:
        """Appends bytes."""
        rest = memoryview(chunk)
        with disk_full_errors(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def remove(self) -> None:
        """Removes the download."""
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Renames the complete file to `target`."""
        os.fsync(self._file.fileno())
        os.replace(self.path, target)
        self._notes.unlink(missing_ok=True)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}{suffix}")


@contextmanager
def _opened(target: Path, url: str) -> Iterator[_Partial]:
    """Context manager that opens the incomplete download of `url`, and locks it against other processes."""
    path = _beside(target, ".partial")
    with disk_full_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"Another process is downloading {path}.", "Wait until it has finished.") from None
            yield _Partial(target, url, file)


def _receive(published: RemoteFile, partial: _Partial, *, reporter: Reporter, retry: RetryPolicy) -> None:
    """Downloads the rest of the file, in one or more requests."""
    furthest, failures = partial.size, 0
    with reporter.bar(published.length, published.file_name, initial=partial.size) as bar:
        while True:
            try:
                problem = _request(published, partial, bar, timeout=retry.timeout)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the range does not exist, because the file on the server has become shorter
                    partial.start_over(None)
                elif error.code not in _TEMPORARY:
                    raise UserError(
                        f"{partial.url} cannot be downloaded: {error.code} {error.reason}.", _ADVICE
                    ) from None
                problem = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                problem = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            if problem is None:
                return
            failures = 0 if partial.size > furthest else failures + 1
            furthest = max(furthest, partial.size)
            if failures >= retry.attempts:
                raise _given_up(partial, problem)
            pause = retry.pause * 2 ** max(0, failures - 1)
            reporter.notify(f"{published.file_name}: {problem}; trying again in {pause:.0f} s")
            time.sleep(pause)


def _given_up(partial: _Partial, problem: str) -> UserError:
    said = f"{partial.url} cannot be downloaded: {problem}."
    if not partial.size:
        partial.remove()
        return UserError(said, _ADVICE)
    there = f"{partial.path} has the first {partial.size:,} bytes. Run the same command again to download the rest."
    return UserError(said, there, _ADVICE)


def _request(published: RemoteFile, partial: _Partial, bar: Any, *, timeout: float) -> str | None:
    """Requests the missing bytes. Returns None if the file is complete afterwards, otherwise the problem as text."""
    headers = {"User-Agent": f"seqtk/{__version__}", "Accept-Encoding": "identity"}
    if partial.size and partial.version:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.version}
    with urllib.request.urlopen(urllib.request.Request(partial.url, headers=headers), timeout=timeout) as response:
        version = _version(response.headers)
        if response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            same = version in (None, partial.version)
            if start is None or int(start[1]) != partial.size or not same:
                partial.start_over(None)
                return "the server sent a different range of bytes from the one requested"
        else:
            partial.start_over(version)
        sent = response.headers.get("Content-Length", "")
        total = partial.size + int(sent) if sent.isdigit() else published.length
        _refuse_other_files(published, partial.url, response.headers, total)
        # `read1` returns the bytes that have arrived, so a failing connection loses none of them.
        while chunk := response.read1(_CHUNK_BYTES):
            if not partial.size and _WEB_PAGE.match(chunk):
                raise _web_page(published, partial.url)
            partial.write(chunk)
            bar.update(partial.size - bar.n)
    if total is not None and partial.size < total:
        return f"the connection ended after {partial.size:,} of {total:,} bytes"
    return None


def _version(headers: Message) -> str | None:
    """Returns an identifier of the version of the file for the header If-Range: a strong ETag, or a date."""
    etag = headers.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")


def _refuse_other_files(published: RemoteFile, url: str, headers: Message, total: int | None) -> None:
    if headers.get_content_type() == "text/html":
        raise _web_page(published, url)
    if published.length is not None and total != published.length:
        raise UserError(
            f"{url} differs from the published {published.file_name}.",
            f"The file on the server has {total:,} bytes, not {published.length:,}.",
            _ADVICE,
        )


def _web_page(published: RemoteFile, url: str) -> UserError:
    return UserError(
        f"{url} is a web page instead of {published.file_name}.",
        "The file was moved, or a proxy requires a login.",
        _ADVICE,
    )
