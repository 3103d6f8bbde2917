"""Importing fairseq checkpoints: every key is used, or the error names it.

The tests save models of seqtk under fairseq's names. tests/parity uses checkpoints written by fairseq.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import omegaconf
import pytest
import torch
from torch import Tensor

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.checkpoint import trained_model
from seqtk.cli import import_fairseq as command
from seqtk.interop import fairseq_options
from seqtk.interop.fairseq import REFUSED, import_fairseq
from seqtk.interop.fairseq_keys import FIRST_POSITION, current_names, fairseq_name
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.utils.errors import UserError

HEADS = (SoftmaxConfig(heads=2),)
TINY = TransformerConfig(
    dim=8,
    ffn_dim=12,
    encoder=EncoderConfig(layers=1, self_attention=HEADS),
    decoder=DecoderConfig(layers=2, self_attention=HEADS, cross_attention=HEADS),
)
OPTIONS = {
    "arch": "transformer",
    "task": "translation",
    "source_lang": "en",
    "target_lang": "de",
    "criterion": "label_smoothed_cross_entropy",
    "label_smoothing": 0.2,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "dropout": 0.1,
    **{f"{stack}_embed_dim": 8 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_embed_dim": 12 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
}
SEPARATE = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}

State = dict[str, Tensor]


def fairseq_state(model: Transformer) -> State:
    """Returns seqtk's parameters in fairseq's format, in which learned positions have two more rows at the start."""
    state = {
        "encoder.version": torch.tensor([3.0]),
        "decoder.version": torch.tensor([3.0]),
        "encoder.embed_positions._float_tensor": torch.ones(1),
    }
    for name, tensor in model.state_dict().items():
        if name.endswith("positions.table.weight"):
            tensor = torch.cat([torch.full((FIRST_POSITION, tensor.shape[1]), 9.0), tensor])
        state[fairseq_name(name)] = tensor
    return state


def tiny(config: TransformerConfig = TINY, *, source: int = 16, target: int = 16) -> Transformer:
    return Transformer(config, source_vocabulary=source, target_vocabulary=target)


def save(path: Path, state: State, options: dict[str, Any] | None = None) -> Path:
    torch.save({"args": argparse.Namespace(**{**OPTIONS, **(options or {})}), "model": state}, path)
    return path


# name → (settings of seqtk, the same settings as fairseq options)
VARIANTS = {
    "default": ({}, {}),
    "pre-norm": ({"pre_norm": True}, {"encoder_normalize_before": True, "decoder_normalize_before": True}),
    "no sharing": ({"share_embeddings": "none"}, SEPARATE),
    "decoder shares": ({"share_embeddings": "decoder"}, {"share_all_embeddings": False}),
    "learned positions": (
        {"positions": "learned", "max_source_length": 5, "max_target_length": 7},
        {
            "encoder_learned_pos": True,
            "decoder_learned_pos": True,
            "max_source_positions": 5,
            "max_target_positions": 7,
        },
    ),
    "no positions": ({"positions": "none"}, {"no_token_positional_embeddings": True}),
    "norm after embeddings": ({"norm_embedding": True}, {"layernorm_embedding": True}),
    "embeddings not scaled": ({"scale_embedding": False}, {"no_scale_embedding": True}),
    "gelu": ({"activation": "gelu"}, {"activation_fn": "gelu"}),
    "old name of activation dropout": ({"activation_dropout": 0.3}, {"relu_dropout": 0.3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_and_weights_are_imported(tmp_path: Path, variant: str) -> None:
    ours, theirs = VARIANTS[variant]
    model = tiny(replace(TINY, **ours))
    imported = import_fairseq(save(tmp_path / "a.pt", fairseq_state(model), theirs))
    assert imported.config == model.config
    assert imported.label_smoothing == 0.2
    assert (imported.source_lang, imported.target_lang) == ("en", "de")
    again = imported.model().state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_encoder_and_decoder_sizes_may_differ(tmp_path: Path) -> None:
    config = replace(TINY, encoder=replace(TINY.encoder, dim=4, ffn_dim=6), share_embeddings="none")
    model = tiny(config, source=10, target=14)
    options = {**SEPARATE, "encoder_embed_dim": 4, "encoder_ffn_embed_dim": 6}
    imported = import_fairseq(save(tmp_path / "a.pt", fairseq_state(model), options))
    assert imported.config == config
    assert (imported.source_vocabulary, imported.target_vocabulary) == (10, 14)
    assert torch.equal(imported.model().head.weight, model.head.weight)


def test_half_precision_is_imported_as_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in fairseq_state(tiny()).items()}
    imported = import_fairseq(save(tmp_path / "a.pt", state))
    assert {tensor.dtype for tensor in imported.state.values()} == {torch.float32}


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_nested_cfg_is_imported(tmp_path: Path, as_omegaconf: bool) -> None:
    """`cfg` has dicts or OmegaConf objects. The options of encoder and decoder are nested."""
    encoder = {key[8:]: value for key, value in OPTIONS.items() if key.startswith("encoder_")}
    decoder = {key[8:]: value for key, value in OPTIONS.items() if key.startswith("decoder_")}
    cfg: Any = {
        "task": {"_name": "translation", "source_lang": "en", "target_lang": "de"},
        "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.2},
        "model": {"_name": "transformer", "share_all_embeddings": True, "encoder": encoder, "decoder": decoder},
    }
    content = {"cfg": omegaconf.OmegaConf.create(cfg) if as_omegaconf else cfg, "args": None}
    history = [{"num_updates": 3}, {"num_updates": 7}]
    torch.save({**content, "model": fairseq_state(tiny()), "optimizer_history": history}, tmp_path / "a.pt")
    imported = import_fairseq(tmp_path / "a.pt")
    assert (imported.config, imported.label_smoothing, imported.updates) == (TINY, 0.2, 7)
    assert (imported.source_lang, imported.target_lang) == ("en", "de")


def test_old_parameter_names_are_renamed() -> None:
    stacked = torch.arange(12.0).view(6, 2)
    today = current_names(
        {
            "decoder.layers.0.encoder_attn.in_proj_weight": stacked,
            "decoder.layers.0.layer_norms.1.bias": stacked[0],
            "encoder.layers.3.layer_norms.1.weight": stacked[1],
            "decoder.embed_out": stacked,
        }
    )
    assert list(today) == [
        "decoder.layers.0.encoder_attn.q_proj.weight",
        "decoder.layers.0.encoder_attn.k_proj.weight",
        "decoder.layers.0.encoder_attn.v_proj.weight",
        "decoder.layers.0.encoder_attn_layer_norm.bias",
        "encoder.layers.3.final_layer_norm.weight",
        "decoder.output_projection.weight",
    ]
    assert today["decoder.layers.0.encoder_attn.k_proj.weight"].tolist() == [[4, 5], [6, 7]]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_fairseq(path)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3
    assert str(path) in lines[0]
    return str(caught.value)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


BROKEN: dict[str, tuple[Callable[[State], Any], str]] = {
    "a missing key": (
        without("encoder.layers.0.fc1.weight"),
        "has no tensor 'encoder.layers.0.fc1.weight', which its options require.\nThe tensors and options",
    ),
    "no embedding table": (without("decoder.embed_tokens.weight"), "has no tensor 'decoder.embed_tokens.weight'"),
    "an unknown key": (lambda state: state.update({"decoder.extra.weight": torch.ones(1)}), "decoder.extra.weight"),
    "a numbered norm too many": (
        lambda state: state.update({"encoder.layers.0.layer_norms.2.bias": torch.ones(8)}),
        "encoder.layers.0.layer_norms.2.bias",
    ),
    "a different shape": (
        lambda state: state.update({"decoder.layers.1.fc2.weight": torch.ones(8, 11)}),
        "'decoder.layers.1.fc2.weight' is 8 × 11, but the options in the file require 8 × 12",
    ),
    "a projection not tied": (
        lambda state: state.update({"decoder.output_projection.weight": torch.ones(16, 8)}),
        "'decoder.output_projection.weight' and 'encoder.embed_tokens.weight' differ",
    ),
    "no tensor": (lambda state: state.update({"encoder.version": 3}), "'encoder.version'"),
    "a convolution without an option": (
        lambda state: state.update({"encoder.layers.0.conv.weight": torch.ones(1)}),
        "does not have: encoder.layers.0.conv.weight",
    ),
    "a language model": (
        lambda state: [state.pop(name) for name in list(state) if name.startswith("encoder.")],
        "a language model",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_error_names_the_invalid_tensor(tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    state = fairseq_state(tiny())
    change(state)
    assert words in refusal(save(tmp_path / "a.pt", state))


def test_tied_projection_may_be_missing(tmp_path: Path) -> None:
    state = fairseq_state(tiny())
    del state["decoder.output_projection.weight"]
    imported = import_fairseq(save(tmp_path / "a.pt", state))
    assert torch.equal(imported.state["head.weight"], state["decoder.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({option: True}, option) for option in (*REFUSED, *fairseq_options.REFUSED)),
        ({"decoder_output_dim": 4}, "decoder_output_dim=4"),
        ({"encoder_normalize_before": True}, "encoder_normalize_before=True and decoder_normalize_before=False differ"),
        ({"decoder_learned_pos": True}, "encoder_learned_pos=False and decoder_learned_pos=True differ"),
        ({"activation_fn": "tanh"}, "activation_fn=tanh"),
        ({"task": "multilingual_translation"}, "multilingual_translation"),
        ({"encoder_layers": None}, "encoder_layers"),
        ({"encoder_embed_dim": "wide"}, "encoder_embed_dim"),
    ],
)
def test_error_names_the_unsupported_option(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(save(tmp_path / "a.pt", fairseq_state(tiny()), options))


def test_torch_file_without_a_model_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    assert "not a checkpoint of fairseq" in refusal(tmp_path / "a.pt")


def test_error_lists_a_few_keys_of_an_unknown_file(tmp_path: Path) -> None:
    torch.save({f"encoder.layers.{number}.weight": torch.ones(1) for number in range(20)}, tmp_path / "a.pt")
    last_line = refusal(tmp_path / "a.pt").splitlines()[-1]
    assert last_line == "It contains: encoder.layers.0.weight, encoder.layers.1.weight and 18 more keys."
    torch.save({"weights": torch.ones(1)}, tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt").splitlines()[-1] == "It contains: weights."


def dictionaries(folder: Path, *, tokens: int) -> Path:
    folder.mkdir()
    for lang in ("en", "de"):
        (folder / f"dict.{lang}.txt").write_text("".join(f"w{index} 1\n" for index in range(tokens)))
    return folder


def test_command_writes_a_complete_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny().eval()
    checkpoint, output = save(tmp_path / "a.pt", fairseq_state(model)), tmp_path / "model.safetensors"
    data = dictionaries(tmp_path / "data", tokens=12)
    command.main([f"checkpoint={checkpoint}", f"data={data}", f"output={output}"])
    assert "en-de translation model" in capsys.readouterr().out
    for lang in ("en", "de"):
        (data / f"dict.{lang}.txt").unlink()
    loaded = trained_model.load(output)
    assert loaded.model.config == TINY
    assert loaded.info["imported_from"] == "a.pt"
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": "{tmp}/other"}, "the model has 16"),
        ({"data": "{tmp}/nowhere"}, "nowhere"),
        ({"checkpoint": "{tmp}/missing.pt"}, "missing.pt"),
        ({"output": ""}, "output="),
    ],
)
def test_command_error_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], words: str
) -> None:
    save(tmp_path / "a.pt", fairseq_state(tiny()))
    dictionaries(tmp_path / "data", tokens=12)
    dictionaries(tmp_path / "other", tokens=10)
    arguments = {"checkpoint": "{tmp}/a.pt", "data": "{tmp}/data", "output": "{tmp}/model.safetensors", **changed}
    with pytest.raises(SystemExit) as stopped:
        command.main([f"{key}={value.format(tmp=tmp_path)}" for key, value in arguments.items()])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
