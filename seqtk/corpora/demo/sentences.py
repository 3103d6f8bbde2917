"""The kinds of sentences and their frequencies. Each docstring has an example."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from seqtk.corpora.demo import lexicon
from seqtk.corpora.demo.clauses import (
    Clause,
    Constituent,
    Role,
    Tense,
    english_infinitive,
    english_question,
    english_statement,
    german_infinitive,
    german_statement,
    german_verb_first,
    german_verb_last,
)
from seqtk.corpora.demo.phrases import (
    WHAT,
    WHO,
    NounPhrase,
    Phrase,
    english_number,
    german_number,
    pronoun_for,
    relative_pronoun,
)
from seqtk.corpora.demo.sampler import Sampler, adjectives_of, kind_of
from seqtk.corpora.demo.words import Aspect, Case, Kind

Pair = tuple[str, str]

BECAUSE = (("because", "weil"), ("because", "weil"), ("although", "obwohl"))
QUESTION_ADVERBS = (("why", "warum"), ("when", "wann"), ("where", "wo"))
THINGS = Kind.GOODS | Kind.VEHICLE


def statement(draw: Sampler) -> Pair:
    """Draws a sentence such as *On Monday Anna called the doctor.*"""
    clause = draw.clause(fronting=True)
    return english_statement(clause) + " .", german_statement(clause) + " ."


def yes_no_question(draw: Sampler) -> Pair:
    """Draws a sentence such as *Is the boy inviting them?*"""
    clause = draw.clause(negation=0, adverbs=0.6)
    return english_question(clause) + " ?", german_verb_first(clause) + " ?"


def adverb_question(draw: Sampler) -> Pair:
    """Draws a sentence such as *Why did Anna call the doctor?*"""
    clause = _asked(draw, draw.clause(negation=0, adverbs=0))
    return english_question(clause) + " ?", german_statement(clause) + " ?"


def object_question(draw: Sampler) -> Pair:
    """Draws a sentence such as *Whom is Ben helping?* The verb determines the case and the preposition."""
    verb = draw.one_object_verb()
    wanted = verb.objects[0]
    human = Kind.PERSON in wanted.kind and Kind.PORTABLE not in wanted.kind
    clause = replace(draw.clause(verb=verb, negation=0, adverbs=0), parts=())
    clause = replace(clause, front=draw.object(wanted, WHO if human else WHAT))
    return english_question(clause) + " ?", german_statement(clause) + " ?"


def subject_question(draw: Sampler) -> Pair:
    """Draws a sentence such as *Who called the doctor?*"""
    clause = draw.clause(subject=WHO, negation=0, adverbs=0.5)
    return english_statement(clause) + " ?", german_statement(clause) + " ?"


def reason(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna is sleeping because she is tired.*"""
    main = draw.clause(adverbs=0.2, negation=0.05)
    english, german = draw.one_of(BECAUSE)
    again = pronoun_for(main.subject) if draw.chance(0.6) else None
    side = draw.description(again or draw.subject()) if draw.chance(0.4) else draw.clause(subject=again, adverbs=0.2)
    return _with_side_clause(main, f"{english} ", f"{german} ", side)


def condition(draw: Sampler) -> Pair:
    """Draws a sentence such as *If Anna calls the doctor, Ben will open the door.*"""
    side = replace(draw.clause(adverbs=0), tense=Tense.HABITUAL, modal=None)
    modal = lexicon.FUTURE if draw.chance(0.6) else draw.one_of(lexicon.MODALS)
    main = draw.clause(verb=draw.active_verb(), tense=Tense.PRESENT, modal=modal, adverbs=0)
    return (
        f"if {english_statement(side)} , {english_statement(main)} .",
        f"wenn {german_verb_last(side)} , {german_verb_first(main)} .",
    )


def report(draw: Sampler) -> Pair:
    """Draws a sentence such as *Ben knows that Anna is sleeping.*"""
    verb = draw.one_of(lexicon.SAYING)
    main = draw.clause(verb=verb, negation=0.15)
    side = draw.description() if draw.chance(0.25) else draw.clause(adverbs=0.4, negation=0.05)
    return _with_side_clause(main, "that ", "dass ", side)


def indirect_question(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna is asking whether Ben is tired.* or *I know why Ben is dancing.*"""
    verb = lexicon.ASK if draw.chance(0.5) else lexicon.SAYING[0]
    main = draw.clause(verb=verb, negation=0.3 if verb is not lexicon.ASK else 0, adverbs=0.3)
    if draw.chance(0.5):
        side = draw.description() if draw.chance(0.3) else draw.clause(adverbs=0, negation=0)
        return _with_side_clause(main, "whether ", "ob ", side)
    return _with_side_clause(main, "", "", _asked(draw, draw.clause(adverbs=0, negation=0)))


def intention(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna forgot to call the doctor.*"""
    verb = draw.one_of(lexicon.CONTROL)
    main = draw.clause(verb=verb, negation=0.05, adverbs=0.15, fronting=True)
    inner = draw.clause(subject=main.subject, verb=draw.active_verb(), negation=0, adverbs=0)
    return (
        f"{english_statement(main)} {english_infinitive(inner)} .",
        f"{german_statement(main)} , {german_infinitive(inner)} .",
    )


def purpose(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna went to the market in order to buy an apple.*"""
    main = draw.clause(verb=draw.one_of(lexicon.MOTION), subject=draw.subject(), negation=0, adverbs=0.2)
    inner = draw.clause(subject=main.subject, verb=draw.one_of(lexicon.PURPOSES), negation=0, adverbs=0)
    return (
        f"{english_statement(main)} in order {english_infinitive(inner)} .",
        f"{german_statement(main)} , um {german_infinitive(inner)} .",
    )


def contrast(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna is tired, but Ben is dancing.*"""
    first = draw.description() if draw.chance(0.4) else draw.clause(adverbs=0.2)
    second = draw.description() if draw.chance(0.3) else draw.clause(adverbs=0.2)
    english, german = (", but", ", aber") if draw.chance(0.5) else ("and", "und")
    return (
        f"{english_statement(first)} {english} {english_statement(second)} .",
        f"{german_statement(first)} {german} {german_statement(second)} .",
    )


def relative_subject(draw: Sampler) -> Pair:
    """Draws a sentence such as *The woman who lives in Berlin is friendly.*"""
    phrase = _with_relative(draw, Kind.PERSON | Kind.ANIMAL if draw.chance(0.7) else THINGS)
    if draw.chance(0.5) or not phrase.noun.kind & Kind.PERSON:
        clause = draw.description(phrase)
    else:
        clause = draw.clause(subject=phrase, adverbs=0, negation=0)
    return english_statement(clause) + " .", german_statement(clause) + " ."


def relative_object(draw: Sampler) -> Pair:
    """Draws a sentence such as *Ben called the woman who lives in Berlin.*

    In German, the relative clause follows the verb.
    """
    verb = draw.one_object_verb()
    subject = draw.subject(verb.subject)
    phrase = _with_relative(draw, verb.objects[0].kind)
    assert phrase.relative is not None
    bare = draw.object(verb.objects[0], replace(phrase, relative=None), negatable=False)
    clause = replace(draw.clause(subject=subject, verb=verb, adverbs=0, negation=0), parts=(bare,))
    english, german = phrase.relative
    return f"{english_statement(clause)} {english} .", f"{german_statement(clause)} , {german} ."


def age(draw: Sampler) -> Pair:
    """Draws a sentence such as *Anna is forty-two years old.*"""
    subject = draw.subject()
    number = draw.rng.randint(18, 99) if Kind.GROWN in kind_of(subject) else draw.rng.randint(2, 25)
    english = f"{english_number(number)} years old"
    predicate = Constituent(Role.PREDICATE, english, f"{german_number(number)} Jahre alt")
    clause = Clause(subject, lexicon.BE, (predicate,), Tense.PRESENT)
    return english_statement(clause) + " .", german_statement(clause) + " ."


def price(draw: Sampler) -> Pair:
    """Draws a sentence such as *This lamp costs 47 euros.*"""
    number = draw.rng.randint(2, 99)
    subject = draw.noun_phrase(THINGS, subject=True, counted=False)
    cost = Constituent(Role.PREDICATE, f"{number} euros", f"{number} Euro")
    clause = Clause(subject, lexicon.COST, (cost,))
    return english_statement(clause) + " .", german_statement(clause) + " ."


def existence(draw: Sampler) -> Pair:
    """Draws a sentence such as *There are three bridges in Berlin.* German: *In Berlin gibt es drei Brücken.*"""
    phrase = replace(draw.noun_phrase(Kind.PLACE), determiner="a")
    city = draw.city().name
    english, german = phrase.english(subject=False), phrase.german(Case.ACCUSATIVE)
    return (
        f"there {'are' if phrase.plural else 'is'} {english} in {city.english} .",
        f"in {city.german} gibt es {german} .",
    )


def comparison(draw: Sampler) -> Pair:
    """Draws a sentence such as *The church is older than the bridge.*"""
    kind = draw.one_of((Kind.PERSON, Kind.PERSON, Kind.PLACE, Kind.VEHICLE))
    first, second = draw.noun_phrase(kind, subject=True, plain=True), draw.noun_phrase(kind, plain=True)
    subject: Phrase = draw.person() if kind is Kind.PERSON and draw.chance(0.6) else first
    other: Phrase = draw.person() if kind is Kind.PERSON and draw.chance(0.6) else second
    if subject == other:
        return comparison(draw)
    adjective = draw.weighted(*adjectives_of(first.noun.kind))
    while not adjective.comparative[0]:
        adjective = draw.weighted(*adjectives_of(first.noun.kind))
    english = f"{adjective.comparative[0]} than {other.english(subject=False)}"
    german = f"{adjective.comparative[1]} als {other.german(Case.NOMINATIVE)}"
    clause = Clause(subject, lexicon.BE, (Constituent(Role.PREDICATE, english, german),), Tense.PRESENT)
    return english_statement(clause) + " .", german_statement(clause) + " ."


def copula(draw: Sampler) -> Pair:
    """Draws a sentence such as *The bridge is very old.*"""
    clause = draw.description()
    return english_statement(clause) + " .", german_statement(clause) + " ."


def _with_side_clause(main: Clause, english: str, german: str, side: Clause) -> Pair:
    """Returns a statement, and a subordinate clause with its conjunctions, which end in a space if there are any."""
    return (
        f"{english_statement(main)} {english}{english_statement(side)} .",
        f"{german_statement(main)} , {german}{german_verb_last(side)} .",
    )


def _asked(draw: Sampler, clause: Clause) -> Clause:
    """Returns the clause with a question adverb at the front, in place of the constituent that is asked for."""
    english, german = draw.one_of(QUESTION_ADVERBS)
    stative = clause.verb.aspect is Aspect.STATE
    if (english == "where" and not clause.verb.place) or (english == "when" and stative):
        english, german = QUESTION_ADVERBS[0]
    parts = clause.parts
    if english == "where":
        parts = tuple(part for part in parts if part.role is not Role.PLACE)
    return replace(clause, parts=parts, front=Constituent(Role.TIME, english, german))


def _with_relative(draw: Sampler, kind: Kind) -> NounPhrase:
    """Returns a noun phrase with a relative clause. The noun is the subject or object of the relative clause."""
    phrase = draw.noun_phrase(kind, subject=True, plain=True)
    if phrase.noun.owned:
        return _with_relative(draw, kind)
    phrase = replace(phrase, determiner="the" if phrase.plural or draw.chance(0.7) else "a")
    human = Kind.PERSON in phrase.noun.kind
    pronoun = relative_pronoun(phrase.gender, human=human)
    if phrase.noun.kind & (Kind.PERSON | Kind.ANIMAL) and draw.chance(0.6):
        clause = draw.clause(subject=pronoun, verb=draw.verb_for(phrase.noun.kind), adverbs=0, negation=0.05)
    else:
        verb = draw.one_object_verb(phrase.noun.kind)
        clause = replace(draw.clause(verb=verb, adverbs=0, negation=0), parts=())
        clause = replace(clause, front=draw.object(verb.objects[0], pronoun))
    return replace(phrase, relative=(english_statement(clause), german_verb_last(clause)))


RULES: dict[Callable[[Sampler], Pair], float] = {
    statement: 56,
    copula: 8,
    yes_no_question: 7,
    adverb_question: 2,
    object_question: 2,
    subject_question: 2,
    reason: 4,
    condition: 3,
    report: 4,
    indirect_question: 2,
    intention: 3,
    purpose: 1.5,
    contrast: 2,
    relative_subject: 2,
    relative_object: 2,
    age: 1.5,
    price: 1.5,
    existence: 0.8,
    comparison: 1,
}
_CUMULATIVE = tuple(accumulate(RULES.values()))


def sentence(draw: Sampler) -> Pair:
    """Draws a sentence of a random kind, with normal spelling and punctuation."""
    rule = draw.weighted(tuple(RULES), _CUMULATIVE)
    english, german = rule(draw)
    return _orthography(english), _orthography(german)


def _orthography(text: str) -> str:
    """Attaches punctuation to words, removes repeated commas, and capitalizes the first letter."""
    for spaced, attached in ((" , ,", " ,"), (" , .", " ."), (" ,", ","), (" .", "."), (" ?", "?")):
        text = text.replace(spaced, attached)
    return text[0].upper() + text[1:]
