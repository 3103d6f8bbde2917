import io
import json
import os
import signal
import threading

import pytest

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.checkpoint import model_file, trained_model
from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.cli.generate import main as generate
from seqtk.cli.interactive import main as interactive
from seqtk.cli.score import main as score
from seqtk.config import schema
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.config import SearchConfig
from seqtk.generation.search import search
from seqtk.metrics import Evaluation
from seqtk.metrics.text import Bleu
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.training.config import TrainConfig
from tests.unit.generation.tiny import sharpen
from tests.waiting import PATIENCE

SOURCES = ["ein Haus", "", "das Haus ist alt und das Haus ist neu", "alt", "neu und alt"] * 3
TARGETS = ["a house", "nothing", "the house is old and the house is new", "old", "new and old"] * 3
LIMITS = ["beam=2", "max_length_b=5", "device=cpu", "max_sentences=4"]


def model_path(folder, *, seed, words):
    import torch

    attention = (SoftmaxConfig(heads=2),)
    stack = {"layers": 1, "self_attention": attention}
    config = TransformerConfig(
        dim=8,
        ffn_dim=16,
        encoder=EncoderConfig(**stack),
        decoder=DecoderConfig(**stack, cross_attention=attention),
        share_embeddings="none",
        max_source_length=8,
    )
    assets = {
        "source.lang": "de",
        "target.lang": "en",
        "source.dict": Vocabulary(sorted({word for line in SOURCES for word in line.split()})).to_text(),
        "target.dict": Vocabulary(words).to_text(),
    }
    task_config = TranslationConfig(data=str(folder / "data-bin"))
    task = TranslationTask(task_config, assets=assets)
    torch.manual_seed(seed)
    model = sharpen(task.model(config), 6)
    path = folder / f"model{seed}.safetensors"
    train = TrainConfig(task=task_config, model=config)
    model_file.write(path, ModelFile(tensors_of(model), schema.to_dict(train), task.assets(), {}))
    return path, task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two models of random weights, their data-bin, and text files."""
    folder = tmp_path_factory.mktemp("generate")
    words = sorted({word for line in TARGETS for word in line.split()})
    _, task = model_path(folder, seed=1, words=words)
    model_path(folder, seed=2, words=words)
    model_path(folder, seed=3, words=[*words, "more"])
    (folder / "data-bin").mkdir()
    for lang, vocabulary, lines in (("de", task.source_vocabulary, SOURCES), ("en", task.target_vocabulary, TARGETS)):
        (folder / "data-bin" / f"dict.{lang}.txt").write_text(vocabulary.to_text())
        (folder / f"test.{lang}").write_text("".join(f"{line}\n" for line in lines))
        with IndexedWriter(folder / "data-bin" / f"test.de-en.{lang}", vocabulary_size=len(vocabulary)) as writer:
            for line in lines:
                writer.append(vocabulary.encode(line.split()))
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments, command=generate, stdin=None):
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        options = [] if command is score else [*LIMITS, "checkpoint=model1.safetensors"]
        command([*options, *arguments])
        return capsys.readouterr()

    return run


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def refused(*arguments, command=generate):
        with pytest.raises(SystemExit) as raised:
            command(list(arguments))
        assert raised.value.code == 2
        stderr = capsys.readouterr().err
        assert len(stderr.splitlines()) <= 3
        return stderr

    return refused


def test_each_input_line_gives_one_output_line(run):
    whole = run("input=test.de").out.splitlines()
    assert len(whole) == len(SOURCES)
    assert len(set(whole)) == 5
    assert whole[1] == ""
    for number, line in enumerate(SOURCES[:5]):
        assert run("input=-", stdin=f"{line}\n".encode()).out.splitlines() == [whole[number]]
    assert run("input=test.de", "max_sentences=1", "buffer_size=2").out.splitlines() == whole


@pytest.mark.parametrize("text", [b"", b"alt", b"alt\n", b"alt\r\nneu\n", b"\n\n", b"a\xe2\x80\xa8b\x0cc\n"])
def test_number_of_output_lines_equals_wc_of_the_input(run, text):
    expected = text.count(b"\n") + (not text.endswith(b"\n") and text != b"")
    assert len(run("input=-", stdin=text).out.split("\n")) - 1 == expected


@pytest.mark.parametrize(("line", "share"), [("Katze Hund alt", "67%"), ("Katze alt", None), ("", None)])
def test_input_of_mostly_unknown_words_is_reported(run, line, share):
    """Raw text is mostly unknown to a model that was imported with a dictionary only."""
    found = [found for found in run("input=-", stdin=f"{line}\n".encode()).err.splitlines() if "unknown" in found]
    assert [line.split()[0] for line in found] == ([share] if share else [])


def test_data_bin_split_and_its_text_give_equal_output(run, folder):
    split = run("data=data-bin", "format=json")
    text = run("input=test.de", "reference=test.en", "format=json")
    texts = [json.loads(line)["hypotheses"][0]["text"] for line in text.out.splitlines()]
    assert len(texts) == len(SOURCES)
    for number, line in enumerate(split.out.splitlines()):
        assert json.loads(line)["index"] == number
        assert SOURCES[number] == "" or json.loads(line)["hypotheses"][0]["text"] == texts[number]
    (folder / "hypotheses").write_text("".join(f"{line}\n" for line in texts))
    scored = run("hypothesis=hypotheses", "reference=test.en", "metrics=bleu,chrf", command=score)
    assert scored.out.splitlines() == [line for line in text.err.splitlines() if line.startswith(("BLEU", "chrF"))]


@pytest.fixture
def kept_text(folder):
    """Stores the text of a split where seqtk-preprocess stores it."""
    kept = [folder / "data-bin" / f"test.de-en.{lang}.txt" for lang in ("de", "en")]
    for path, lines in zip(kept, (SOURCES, TARGETS), strict=True):
        path.write_text("".join(f"{line.upper()}\n" for line in lines))
    yield
    for path in kept:
        path.unlink()


def test_stored_text_is_printed(run, kept_text):
    lines = run("data=data-bin", "format=fairseq").out.splitlines()
    shown = {tag: [line.split("\t")[-1] for line in lines if line.startswith(f"{tag}-")] for tag in "STD"}
    assert shown["S"] == [line.upper() for line in SOURCES]
    assert shown["T"] == [line.upper() for line in TARGETS]
    assert [text for source, text in zip(SOURCES, shown["D"], strict=True) if not source] == ["", "", ""]


def test_task_outputs_equal_generation_with_stored_text(run, folder, kept_text):
    loaded = trained_model.load(folder / "model1.safetensors")
    loaded.task.open(str(folder / "data-bin"))
    dataset = loaded.task.dataset("test")
    batch = loaded.task.collate([dataset[index] for index in range(len(dataset))])
    outputs = loaded.task.outputs(loaded.model, batch, dataset, SearchConfig(beam=2, max_length_b=5))
    assert [output.output for output in outputs] == run("data=data-bin").out.split("\n")[:-1]


def test_task_outputs_and_bleu_equal_seqtk_generate(run, folder):
    loaded = trained_model.load(folder / "model1.safetensors")
    task = loaded.task
    assert isinstance(task, TranslationTask)
    task.open(str(folder / "data-bin"))
    dataset = task.dataset("test")
    batch = task.collate([dataset[index] for index in range(len(dataset)) if index % 5 != 2])
    outputs = task.outputs(loaded.model, batch, dataset, SearchConfig(beam=2, max_length_b=5))
    written = run("data=data-bin")
    lines = written.out.splitlines()
    assert [output.output for output in outputs] == [line for number, line in enumerate(lines) if number % 5 != 2]
    (folder / "kept").write_text("".join(f"{output.output}\n" for output in outputs))
    (folder / "kept.en").write_text("".join(f"{output.references[0]}\n" for output in outputs))
    scored = run("hypothesis=kept", "reference=kept.en", "metrics=bleu", command=score).out
    bleu = Bleu().compute(Evaluation(outputs=outputs))
    assert f"BLEU|{bleu.signature} = {bleu.value:.2f} " in scored


def test_default_input_is_the_training_corpus(run, folder):
    assert run().out == run("data=data-bin", "split=test").out


def test_fairseq_format_ends_with_bleu(run):
    *lines, note, last = run("data=data-bin", "format=fairseq", "nbest=2").out.splitlines()
    assert note == "NOTE: hypothesis and token scores are output in base 2"
    assert last.startswith("Generate test with beam=2: BLEU = ")
    assert "nrefs:1|case:mixed" in last
    assert [line.split("\t")[0] for line in lines[:8]] == ["S-0", "T-0", "H-0", "D-0", "P-0", "H-0", "D-0", "P-0"]


def test_references_are_scored_or_used_as_prefixes(run):
    scored = [json.loads(line) for line in run("data=data-bin", "score_reference=true", "format=json").out.splitlines()]
    assert [item["hypotheses"][0]["text"] for item in scored] == TARGETS
    for lines in (run("data=data-bin", "prefix_size=1"), run("input=test.de", "reference=test.en", "prefix_size=1")):
        begins = [line.split()[:1] for line in lines.out.splitlines()]
        assert all(not words or words == target.split()[:1] for words, target in zip(begins, TARGETS, strict=True))
    forced = run("input=test.de", "prefix=test.en", "max_length_b=9").out.splitlines()
    assert forced[2].startswith(TARGETS[2])


def test_output_file_is_complete_or_absent(run, refused, folder):
    printed = run("input=test.de").out
    assert run("input=test.de", "output=out.txt").out == ""
    assert (folder / "out.txt").read_text() == printed
    refused("checkpoint=model1.safetensors", "input=test.de", "reference=hypotheses.no", "output=none.txt")
    assert not list(folder.glob("none.txt*"))


def test_truncated_input_is_counted(run):
    stderr = run("input=test.de").err
    assert "Truncated to the model's maximum length: 3 sentences" in stderr
    assert "Translated 15 sentences (" in stderr


def test_ensemble_of_equal_models_equals_one_model(run):
    assert run("input=test.de", "checkpoint=model1.safetensors,model1.safetensors").out == run("input=test.de").out
    assert run("input=test.de", "checkpoint=model1.safetensors,model2.safetensors").out != run("input=test.de").out


@pytest.mark.slow
def test_worker_processes_do_not_change_the_output(run):
    assert run("input=test.de", "workers=2", "max_sentences=2").out == run("input=test.de").out


def test_interactive_with_input_suggests_seqtk_generate(capsys):
    with pytest.raises(SystemExit):
        interactive(["checkpoint=model", "input=text.en"])
    assert "seqtk-generate" in capsys.readouterr().err


def test_interactive_prints_an_output_for_each_line(run):
    expected = run("input=test.de").out
    for size in (1, 4):
        text = "".join(f"{line}\n" for line in SOURCES).encode()
        assert run(f"buffer_size={size}", command=interactive, stdin=text).out == expected


@pytest.fixture
def at_a_terminal(run, monkeypatch):
    def at_a_terminal(typed, *arguments):
        """Returns the lines that the terminal shows after the lines or signals `typed` and then Ctrl-D."""
        remaining = iter(typed)

        def read(prompt):
            assert prompt == "de> "
            line = next(remaining, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
        return run(*arguments, command=interactive).out.splitlines()[:-1]

    return at_a_terminal


def test_interactive_terminal_shows_scores(at_a_terminal):
    shown = at_a_terminal(["alt", "neu und alt"], "nbest=2")
    assert len(shown) == 4
    assert float(shown[0].split()[0]) >= float(shown[1].split()[0])


def test_blank_line_on_a_terminal_gives_a_blank_line(at_a_terminal):
    (answer,) = at_a_terminal(["alt"])
    assert at_a_terminal(["", "  ", "alt"]) == ["", "", answer]


def test_ctrl_c_discards_the_current_line(at_a_terminal, monkeypatch):
    (answer,) = at_a_terminal(["alt"])
    assert at_a_terminal(["alt", KeyboardInterrupt(), "alt"]) == [answer, "", answer]
    calls = iter(range(9))

    def interrupted_once(*arguments, **named):
        if next(calls) == 0:
            raise KeyboardInterrupt
        return search(*arguments, **named)

    monkeypatch.setattr("seqtk.generation.decode.search", interrupted_once)
    assert at_a_terminal(["neu und alt", "alt"]) == ["", answer]


def test_sigterm_ends_the_interactive_prompt(at_a_terminal, capsys):
    with pytest.raises(SystemExit):
        at_a_terminal([KeyboardInterrupt(signal.SIGTERM), "alt"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "checkpoint="),
        (["checkpoint=model1.safetensor"], "Did you mean 'model1.safetensors'"),
        (["checkpoint=model1.safetensors", "input=test.ed"], "no text file test.ed"),
        (["checkpoint=model1.safetensors", "split=tst"], "Did you mean 'test'"),
        (["checkpoint=model1.safetensors", "input=test.de", "reference=one.en"], "one.en has 1 line, but test.de has"),
        (["checkpoint=model1.safetensors", "input=test.de", "data=data-bin"], "both set"),
        (["checkpoint=model1.safetensors", "input=test.de", "split=valid"], "split=valid"),
        (["checkpoint=model1.safetensors", "nbest=2"], "nbest=2"),
        (["checkpoint=model1.safetensors", "beam=2", "nbest=3", "format=json"], "nbest=3 is more than beam=2"),
        (["checkpoint=model1.safetensors,model3.safetensors"], "different vocabularies"),
        (["checkpoint=model3.safetensors"], "dictionary of 'en'"),
        (["checkpoint=model1.safetensors", "input=test.de", "score_reference=true"], "require references"),
        (["checkpoint=model1.safetensors", "score_reference=true"], "score_reference=true is not possible"),
        (["checkpoint=model1.safetensors", "lenght_penalty=1"], "Did you mean 'length_penalty'"),
        (["checkpoint=model1.safetensors", "input=test.de", "output=nowhere/out"], "no folder nowhere"),
    ],
)
def test_error_names_the_key(refused, folder, arguments, words):
    (folder / "one.en").write_text("a\n")
    assert words in refused(*arguments)


def test_beam_larger_than_the_vocabulary_is_refused(refused):
    stderr = refused("checkpoint=model1.safetensors", "input=test.de", "device=cpu", "beam=100000")
    assert "beam=100000 is more than the " in stderr


class TestReferences:
    def test_several_reference_files_are_scored(self, run, folder):
        (folder / "other.en").write_text("".join(f"{line} now\n" for line in TARGETS))
        written = run("input=test.de", "reference=test.en,other.en")
        assert "BLEU|nrefs:2|" in written.err
        (folder / "hyp").write_text(written.out)
        scored = run("hypothesis=hyp", "reference=test.en,other.en", "metrics=bleu,chrf", command=score).out
        assert scored.splitlines() == [line for line in written.err.splitlines() if line.startswith(("BLEU", "chrF"))]

    def test_scored_references_have_no_bleu(self, run):
        assert "BLEU" not in run("data=data-bin", "score_reference=true", "format=json").err


class TestPrefix:
    def test_long_prefix_is_reported(self, run):
        stderr = run("input=test.de", "prefix=test.en", "max_length_b=3").err
        assert "Truncated the prefix to the maximum length of outputs: 3 sentences" in stderr

    def test_unknown_words_are_reported_and_kept(self, run, folder):
        (folder / "begin").write_text("zebra new\n" * len(SOURCES))
        written = run("input=test.de", "prefix=begin", "max_length_b=9")
        assert "15 tokens of the prefixes are unknown" in written.err
        lines = [line for line, source in zip(written.out.splitlines(), SOURCES, strict=True) if source]
        assert all(line.startswith("zebra new") for line in lines)


class TestOutput:
    """`output=` may be a file, a symlink or a named pipe."""

    def test_output_is_written_to_a_named_pipe(self, run, folder):
        os.mkfifo(folder / "pipe")
        got = []
        reader = threading.Thread(target=lambda: got.append((folder / "pipe").read_text()), daemon=True)
        reader.start()
        run("input=test.de", "output=pipe")
        reader.join(timeout=PATIENCE)
        assert got == [run("input=test.de").out]
        assert (folder / "pipe").is_fifo()

    def test_writing_to_a_symlink_writes_its_target(self, run, folder):
        (folder / "link").symlink_to("target")
        run("input=test.de", "output=link")
        assert (folder / "link").is_symlink()
        assert (folder / "target").read_text() == run("input=test.de").out


@pytest.mark.parametrize(
    "argument",
    ["threads=100000", "temperature=inf", "max_length_b=99999999999999999999", "workers=1000000", "nbest=0", "beam=-1"],
)
def test_numbers_out_of_range_are_refused(refused, argument):
    assert refused("checkpoint=model1.safetensors", "input=test.de", argument).startswith(
        f"seqtk-generate: {argument.partition('=')[0]}="
    )
