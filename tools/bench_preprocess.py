"""Measures the speed of seqtk-preprocess, relative to baselines or, with --against, to another checkout.

    python tools/bench_preprocess.py [--against CHECKOUT] [--lines N] [--source FILE --target FILE]

If no files are given, the text is generated, with word frequencies that follow Zipf's law. The measured work starts
with text files and ends with a data-bin on disk. It includes checking the text, building the dictionary, encoding and
writing. Rounds alternate between the baselines and seqtk, and the time of the best round is printed. Work on one core
is measured in processor time, which other load on the machine affects less. Several workers are measured in wall-clock
time.

With --against, the tool times only the command `seqtk-preprocess`, including its start-up, of this checkout and of the
other checkout. Each checkout needs its own .venv.
"""

import argparse
import gzip
import resource
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece

from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.tokenizer_training import train_tokenizer
from seqtk.data.vocabulary import EOS, UNK
from seqtk.data.vocabulary_building import Tokens
from seqtk.data.workers import available_cores

WORDS_PER_LINE = 25
WORD_TYPES = 30_000
HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, with its own .venv, to compare with")
    parser.add_argument("--lines", type=int, default=150_000, help="lines of each side to use")
    parser.add_argument("--source", type=Path, help="text of the source side, plain or .gz")
    parser.add_argument("--target", type=Path, help="text of the target side, plain or .gz")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as name:
        folder = Path(name)
        for number, (lang, given) in enumerate((("xx", arguments.source), ("yy", arguments.target))):
            lines = _read(given, arguments.lines) if given else _made_lines(arguments.lines, seed=number)
            (folder / f"text.{lang}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if arguments.against:
            _bench_commands(folder, arguments.against.absolute(), rounds=arguments.rounds)
            return
        _bench_tokenized(folder, rounds=arguments.rounds)
        _bench_raw(folder, rounds=arguments.rounds)


def _bench_commands(folder: Path, other: Path, *, rounds: int) -> None:
    """Measures the command `seqtk-preprocess` of two checkouts, alternately, on the same text."""
    print("seqtk-preprocess, seconds of the best round: this checkout, the other checkout, this / other")
    for tokens in ("words", "sentencepiece"):
        for workers in sorted({1, available_cores()}):
            timed: dict[str, Callable[[], object]] = {
                f"{checkout}, {workers} {'worker' if workers == 1 else 'workers'}": partial(
                    _command, checkout, folder, workers=workers, tokens=tokens
                )
                for checkout in (HERE, other)
            }
            ours, others = _best(timed, rounds, children=True).values()
            print(f"  {tokens:13} {workers} worker(s) {ours:8.2f} {others:8.2f} {ours / others:6.2f}", flush=True)


def _command(checkout: Path, folder: Path, *, workers: int, tokens: str) -> None:
    with _new_directory(folder) as destination:
        settings = ["source_lang=xx", "target_lang=yy", f"train={folder}/text", f"destdir={destination}"]
        settings += [f"tokens={tokens}", f"workers={workers}"]
        subprocess.run([checkout / ".venv/bin/seqtk-preprocess", *settings], check=True, capture_output=True)


def _bench_tokenized(folder: Path, *, rounds: int) -> None:
    """Measures preprocessing of tokenized text, including the dictionary. The baseline loops over lines and words."""
    cores = available_cores()
    timed: dict[str, Callable[[], object]] = {
        "per-line dictionary loop (split, look up, append)": partial(_dictionary_loop, folder),
        "seqtk-preprocess, 1 worker": partial(_ours, folder, workers=1, tokens="words"),
        f"seqtk-preprocess, {cores} workers": partial(_ours, folder, workers=cores, tokens="words"),
    }
    seconds = _best(timed, rounds)
    tokens = sum(len(line.split()) + 1 for path in folder.glob("text.*") for line in path.open(encoding="utf-8"))
    print(f"from tokenized text to a data-bin: {tokens:,} tokens")
    baseline = next(iter(seconds.values()))
    for name, taken in seconds.items():
        print(f"  {name:50} {tokens / taken:12,.0f} tokens/s  {baseline / taken:5.2f} x the loop's speed")


def _bench_raw(folder: Path, *, rounds: int) -> None:
    """Measures preprocessing of raw text with an existing SentencePiece model.

    The baseline is SentencePiece's batch encoder, which reads and writes no files.
    """
    lines = [line for path in sorted(folder.glob("text.*")) for line in path.read_text("utf-8").split("\n")[:-1]]
    cores = available_cores()
    for kind in ("bpe", "unigram"):
        tokenizer = train_tokenizer(
            (line.encode("utf-8") for line in lines[:: max(1, len(lines) // 50_000)]),
            vocab_size=8000,
            model_type=kind,
            character_coverage=1.0,
            byte_fallback=False,
            hard_vocab_limit=False,
        )
        model = folder / f"{kind}.model"
        model.write_bytes(tokenizer.model_bytes or b"")
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
        timed: dict[str, Callable[[], object]] = {
            "SentencePiece's batch encoder, 1 thread": partial(processor.encode, lines, out_type=int, num_threads=1),
            "seqtk-preprocess, 1 worker": partial(_ours, folder, workers=1, sentencepiece=str(model)),
            f"seqtk-preprocess, {cores} workers": partial(_ours, folder, workers=cores, sentencepiece=str(model)),
        }
        seconds = _best(timed, rounds)
        print(f"from raw text to a data-bin, {kind}: {len(lines):,} lines")
        baseline = next(iter(seconds.values()))
        for name, taken in seconds.items():
            print(f"  {name:50} {len(lines) / taken:12,.0f} lines/s   {taken / baseline:5.2f} x the encoder's time")


def _ours(folder: Path, *, workers: int, tokens: Tokens = "sentencepiece", sentencepiece: str | None = None) -> None:
    with _new_directory(folder) as destination:
        config = PreprocessConfig(
            source_lang="xx",
            target_lang="yy",
            train=f"{folder}/text",
            destdir=str(destination),
            workers=workers,
            tokens=tokens,
            sentencepiece=sentencepiece,
        )
        preprocess(config)


def _dictionary_loop(folder: Path) -> None:
    """The baseline: does the work of fairseq's preprocessing for each word, and nothing else, in a plain loop."""
    with _new_directory(folder) as destination:
        destination.mkdir()
        counts: Counter[str] = Counter()
        for path in sorted(folder.glob("text.*")):
            with path.open(encoding="utf-8", newline="\n") as file:
                for line in file:
                    for word in line.split():
                        counts[word] += 1
        ids = {word: id_ for id_, (word, _) in enumerate(counts.most_common(), start=UNK + 1)}
        for path in sorted(folder.glob("text.*")):
            sizes = []
            with path.open(encoding="utf-8", newline="\n") as file, (destination / path.name).open("wb") as out:
                for line in file:
                    item = []
                    for word in line.split():
                        item.append(ids.get(word, UNK))
                    item.append(EOS)
                    out.write(np.array(item, dtype=np.uint16).tobytes())
                    sizes.append(len(item))
            np.array(sizes, dtype=np.int32).tofile(destination / f"{path.name}.sizes")


def _best(timed: dict[str, Callable[[], object]], rounds: int, *, children: bool = False) -> dict[str, float]:
    """Returns name of a function → seconds of its best round.

    The seconds are wall-clock time if the name ends with "workers", and CPU time otherwise. With `children`, it is the
    CPU time of child processes.
    """
    seconds = dict.fromkeys(timed, float("inf"))
    processor_time = _time_of_children if children else time.process_time
    for _ in range(rounds):
        for name, function in timed.items():
            clock = time.perf_counter if name.endswith("workers") else processor_time
            start = clock()
            function()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def _time_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _new_directory(folder: Path) -> Iterator[Path]:
    """Yields the path of a directory that does not exist yet, and deletes the directory afterwards."""
    try:
        yield folder / "out"
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def _made_lines(lines: int, *, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    letters = np.array(list("eeeaaattoinshrdluäöüß"))
    words = np.array(["".join(rng.choice(letters, size=rng.integers(2, 9))) for _ in range(WORD_TYPES)])
    chosen = words[np.minimum(rng.zipf(1.2, size=(lines, WORDS_PER_LINE)), WORD_TYPES) - 1]
    return [" ".join(line) for line in chosen.tolist()]


def _read(path: Path, lines: int) -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8").split("\n")[:-1][:lines]


if __name__ == "__main__":
    main()
