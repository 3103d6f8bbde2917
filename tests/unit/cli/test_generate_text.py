"""seqtk-generate and seqtk-interactive with a language model: each prompt gives texts, in the order of the prompts."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtk.cli.generate import main as generate
from seqtk.cli.interactive import main as interactive
from seqtk.generation.formats import TEXT_SEPARATOR
from tests.unit.cli.test_eval_lm import make

PROMPTS = ["the dög", "", "a tree sees", "a"]
TEXT = "".join(f"{line}\n" for line in PROMPTS).encode()

Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate-text")
    for kind in ("bytes", "words", "pieces"):
        make(folder, kind)
    make(folder, "words", seed=2)
    (folder / "prompts").write_bytes(TEXT)
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(folder)

    def run(*arguments: str, command: Callable[[list[str]], None] = generate, stdin: bytes = b"") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        command(["checkpoint=words.safetensors", "device=cpu", "max_length_b=9", *arguments])
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("kind", ["bytes", "words", "pieces"])
def test_texts_are_in_prompt_order(run: Run, kind: str) -> None:
    written = run("input=prompts", f"checkpoint={kind}.safetensors", "format=json", "nbest=7", "min_length=3")
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["source"] for line in lines] == PROMPTS
    for line, prompt in zip(lines, PROMPTS, strict=True):
        texts = [hypothesis["text"] for hypothesis in line["hypotheses"]]
        assert len(texts) == 7
        assert len(set(texts)) > 1
        assert all(text.startswith(prompt) for text in texts)
    again = run("input=-", f"checkpoint={kind}.safetensors", "format=json", "nbest=7", "min_length=3", stdin=TEXT)
    assert again == written
    small = run("input=prompts", f"checkpoint={kind}.safetensors", "nbest=7", "min_length=3", "max_sentences=1")
    texts = [hypothesis["text"] for line in lines for hypothesis in line["hypotheses"]]
    assert small == "".join(f"{text}\n{TEXT_SEPARATOR}\n" for text in texts)  # also if a text has line feeds


def test_default_input_is_one_empty_prompt(run: Run) -> None:
    texts = run("nbest=5").splitlines()
    assert texts[1::2] == [TEXT_SEPARATOR] * 5
    assert run("nbest=5", "seed=2").splitlines() != texts
    assert run("nbest=2", "checkpoint=words.safetensors,words2.safetensors").splitlines() != texts[:2]


def test_prompt_is_kept_and_unk_is_not_produced(run: Run) -> None:
    prompt = "the  zebra sees a giraffe"  # two words that are not in the vocabulary, and two spaces
    arguments = ("input=-", "format=json", "nbest=20", "min_length=5")
    given = [json.loads(run(*arguments, *more, stdin=prompt.encode())) for more in ((), ("unk_penalty=0",))]
    for line in given:
        for hypothesis in line["hypotheses"]:
            assert hypothesis["text"].startswith(f"{prompt} ")
            assert hypothesis["tokens"][:5] == ["the", "<unk>", "sees", "a", "<unk>"]
            assert hypothesis["tokens"][-1] == "</s>"
            assert len(hypothesis["tokens"]) == len(hypothesis["token_scores"])
            assert all(score is not None for score in hypothesis["token_scores"])
    excluded, written = ([text["tokens"][5:].count("<unk>") for text in line["hypotheses"]] for line in given)
    assert sum(excluded) == 0 < sum(written)
    apart = run("input=-", "detokenize=false", stdin=prompt.encode())
    assert apart.startswith("the <unk> sees a <unk> ")
    (best,) = run("input=-", "sampling=false", "beam=3", stdin=prompt.encode()).splitlines()
    assert best.startswith(f"{prompt} ")
    assert "<unk>" not in best


@pytest.mark.parametrize("kind", ["bytes", "words", "pieces"])
def test_trailing_space_of_prompt_is_not_doubled(run: Run, kind: str) -> None:
    prompts = ["the ", " the\t", "a tree ?? sees  "]
    texts = run(
        "input=-", f"checkpoint={kind}.safetensors", "format=json", "top_k=1", stdin="\n".join(prompts).encode()
    )
    for line, prompt in zip(map(json.loads, texts.splitlines()), prompts, strict=True):
        text = line["hypotheses"][0]["text"]
        assert text.startswith(prompt)
        assert kind == "bytes" or not text.removeprefix(prompt).startswith(" ")


def test_beam_search_continues_prompts(run: Run) -> None:
    (line,) = (json.loads(line) for line in run("sampling=false", "nbest=3", "format=json", "beam=4").splitlines())
    scores = [hypothesis["score"] for hypothesis in line["hypotheses"]]
    assert scores == sorted(scores, reverse=True)
    greedy = run("input=prompts", "sampling=false", "beam=1")
    assert run("input=prompts", "top_k=1") == greedy


def test_fairseq_format_has_no_line_feeds(run: Run) -> None:
    written = run("input=prompts", "checkpoint=bytes.safetensors", "format=fairseq", "nbest=2", "max_length_b=300")
    tags = [line.split("-")[0] for line in written.split("\n")[:-1]]
    last = tags.pop()
    assert last == "NOTE: hypothesis and token scores are output in base 2"
    assert tags == ["S", "H", "D", "P", "H", "D", "P"] * len(PROMPTS)


def test_interactive_continues_each_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("input=prompts", "nbest=2")
    assert run("nbest=2", command=interactive, stdin=TEXT) == expected


@pytest.mark.slow
def test_worker_processes_do_not_change_the_output(run: Run) -> None:
    assert run("input=prompts", "workers=2", "max_sentences=2") == run("input=prompts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data=words", "data="),
        ("split=valid", "split="),
        ("input=prompts reference=prompts", "reference="),
        ("input=prompts prefix=prompts", "prefix="),
        ("score_reference=true", "To score text, run seqtk-eval-lm"),
        ("temperature=0", "temperature=0"),
        ("top_p=2", "top_p=2.0"),
        ("sampling=false top_k=3", "sampling=true"),
        ("beam=3", "Set sampling=false"),
        ("top_k=1 beam=5", "Set sampling=false"),
        ("sampling=true beam=5", "Set sampling=false"),
        ("sampling=false nbest=9", "nbest=9 is more than beam=5"),
        ("input=prompt", "Did you mean 'prompts'"),
        ("checkpoint=words.safetensors,bytes.safetensors", "different vocabularies"),
    ],
)
def test_error_names_the_key(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as raised:
        generate(["checkpoint=words.safetensors", *arguments.split()])
    stderr = capsys.readouterr().err
    assert words in stderr
    assert raised.value.code == 2
    assert len(stderr.splitlines()) <= 3
