"""Builds clauses in English and German: tense, negation and word order.

In German, the finite verb comes second (statements), first (questions, and after a fronted clause) or last (subordinate
clauses); the rest of the verb (particle, participle, infinitive) comes at the end. English has the order subject, verb,
object, place, time. The `Role` of a constituent determines its position in both languages.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum

from seqtk.corpora.demo.lexicon import BE
from seqtk.corpora.demo.phrases import Phrase
from seqtk.corpora.demo.words import Aspect, Case, Modal, Person, Verb


class Role(IntEnum):
    """The function of a constituent in its clause. The values are in German word order (exceptions: see `_slot`)."""

    TIME = 0
    FREQUENCY = 1
    DATIVE = 2
    ACCUSATIVE = 3
    COMPANY = 4
    PLACE = 5
    PREPOSITIONAL = 6
    GOAL = 7
    PREDICATE = 8


ENGLISH_ORDER = (
    Role.DATIVE, Role.ACCUSATIVE, Role.PREPOSITIONAL, Role.PREDICATE, Role.GOAL, Role.COMPANY, Role.PLACE, Role.TIME,
)  # fmt: skip


class Tense(Enum):
    """The tense of a clause. In English, HABITUAL is the simple present, PRESENT the progressive."""

    PRESENT = "present"
    HABITUAL = "habitual"
    PAST = "past"


@dataclass(frozen=True)
class Constituent:
    """A constituent of a clause. Its English `preposition` stays in place when the other words move to the front."""

    role: Role
    english: str
    german: str
    preposition: str = ""
    negated: str = ""  # the German form with kein
    light: bool = False
    definite: bool = True


@dataclass(frozen=True)
class Clause:
    """A verb, its subject and its constituents: `front` moves to the front, and `parts` keep their usual positions."""

    subject: Phrase
    verb: Verb
    parts: tuple[Constituent, ...] = ()
    tense: Tense = Tense.PRESENT
    modal: Modal | None = None
    negated: bool = False
    front: Constituent | None = None


def english_statement(clause: Clause) -> str:
    """Returns an English statement or subordinate clause: subject, verb, all other constituents."""
    auxiliary, main = _english_verb(clause, inverted=False)
    front = clause.front.english if clause.front else ""
    subject = clause.subject.english(subject=True)
    return _words(front, subject, auxiliary, _english_frequency(clause), main, *_english_rest(clause))


def english_question(clause: Clause) -> str:
    """Returns an English question: question word (if any), auxiliary, subject, all other constituents."""
    auxiliary, main = _english_verb(clause, inverted=True)
    front = clause.front.english if clause.front else ""
    subject = clause.subject.english(subject=True)
    return _words(front, auxiliary, subject, _english_frequency(clause), main, *_english_rest(clause))


def english_infinitive(clause: Clause) -> str:
    """Returns an infinitive clause such as *to call a happy teacher*."""
    return _words("to", clause.verb.english[0], *_english_rest(clause))


def german_statement(clause: Clause) -> str:
    """Returns a German statement, with the finite verb second, after the subject or the constituent in front."""
    if clause.front:
        return _words(clause.front.german, german_verb_first(clause))
    finite, _, closing = _german_verb(clause)
    return _words(_german_subject(clause), finite, *_german_middle(clause), closing)


def german_verb_first(clause: Clause) -> str:
    """Returns a German clause with the verb before the subject: a question, or a clause that follows another clause."""
    finite, _, closing = _german_verb(clause)
    return _words(finite, _german_subject(clause), *_german_middle(clause), closing)


def german_verb_last(clause: Clause) -> str:
    """Returns a German subordinate clause, with the finite verb at the end and its particle attached."""
    finite, particle, closing = _german_verb(clause)
    front = clause.front.german if clause.front else ""
    last = (particle + finite) if particle else _words(closing, finite)
    return _words(front, _german_subject(clause), *_german_middle(clause), last)


def german_infinitive(clause: Clause) -> str:
    """Returns a German infinitive clause. It ends in *zu* and the verb; a separable verb is one word: *anzurufen*."""
    particle, infinitive = clause.verb.particle, clause.verb.german[3]
    return _words(*_german_middle(clause), f"{particle}zu{infinitive}" if particle else f"zu {infinitive}")


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)


def _english_verb(clause: Clause, *, inverted: bool) -> tuple[str, str]:
    """Returns (auxiliary with its negation, or an empty string; main verb)."""
    verb, person, modal = clause.verb, clause.subject.person, clause.modal
    base, third, ing, past = verb.english
    if modal and not modal.lexical:
        auxiliary = modal.negative if clause.negated else modal.english
        assert auxiliary is not None
        return auxiliary, base
    past_tense = clause.tense is Tense.PAST
    negation = " not" if clause.negated else ""
    progressive = clause.tense is Tense.PRESENT and verb.aspect is Aspect.ACTIVITY and not modal
    if verb is BE or progressive:
        be = ("was", "were", "was", "were") if past_tense else ("am", "are", "is", "are")
        return be[person] + negation, "" if verb is BE else ing
    if modal:
        base, third = f"{modal.english} to {base}", f"{modal.english}s to {base}"
    plain = third if person is Person.ONE else base
    if not inverted and not clause.negated:
        return "", past if past_tense else plain
    do = "did" if past_tense else "does" if person is Person.ONE else "do"
    return do + negation, base


def _english_frequency(clause: Clause) -> str:
    return _words(*(part.english for part in clause.parts if part.role is Role.FREQUENCY))


def _english_rest(clause: Clause) -> list[str]:
    stranded = clause.front.preposition if clause.front else ""
    parts = sorted(
        (part for part in clause.parts if part.role in ENGLISH_ORDER), key=lambda part: ENGLISH_ORDER.index(part.role)
    )
    return [stranded] + [_words(part.preposition, part.english) for part in parts]


def _german_subject(clause: Clause) -> str:
    return clause.subject.german(Case.NOMINATIVE)


def _german_verb(clause: Clause) -> tuple[str, str, str]:
    """Returns (finite form, separable particle, words at the end of the clause).

    The words at the end include the particle.
    """
    verb, person = clause.verb, clause.subject.person
    infinitive, participle = verb.german[3:]
    if clause.modal:
        return clause.modal.german[person], "", verb.particle + infinitive
    if clause.tense is Tense.PAST and verb.preterite:
        return verb.preterite[person], verb.particle, verb.particle
    if clause.tense is Tense.PAST:
        auxiliary = ("bin", "bist", "ist", "sind") if verb.sein else ("habe", "hast", "hat", "haben")
        return auxiliary[person], "", verb.particle + participle
    present = "sind" if verb is BE and person is Person.MANY else verb.german[person]
    return present, verb.particle, verb.particle


def _german_middle(clause: Clause) -> list[str]:
    """Returns the constituents sorted by `_slot`, with the negation: *kein* inside the object, or *nicht*."""
    two_objects = {Role.DATIVE, Role.ACCUSATIVE} <= {part.role for part in clause.parts}
    parts = sorted(clause.parts, key=lambda part: _slot(part, two_objects=two_objects))
    if not clause.negated:
        return [part.german for part in parts]
    if any(part.negated for part in parts):
        return [part.negated or part.german for part in parts]
    before = sum(part.light or part.role <= Role.ACCUSATIVE for part in parts)
    words = [part.german for part in parts]
    return [*words[:before], "nicht", *words[before:]]


def _slot(part: Constituent, *, two_objects: bool) -> int:
    """Returns a sort key for the order of the constituents after the finite verb.

    *oft* (often) follows a single definite object, but comes between two objects.
    """
    if part.light or (two_objects and part.role is Role.DATIVE):
        return 0
    if part.role in (Role.DATIVE, Role.ACCUSATIVE) and part.definite and not two_objects:
        return 2
    return {Role.TIME: 1, Role.FREQUENCY: 3}.get(part.role, 4 + part.role)
