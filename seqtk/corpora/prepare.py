"""Makes a data-bin from published files: finds or downloads the files, unpacks, splits and preprocesses them.

In the folder of the data-bin, `text/` contains the text of the splits, and `text/prepare.json` records its sources and
counts. A rerun skips the steps that are recorded as finished, so preparation resumes after an interruption.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk import __version__
from seqtk.config.fields import setting
from seqtk.corpora.download import RetryPolicy, fetch
from seqtk.corpora.local import find_all
from seqtk.corpora.spec import Corpus, RemoteFile, Text, check_file
from seqtk.corpora.unpack import unpack
from seqtk.data.preprocess import PreprocessConfig, check_destination, preprocess
from seqtk.data.report import PreprocessReport
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_files, check_writable, disk_full_errors
from seqtk.utils.progress import Reporter, format_counts


@dataclass(frozen=True)
class FilesConfig:
    """Settings of a corpus: the location of its files, and the data-bin folder to write."""

    source: str | None = setting(
        None, help="File or folder with the published files. Commas separate several. null: download the files."
    )
    mirror: str | None = setting(
        None, help="URL of a folder from which to download the published files. null: the original URLs."
    )
    downloads: str = setting("data-bin/downloads", help="Folder for downloaded files, which are stored as HOST/PATH.")
    destdir: str | None = setting(None, help="Data-bin folder to write. null: the folder that the recipes read.")
    overwrite: bool = setting(False, help="Replace an existing data-bin in destdir.")
    workers: int = setting(0, at_least=0, help="Number of worker processes. 0: one per core.")


@dataclass(frozen=True)
class PrepareConfig(FilesConfig):
    """Settings of `prepare`: the corpus, the location of its files, and the data-bin folder to write."""

    corpus: str = setting("", help="Name of the corpus. corpus= may be omitted: seqtk-prepare NAME.")


def prepare(
    corpus: Corpus, config: PrepareConfig, *, reporter: Reporter, retry: RetryPolicy | None = None
) -> PreprocessReport:
    """Makes the data-bin of `corpus`.

    Raises UserError if a file is missing or damaged, or differs from the published file.
    """
    destination = Path(config.destdir or f"data-bin/{corpus.databin}")
    check_destination(destination, overwrite=config.overwrite)
    sources = list_sources(config)
    files = (
        _find(corpus, sources, reporter) if sources else fetch_all(corpus.files, config, reporter=reporter, retry=retry)
    )
    folder = destination / "text"
    record = _Record(folder / "prepare.json", corpus)
    unpacked = folder / ".unpacked"
    items = _unpack(files, unpacked, record, reporter)
    for text in corpus.texts:
        _write(text, items, folder, record, reporter)
    with disk_full_errors(destination):
        settings = _settings(corpus, config, folder, destination)
        report = preprocess(settings, reporter=reporter)
    shutil.rmtree(unpacked, ignore_errors=True)
    return report


def list_sources(config: FilesConfig) -> list[Path]:
    """Returns the paths in `source=`. Raises UserError if a path does not exist, or if `mirror=` is also set."""
    given = config.source or ""
    places = [Path(path).expanduser() for path in ([given] if Path(given).exists() else given.split(",")) if path]
    if places and config.mirror:
        raise UserError(
            "source= and mirror= are both set.", "Set source= for files on the disk, or mirror= to download files."
        )
    for place in places:
        if not place.exists():
            raise UserError(f"source={place} does not exist.", "Set it to a file or folder.")
    return places


def _find(corpus: Corpus, sources: list[Path], reporter: Reporter) -> dict[RemoteFile, Path]:
    """Finds the files of the corpus on the disk and checks them."""
    found = find_all(corpus, sources)
    for published, path in found.items():
        advice = "Use a different source=, or remove source= to download the file."
        checked = check_file(path, published, advice=advice, reporter=reporter)
        reporter.notify(f"found {path}: {path.stat().st_size:,} bytes; {checked}")
    return found


def fetch_all(
    files: Sequence[RemoteFile], config: FilesConfig, *, reporter: Reporter, retry: RetryPolicy | None = None
) -> dict[RemoteFile, Path]:
    """Downloads the published files that are missing, checks them, and returns their paths."""
    check_writable(Path(config.downloads), key="downloads")
    mirror = config.mirror
    if mirror and not mirror.startswith(("http://", "https://")):
        raise UserError(
            f"mirror={mirror} must begin with http:// or https://.",
            "Set source= for files on the disk.",
        )
    found = {}
    for published in files:
        target = Path(config.downloads) / published.name.partition("://")[2]
        url = f"{mirror.rstrip('/')}/{published.file_name}" if mirror else published.name
        checked = fetch(published, url, target, reporter=reporter, retry=retry)
        reporter.notify(f"fetched {target}: {target.stat().st_size:,} bytes; {checked}")
        found[published] = target
    return found


class _Record:
    """A JSON record of the files that were made, their sources and their counts."""

    def __init__(self, path: Path, corpus: Corpus) -> None:
        self._path = path
        self._made: dict[str, Any] = {}
        self._head = {"seqtk": __version__, "corpus": corpus.name}
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            self._made = dict(read["made"]) if {**read, **self._head} == read else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # there is no valid record, so all files are made again

    def once(
        self, outputs: list[Path], made_of: object, inputs: list[Path], make: Callable[[], dict[str, int]]
    ) -> dict[str, int]:
        """Calls `make` to write `outputs`, unless an earlier call wrote them from the same `inputs` and `made_of`.

        Returns the counts that `make` returned.
        """
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
        key, name = f"{made_of} of {stats}", " ".join(path.name for path in outputs)
        made = self._made.get(name)
        if made is not None and made["of"] == key and all(path.is_file() for path in outputs):
            return dict(made["counts"])
        counts = make()
        self._made[name] = {"of": key, "counts": counts}
        with atomic_files([self._path]) as (file,):
            file.write(json.dumps({**self._head, "made": self._made}, indent=1, ensure_ascii=False).encode() + b"\n")
        return counts


def _unpack(files: Mapping[RemoteFile, Path], folder: Path, record: _Record, reporter: Reporter) -> dict[str, Path]:
    """Unpacks the archives, and returns the path of each published text by its file name."""
    items = {}
    for published, path in files.items():
        if not published.members:
            items[published.file_name] = path
            continue
        targets = {member: folder / member.file_name for member in published.members}

        def make(path: Path = path, targets: dict[RemoteFile, Path] = targets) -> dict[str, int]:
            unpack(path, targets, reporter=reporter)
            return {member.name: target.stat().st_size for member, target in targets.items()}

        sizes = record.once(list(targets.values()), published, [path], make)
        for member, target in targets.items():
            reporter.notify(f"unpacked {member.name}: {sizes[member.name]:,} bytes")
            items[member.file_name] = target
    return items


def _write(text: Text, items: Mapping[str, Path], folder: Path, record: _Record, reporter: Reporter) -> None:
    """Writes the files of one text if they are missing, and reports their counts."""
    inputs = {name: items[name] for name in text.inputs}
    outputs = [folder / name for name in text.outputs]
    counts = record.once(outputs, text, list(inputs.values()), lambda: text.write(inputs, outputs, reporter=reporter))
    reporter.notify(f"{' and '.join(text.outputs)}: {format_counts(counts)}")


def _settings(corpus: Corpus, config: PrepareConfig, folder: Path, destination: Path) -> PreprocessConfig:
    """Returns the settings that make the data-bin from the text in `folder`."""
    return PreprocessConfig(
        train=str(folder / "train"),
        valid=(str(folder / "valid"),),
        test=(str(folder / "test"),),
        destdir=str(destination),
        overwrite=config.overwrite,
        workers=config.workers,
        **corpus.settings,
    )
