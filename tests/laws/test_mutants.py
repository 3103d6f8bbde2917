"""Every mutant breaks the law that it names, and every law detects at least one mutant."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo

from seqtk.attention import attentions
from seqtk.attention.softmax import SoftmaxAttention
from seqtk.attention.synthesizer import Synthesizer
from seqtk.attention.transformer_xl import TransformerXLAttention
from seqtk.ops.dispatch import naive_mode
from seqtk.testing.laws import LAWS
from tests.laws.mutants import CLASS_MUTANTS, SLOW_MUTANTS, SOURCE_MUTANTS, ClassMutant, SourceMutant, subject_of
from tests.laws.references import REFERENCES, cases


@pytest.mark.skipif(naive_mode(), reason="The mutants change the fast forms.")
@pytest.mark.parametrize("mutant", SOURCE_MUTANTS, ids=lambda mutant: mutant.fault.replace(" ", "_")[:50])
def test_law_detects_a_fault_in_the_source_code(mutant: SourceMutant, device: torch.device) -> None:
    kind = mutant.case.partition("-")[0]
    (case,) = [case for case in cases(kind) if str(case) == mutant.case]
    case.check(device)
    with mutant.applied(), pytest.raises(AssertionError):
        case.check(device)


@pytest.mark.parametrize("mutant", CLASS_MUTANTS, ids=lambda mutant: f"{mutant.layer.__name__}-{mutant.law}")
def test_law_detects_a_faulty_layer(mutant: ClassMutant, device: torch.device) -> None:
    subject = replace(mutant.subject, device=device, reference=REFERENCES["softmax"])
    with pytest.raises(AssertionError):
        LAWS[mutant.law].check(subject)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", SLOW_MUTANTS, ids=lambda mutant: f"{mutant.layer.__name__}-{mutant.law}")
def test_slow_law_detects_a_faulty_layer(mutant: ClassMutant, device: torch.device) -> None:
    with pytest.raises((AssertionError, torch._dynamo.exc.Unsupported)):
        LAWS[mutant.law].check(replace(mutant.subject, device=device))


@pytest.mark.parametrize("mutant", CLASS_MUTANTS, ids=lambda mutant: f"{mutant.layer.__name__}-{mutant.law}")
def test_correct_layer_obeys_the_law(mutant: ClassMutant, device: torch.device) -> None:
    law = LAWS[mutant.law]
    for right, kind in (
        (SoftmaxAttention, "softmax"),
        (Synthesizer, "synthesizer_random"),
        (TransformerXLAttention, "transformer_xl"),
    ):
        subject = subject_of(right, mutant.role, mutant.size)
        subject = replace(subject, device=device, reference=REFERENCES[kind])
        if mutant.role in right.roles and law.applies(subject):
            law.check(subject)


def test_every_law_detects_a_mutant() -> None:
    caught = {mutant.law for mutant in CLASS_MUTANTS + SLOW_MUTANTS}
    caught |= {mutant.case.rpartition("-")[2] for mutant in SOURCE_MUTANTS}
    assert set(LAWS) - caught == {"devices_give_the_same"}, "only this law needs an accelerator"


def test_mutants_belong_to_registered_layers() -> None:
    assert {mutant.case.partition("-")[0] for mutant in SOURCE_MUTANTS} <= set(attentions)
