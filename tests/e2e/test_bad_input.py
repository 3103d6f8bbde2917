"""User errors exit with code 2 and print at most three lines with the path or key, without a traceback."""

import importlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.cli.recipes import main as recipes_main
from seqtk.data.preprocess import PreprocessConfig, preprocess
from tests.unit.training.helpers import trainer


@dataclass(frozen=True)
class Workspace:
    """A folder with a trained model, its corpus, and files that are not models."""

    folder: Path
    corpus: Path


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path(_Evil.mark),)  # type: ignore[return-value]

    mark = ""


@pytest.fixture(scope="module")
def workspace(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    trainer(tiny_corpus, folder / "run", max_updates=1).fit()
    model = folder / "model.safetensors"
    model_file.write(model, model_file.read(folder / "run"))
    (folder / "cut.safetensors").write_bytes(model.read_bytes()[:-1000])
    moved = model_file.read(model)
    moved.config["task"] |= {"data": "data-bin/gone", "made_by": "made-by-this"}
    model_file.write(folder / "moved.safetensors", moved)
    (folder / "notes.txt").write_text("This is no model.\n")
    for name in ("empty.txt", "blank.txt"):
        (folder / name).write_text("")
    (folder / "empty.yaml").write_text("")
    torch.save({"model": {}}, folder / "fairseq.pt")
    (folder / "three.en").write_text("one\ntwo\nthree\n")
    for name in ("two.de", "zwei.de"):
        (folder / name).write_text("eins\nzwei\n")
    (folder / "latin1.en").write_bytes(b"caf\xe9\n" * 3)
    (folder / "nothing").mkdir()
    _Evil.mark = str(folder / "was-run")
    (folder / "evil.pt").write_bytes(pickle.dumps({"model": _Evil()}, protocol=2))
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "broken.yaml").write_text("model: [dim: 3\n")
    (folder / "typo.yaml").write_text("modle: {dim: 3}\n")
    preprocess(
        PreprocessConfig(
            source_lang="en",
            target_lang="de",
            train=str(tiny_corpus / "text" / "train"),
            valid=(str(tiny_corpus / "text" / "valid"),),
            test=(str(tiny_corpus / "text" / "test"),),
            destdir=str(folder / "other-corpus"),
            vocab_size=250,
            workers=1,
        )
    )
    for damaged in ("no-pieces", "cut", "fairseqs-cut"):
        shutil.copytree(tiny_corpus, folder / damaged)
    (folder / "no-pieces" / "sentencepiece.model").unlink()
    for name in ("cut", "fairseqs-cut"):
        dictionary = folder / name / "dict.de.txt"
        dictionary.write_text("".join(dictionary.read_text(encoding="utf-8").splitlines(keepends=True)[:100]))
    (folder / "fairseqs-cut" / "preprocess.json").unlink()
    return Workspace(folder, tiny_corpus)


# The command, its arguments ({here} and {corpus} are replaced), and texts that the error must contain.
TRAIN = "task.data={corpus} save_dir={new} device=cpu max_updates=1 log.tensorboard=false"
SMALL = f"{TRAIN} model.dim=16 model.ffn_dim=16 model.heads=2 model.encoder.layers=1 model.decoder.layers=1"
GENERATE = "checkpoint={here}/model.safetensors device=cpu"
MAKE = "source_lang=en target_lang=de train={corpus}/text/train workers=1"
CASES = [
    # names and paths that do not exist
    ("train", "recipe=wmt14_sinth", "'wmt14_synth'"),
    ("train", "recipe={here}/mine.yaml", "{here}/mine.yaml"),
    ("train", "modle.dim=3", "'model'"),
    ("train", "recipe=demo model.dmi=3", "'model.dim'"),
    ("train", "aliases=3", "'aliases'"),
    ("train", "model=transfromer", "'transformer'"),
    ("train", "attention=synthesizer_dens", "'synthesizer_dense'"),
    ("train", f"{TRAIN} criterion=cross_entorpy", "'cross_entropy'"),
    ("train", f"{TRAIN} optimizer=adm", "'adam'"),
    ("train", f"{TRAIN} schedule=inverse_squrt", "'inverse_sqrt'"),
    ("train", "task.data={here}/no-corpus max_updates=1", "{here}/no-corpus"),
    ("train", "recipe=wmt14_base save_dir={new}", "seqtk-prepare wmt14_en_de"),
    ("train", "max_updates=1 save_dir={new}", "task.data"),
    ("train", f"{SMALL} validation.split=vaild", "'valid'"),
    ("train", f"{SMALL} validation.metric=blue", "validation.metric"),
    ("train", f"{TRAIN} user_dir={{here}}/no-plugin", "{here}/no-plugin"),
    ("train", f"{SMALL} task.data={{here}}/no-pieces", "There is no sentencepiece.model in {here}/no-pieces"),
    ("train", f"{SMALL} task.data={{here}}/cut", "{here}/cut/dict.de.txt has"),
    ("train", f"{SMALL} model.share_embeddings=none task.data={{here}}/fairseqs-cut", "dictionary of 'de'"),
    # wrong types
    ("train", "model.dim=wide", "model.dim"),
    ("train", "model.dim=3.5", "model.dim"),
    ("train", "optimizer.betas=[0.9]", "optimizer.betas"),
    ("train", "precision=fp12", "precision"),
    ("train", "model=3", "model"),
    ("train", "max_updates", "key=value"),
    ("train", "--max-updates 5", "max_updates=5"),
    ("train", "recipe={here}/list.yaml", "{here}/list.yaml"),
    ("train", "recipe={here}/broken.yaml", "{here}/broken.yaml"),
    ("train", "recipe={here}/typo.yaml", "'model'"),
    # impossible values
    ("train", "task.data={corpus} save_dir={new}", "max_updates"),
    ("train", "", "seqtk-recipes ls"),
    ("train", "recipe={here}/empty.yaml", "seqtk-recipes ls"),
    ("train", "recipe=", "There is no recipe called ''"),
    ("train", f"{SMALL} batch.max_tokens=0", "max_tokens"),
    ("train", f"{SMALL} batch.max_tokens=3", "max_tokens=3"),
    ("train", f"{SMALL} update_freq=0", "update_freq"),
    ("train", f"{SMALL} update_freq=-2", "update_freq"),
    ("train", f"{SMALL} threads=-1", "threads"),
    ("train", f"{SMALL} log.every=0", "log.every"),
    ("train", f"{SMALL} checkpoint.every=0", "checkpoint.every"),
    ("train", f"{SMALL} validation.every=-1", "validation.every"),
    ("train", f"{SMALL} clip_norm=-1", "clip_norm"),
    ("train", f"{SMALL} model.dropout=1.5", "dropout"),
    ("train", f"{SMALL} attention.dropout=2", "dropout"),
    ("train", f"{SMALL} criterion.label_smoothing=2", "label_smoothing"),
    ("train", f"{SMALL} optimizer.lr=-1", "optimizer"),
    ("train", f"{SMALL} model.heads=3", "heads"),
    ("train", f"{SMALL} model.heads=0", "heads"),
    ("train", f"{SMALL} model.dim=0", "dim"),
    ("train", f"{SMALL} model.ffn_dim=-4", "ffn_dim"),
    ("train", f"{SMALL} model.encoder.layers=-1", "layers"),
    ("train", f"{SMALL} attention=synthesizer_random attention.max_length=5", "max_length"),
    ("train", f"{SMALL} attention=synthesizer_random attention.max_length=0", "attention.max_length=0"),
    ("train", f"{SMALL} attention=synthesizer_mixture attention.parts=[dot]", "attention.parts"),
    ("train", f"{SMALL} model.decoder.cross_attention=synthesizer_random", "synthesizer_random"),
    ("train", f"{SMALL} schedule=cosine max_updates=0 max_epochs=1", "schedule"),
    ("train", f"{SMALL} model.dim=1000000000000", "weights|model"),
    ("train", f"{SMALL} model.encoder.layers=1000000000", "model.encoder.layers"),
    ("train", f"{SMALL} validation.metric=bleu validation.decode=false", "validation.metric|validation.decode"),
    ("train", f"{SMALL} task.data={{here}} task.source_lang=en task.target_lang=de", "{here} is not a data-bin"),
    ("train", f"{SMALL} init_from={{here}}/modle.safetensors", "init_from={here}|'model.safetensors'"),
    ("train", f"{SMALL} init_from={{here}}/model.safetensors model.dim=24", "init_from={here}|model.dim"),
    ("train", f"{SMALL} init_from={{here}}/model.safetensors reset=[data]", "init_from={here}|only weights"),
    ("train", f"{SMALL} init_from={{here}}/run reset=[] seed=2", "reset|seed"),
    ("train", f"{SMALL} init_from={{here}}/run reset=[weights]", "reset|optimizer, schedule, data, best"),
    ("train", f"{SMALL} reset=[data]", "reset|init_from"),
    ("train", f"{SMALL} freeze=encodr", "freeze=encodr|'encoder'"),
    ("train", f"{SMALL} freeze=*", "freeze=*"),
    ("train", f"{SMALL} lr_scales=[{{{{name:haed}}}}]", "lr_scales.name=haed|'head'"),
    ("train", f"{SMALL} lr_scales=[{{{{name:head}}}}]", "lr_scales: head has no scale"),
    ("train", f"{SMALL} attention=[{{{{heads:1}}}}]", "attention={{heads}}: the key 'kind' is missing"),
    ("train", f"{SMALL} log.sinks=[{{{{}}}}]", "log.sinks={{}}: the key 'kind' is missing"),
    ("train", f"{SMALL} layer_decay=0.5 model.encoder.layers=0 model.decoder.layers=0", "layer_decay"),
    ("train", f"{SMALL} ema.decay=1", "ema.decay"),
    ("train", f"{SMALL} validation.sets=[{{{{split:valid}}}}]", "validation.sets|'valid'"),
    ("train", f"{SMALL} validation.sets=[{{{{split:valid7}}}}]", "valid7"),
    ("train", f"{SMALL} task.mix=[{{{{data:nowhere}}}}]", "task.mix|nowhere"),
    ("train", f"{SMALL} task.mix=[{{{{weight:0}}}}]", "task.mix.weight"),
    ("train", f"{SMALL} validation.split=null validation.patience=2", "validation.patience|validation.split"),
    ("train", f"{SMALL} validation.decode=true validation.search.nbest=9", "validation.search.beam=9"),
    ("train", f"{SMALL} max_hours=-1", "max_hours"),
    ("train", f"{SMALL} dry_run=true freeze=nothing", "freeze=nothing"),
    ("inspect", "", "paths="),
    ("inspect", "{here}/cut.safetensors", "{here}/cut.safetensors"),
    ("inspect", "{here}/run {here}/notes.txt", "{here}/notes.txt"),
    ("train", f"{SMALL} seed=-1", "seed"),
    ("train", f"{SMALL} save_dir={{here}}/notes.txt", "{here}/notes.txt"),
    ("train", f"{SMALL} save_dir={{here}}/run", "{here}/run"),
    ("train", f"{SMALL} save_dir=/proc/run", "save_dir=/proc/run"),
    # preprocessing
    ("preprocess", f"{MAKE} destdir=/proc/new", "destdir=/proc/new"),
    ("preprocess", "", "destdir"),
    ("preprocess", f"{MAKE} destdir={{new}} train={{here}}/trian", "{here}/trian.en"),
    ("preprocess", f"{MAKE} destdir={{corpus}}", "{corpus}"),
    ("preprocess", f"{MAKE} destdir={{new}} vocab_size=-5", "vocab_size"),
    ("preprocess", f"{MAKE} destdir={{new}} vocab_size=99999999999", "vocab_size"),
    ("preprocess", f"{MAKE} destdir={{new}} model_type=bep", "model_type"),
    ("preprocess", f"{MAKE} destdir={{new}} sentencepiece={{here}}/notes.txt", "{here}/notes.txt"),
    ("preprocess", "source_lang=en train={here}/latin1 destdir={new}", "{here}/latin1.en"),
    ("preprocess", "source_lang=en train={here}/three valid=[{here}/vlid] destdir={new}", "{here}/vlid.en"),
    ("preprocess", f"{MAKE} destdir={{new}} workers=-1", "workers"),
    ("preprocess", f"{MAKE} destdir={{here}}/notes.txt/new", "{here}/notes.txt"),
    # decoding
    ("generate", "", "checkpoint"),
    ("generate", "checkpoint={here}/modle.safetensors", "'model.safetensors'"),
    ("generate", "checkpoint={here}/nothing", "{here}/nothing"),
    ("generate", "checkpoint={here}/cut.safetensors", "{here}/cut.safetensors"),
    ("generate", "checkpoint={here}/notes.txt", "{here}/notes.txt"),
    ("generate", "checkpoint={here}/evil.pt", "{here}/evil.pt"),
    ("generate", "checkpoint={here}/fairseq.pt", "seqtk-import-fairseq {here}/fairseq.pt"),
    ("generate", "checkpoint={corpus}", "{corpus}|data-bin"),
    ("generate", "checkpoint=/dev/null", "/dev/null is not a regular file"),
    ("generate", f"{GENERATE} beam=-2", "beam=-2"),
    ("evaluate", "checkpoint={here}/model.safetensors metrics=[blue]", "'bleu'"),
    ("generate", f"{GENERATE} beam=0", "beam=0"),
    ("generate", f"{GENERATE} nbest=9", "nbest=9"),
    ("generate", f"{GENERATE} temperature=0", "temperature"),
    ("generate", f"{GENERATE} beem=4", "'beam'"),
    ("generate", f"{GENERATE} format=xml", "format"),
    ("generate", f"{GENERATE} max_tokens=0", "max_tokens"),
    ("generate", f"{GENERATE} input={{here}}/three.de", "'three.en'"),
    ("generate", f"{GENERATE} input={{here}}/latin1.en", "Line 1 of {here}/latin1.en is not UTF-8"),
    ("generate", f"{GENERATE} input={{here}}/three.en reference={{here}}/two.de", "{here}/two.de"),
    ("generate", f"{GENERATE} input={{here}}/three.en output={{here}}/no/such/file", "{here}/no/such"),
    ("generate", f"{GENERATE} input={{here}}/three.en output=/proc/file", "/proc/file cannot be written"),
    ("generate", f"{GENERATE} input={{here}}/three.en output={{here}}", "{here} cannot be written: it is a folder"),
    ("generate", f"{GENERATE} input={{here}}/three.en output={{here}}/three.en", "output=|input={here}/three.en"),
    (
        "generate",
        f"{GENERATE} input={{here}}/three.en output={{here}}/../{{here.name}}/model.safetensors",
        "checkpoint=",
    ),
    (
        "resize",
        "checkpoint={here}/model.safetensors max_length=9 output={here}/model.safetensors",
        "output=|checkpoint=",
    ),
    ("export", "checkpoint={here}/model.safetensors format=npz output=/dev/null", "output=/dev/null"),
    ("export", "checkpoint={here}/model.safetensors format=npz output={here}/model.safetensors", "output=|checkpoint="),
    ("import_fairseq", "checkpoint={here}/fairseq.pt output={here}/fairseq.pt", "output=|checkpoint="),
    ("generate", f"{GENERATE} split=tset", "'test'"),
    ("generate", f"{GENERATE} data={{here}}/other-corpus", "{here}/other-corpus|set input="),
    ("generate", f"{GENERATE} data={{here}}/nothing", "{here}/nothing"),
    ("generate", "checkpoint={here}/moved.safetensors", "made-by-this"),
    ("generate", "--beam 4", "beam=4"),
    ("interactive", "", "checkpoint"),
    ("interactive", f"{GENERATE} buffer_size=0", "buffer_size=0"),
    # averaging, scoring, importing, recipes
    ("average", "", "checkpoint"),
    ("average", "checkpoint={here}/nothing", "{here}/nothing"),
    ("average", "checkpoint={here}/model.safetensors,{here}/cut.safetensors output={here}/x", "{here}/cut.safetensors"),
    ("average", "checkpoint={here}/model.safetensors,{here}/model.safetensors", "output"),
    ("average", "checkpoint={here}/run output={here}/no/such/file", "{here}/no/such"),
    ("average", "checkpoint={here}/run last=0", "last"),
    ("score", "", "hypothesis"),
    ("score", "hypothesis={here}/three.en reference={here}/two.de", "{here}/three.en|3"),
    ("score", "hypothesis={here}/three.de reference={here}/two.de", "'three.en'"),
    ("score", "hypothesis={here}/empty.txt reference={here}/blank.txt", "line"),
    ("score", "hypothesis={here}/two.de reference={here}/zwei.de metrics=blue", "'bleu'"),
    ("score", "hypothesis={here}/two.de reference={here}/zwei.de tokenize=14a", "'13a'"),
    ("import_fairseq", "", "checkpoint"),
    ("import_fairseq", "{here}/evil.pt", "{here}/evil.pt"),
    ("import_fairseq", "{here}/evil.pt data={corpus} output={here}/x", "{here}/evil.pt"),
    ("import_fairseq", "checkpoint={here}/evil.pt data={corpus} output={here}/x", "{here}/evil.pt"),
    ("import_fairseq", "checkpoint={here}/notes.txt data={corpus} output={here}/x", "{here}/notes.txt"),
    ("import_fairseq", "checkpoint={here}/no.pt data={corpus} output={here}/x", "{here}/no.pt"),
    ("recipes", "show demmo", "'demo'"),
    ("recipes", "cp demo {here}/notes.txt", "{here}/notes.txt is a file"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "named"), CASES, ids=[f"{number}-{c}" for number, (c, *_) in enumerate(CASES)]
)
def test_user_error_exits_with_code_2_and_names_the_key(
    command: str,
    arguments: str,
    named: str,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = {"here": workspace.folder, "corpus": workspace.corpus, "new": tmp_path / "new"}
    main = recipes_main if command == "recipes" else importlib.import_module(f"seqtk.cli.{command}").main
    with pytest.raises(SystemExit) as ended:
        main(arguments.format(**filled).split())
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    lines = _without_progress(errors).splitlines()
    assert lines[0].startswith(f"seqtk-{command.replace('_', '-')}: ")
    assert len(lines) <= 3, errors
    assert all(len(line) < 400 for line in lines)
    assert "Traceback" not in errors
    for words in named.format(**filled).split("|"):
        assert words in errors
    assert not (workspace.folder / "was-run").exists()
    assert not (workspace.folder / "x").exists()
    assert not (tmp_path / "new" / "latest").exists()


def _without_progress(errors: str) -> str:
    """Returns the error at the end of the output, without lines about the progress of a run."""
    lines = errors.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if line.startswith("seqtk-")), 0)
    return "".join(lines[first:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["train", "preprocess", "generate", "interactive", "average", "score", "import_fairseq"]
)
def test_unknown_key_in_a_new_process_exits_with_code_2(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"seqtk.cli.{command}", "no_such_key=1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert "no_such_key" in done.stderr
