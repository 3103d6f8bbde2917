"""Draws random phrases and clauses that make sense. The weight of a word is its relative frequency."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import TypeVar

from seqtk.corpora.demo import lexicon
from seqtk.corpora.demo.clauses import Clause, Constituent, Role, Tense
from seqtk.corpora.demo.phrases import (
    FIRST_PERSON,
    POSSESSIVES,
    PRONOUNS,
    Both,
    Named,
    NounPhrase,
    Phrase,
    Pronoun,
    contracted,
    english_number,
    german_number,
)
from seqtk.corpora.demo.words import Adjective, Aspect, Case, Gender, Kind, Modal, Name, Noun, Object, Person, Verb

T = TypeVar("T")


ANYTHING = ~Kind(0)
MANY = Kind.GOODS | Kind.FOOD  # nouns that may be counted in dozens
UNITS_OF_TIME = (
    ("days", "Tagen", 40),
    ("weeks", "Wochen", 20),
    ("months", "Monaten", 20),
    ("years", "Jahren", 30),
)
DEGREES = (("", ""), ("", ""), ("very ", "sehr "), ("too ", "zu "))


@cache
def nouns_of(kind: Kind) -> tuple[tuple[Noun, ...], tuple[float, ...]]:
    """Returns (nouns with at least one meaning in `kind`, their cumulative weights)."""
    nouns = tuple(noun for noun in lexicon.NOUNS if noun.kind & kind)
    return nouns, weights(nouns)


@cache
def adjectives_of(kind: Kind) -> tuple[tuple[Adjective, ...], tuple[float, ...]]:
    """Returns (adjectives that suit all meanings of a noun of this kind, their cumulative weights)."""
    adjectives = tuple(adjective for adjective in lexicon.ADJECTIVES if adjective.kind & kind)
    return adjectives, weights(adjectives)


SURNAMES = tuple(
    Name(head + tail, head + tail, gender)
    for head in lexicon.SURNAME_HEADS
    for tail in lexicon.SURNAME_TAILS
    if not tail.startswith(head.lower())
    for gender in (Gender.MASCULINE, Gender.FEMININE)
)
"""All compound surnames, once as a man's name and once as a woman's."""


def weights(items: Iterable[Noun | Adjective | Verb | Modal | Name]) -> tuple[float, ...]:
    """Returns the cumulative weights of items, for `Sampler.weighted`."""
    return tuple(accumulate(item.weight for item in items))


PEOPLE, CITIES = (lexicon.PEOPLE, weights(lexicon.PEOPLE)), (lexicon.CITIES, weights(lexicon.CITIES))
VERBS, MOTION = (lexicon.VERBS, weights(lexicon.VERBS)), (lexicon.MOTION, weights(lexicon.MOTION))
MODALS = lexicon.MODALS, weights(lexicon.MODALS)


class Sampler:
    """Generates phrases and clauses with one random number generator. Each method is a rule of the grammar."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    # Choices

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def one_of(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def weighted(self, items: Sequence[T], cumulative: Sequence[float]) -> T:
        return self.rng.choices(items, cum_weights=cumulative)[0]

    def number(self, largest: int = 99) -> int:
        """Draws a number of at least 2: usually at most 12, never more than `largest`."""
        return self.rng.randint(2, 12) if largest <= 12 or self.chance(0.6) else self.rng.randint(13, largest)

    # Phrases

    def person(self) -> Named:
        """Draws a person with a first name, or with a title and a surname."""
        if self.chance(0.08):
            return Named(self.one_of(SURNAMES), titled=True)
        return Named(self.weighted(*PEOPLE))

    def city(self) -> Named:
        return Named(self.weighted(*CITIES))

    def noun_phrase(
        self, kind: Kind, *, subject: bool = False, plain: bool = False, counted: bool = True
    ) -> NounPhrase:
        """Draws a noun of the category `kind`, with a determiner or a number, and sometimes an adjective.

        A `plain` phrase has no number, no adjective and no indefinite article.
        """
        noun = self.weighted(*nouns_of(kind))
        plural = len(noun.english) == 2 and self.chance(0.2)
        draw = self.rng.random()
        number = None
        if draw < 0.57:
            determiner = "the"
        elif draw < 0.79:
            general = plural or len(noun.english) == 1
            determiner = "the" if plain or (general and (subject or noun.kind & Kind.PERSON)) else "a"
        elif draw < 0.93:
            determiner = "the" if noun.owned is False else self.one_of(tuple(POSSESSIVES))
        else:
            determiner = "this"
        if noun.owned:
            determiner = self.one_of(tuple(POSSESSIVES))
        elif plural and counted and not plain and self.chance(0.3):
            determiner, number = "", self.number(99 if noun.kind & MANY else 12)
        adjective = None if plain or self.chance(0.8) else self.weighted(*adjectives_of(noun.kind))
        return NounPhrase(noun, determiner, plural, adjective, number)

    def subject(self, kind: Kind = Kind.PERSON) -> Phrase:
        """Draws a subject: a pronoun, a name, two names or a noun phrase."""
        if kind & Kind.ANIMAL and self.chance(0.25):
            return self.noun_phrase(Kind.ANIMAL, subject=True)
        draw = self.rng.random()
        if draw < 0.36:
            return self.one_of(PRONOUNS)
        if draw < 0.66:
            return self.person()
        if draw < 0.7:
            first, second = self.person(), self.person()
            return first if first == second else Both(first, second)
        return self.noun_phrase(Kind.PERSON, subject=True)

    def other(self, kind: Kind, subject: Phrase) -> Phrase:
        """Draws an object that differs from the subject, so that *I … me* never occurs."""
        if kind & Kind.PERSON and self.chance(0.55):
            if self.chance(0.5):
                known = [pronoun for pronoun in PRONOUNS if not _same(pronoun, subject)]
                return self.one_of(known)
            person = self.person()
            if person != subject and not (isinstance(subject, Both) and person in (subject.first, subject.second)):
                return person
        return self.noun_phrase(kind)

    # Constituents

    def object(self, wanted: Object, phrase: Phrase, *, negatable: bool = True) -> Constituent:
        """Returns a phrase as the object of a verb, with the case and prepositions that the verb requires."""
        german = phrase.german(wanted.case)
        negated = phrase.german_negated(wanted.case) if negatable and not wanted.german else ""
        role = Role.ACCUSATIVE if wanted.case is Case.ACCUSATIVE else Role.DATIVE
        return Constituent(
            Role.PREPOSITIONAL if wanted.german else role,
            phrase.english(subject=False),
            f"{wanted.german} {german}" if wanted.german else german,
            wanted.english,
            negated,
            phrase.light and not wanted.german,
            phrase.definite,
        )

    def place(self, *, goal: Kind | None = None) -> Constituent:
        """Draws a place (*in Berlin*, *im Garten*) or, with a `goal`, a destination (*nach Berlin*, *zum Garten*)."""
        role = Role.PLACE if goal is None else Role.GOAL
        if goal is Kind.CITY or (goal is None and self.chance(0.4)):
            city = self.city()
            english, german = ("to", "nach") if role is Role.GOAL else ("in", "in")
            return Constituent(role, f"{english} {city.name.english}", f"{german} {city.name.german}")
        phrase = replace(self.noun_phrase(Kind.PLACE), plural=False, number=None, determiner="the")
        if self.chance(0.15):
            phrase = replace(phrase, determiner="this")
        english, german = phrase.noun.at
        if role is Role.GOAL:
            english, german = "to", "zu"
            if phrase.noun.at[1] == "in" and self.chance(0.5):
                english = f"into {phrase.english(subject=False)}"
                return Constituent(role, english, contracted("in", phrase.german(Case.ACCUSATIVE)))
        return Constituent(
            role, f"{english} {phrase.english(subject=False)}", contracted(german, phrase.german(Case.DATIVE))
        )

    def company(self, subject: Phrase) -> Constituent:
        phrase = self.noun_phrase(Kind.ANIMAL) if self.chance(0.15) else self.other(Kind.PERSON, subject)
        return Constituent(Role.COMPANY, f"with {phrase.english(subject=False)}", f"mit {phrase.german(Case.DATIVE)}")

    def time(self, tense: Tense, *, modal: bool) -> Constituent:
        """Draws a time that suits the tense, and that distinguishes tenses with the same English form."""
        english, german = self._time(tense, modal=modal)
        frequency = (english, german) in lexicon.FREQUENCIES
        return Constituent(Role.FREQUENCY if frequency else Role.TIME, english, german)

    def _time(self, tense: Tense, *, modal: bool) -> tuple[str, str]:
        if tense is Tense.HABITUAL:
            return self.one_of(lexicon.FREQUENCIES) if self.chance(0.7) else ("every day", "jeden Tag")
        if tense is Tense.PRESENT and not modal:
            return self.one_of((("now", "jetzt"), ("today", "heute")))
        draw = self.rng.random()
        if draw < 0.35:
            return ("tomorrow", "morgen") if modal else ("yesterday", "gestern")
        if draw < 0.6:
            english, german = self.one_of(lexicon.DAYS)
            return f"on {english}", f"am {german}"
        if draw < 0.68:
            number = self.rng.randint(2, 12)
            return f"at {english_number(number)} o'clock", f"um {german_number(number)} Uhr"
        if draw < 0.87:
            (english, german), day = self.one_of(lexicon.MONTHS), self.rng.randint(1, 28)
            return f"on {english} {day}", f"am {day}. {german}"
        english, german, largest = self.one_of(UNITS_OF_TIME)
        number = self.number(largest)
        if modal:
            return f"in {english_number(number)} {english}", f"in {german_number(number)} {german}"
        return f"{english_number(number)} {english} ago", f"vor {german_number(number)} {german}"

    # Clauses

    def tense(self, verb: Verb, *, habits: bool = True) -> tuple[Tense, Modal | None]:
        """Draws a tense that suits the verb's aspect, or a modal verb."""
        draw = self.rng.random()
        if verb.aspect is Aspect.STATE:
            return (Tense.PRESENT if draw < 0.75 else Tense.PAST), None
        if verb.aspect is Aspect.EVENT:
            if draw < 0.65:
                return Tense.PAST, None
            return Tense.PRESENT, lexicon.FUTURE if draw < 0.85 else lexicon.MODALS[0]
        if draw < 0.35:
            return Tense.PAST, None
        if draw < 0.5:
            return Tense.PRESENT, self.weighted(*MODALS)
        if draw < 0.6:
            return Tense.PRESENT, lexicon.FUTURE
        return (Tense.PRESENT if draw < 0.9 or not habits else Tense.HABITUAL), None

    def verb(self) -> Verb:
        return self.weighted(*MOTION) if self.chance(0.12) else self.weighted(*VERBS)

    def verb_for(self, kind: Kind) -> Verb:
        """Draws a verb that suits the meaning of the subject."""
        verb = self.verb()
        return verb if verb.subject & kind else self.verb_for(kind)

    def active_verb(self) -> Verb:
        """Draws a verb for an intended action."""
        verb = self.verb()
        return verb if verb.aspect is Aspect.ACTIVITY and verb.place < 1 else self.active_verb()

    def one_object_verb(self, kind: Kind = ANYTHING) -> Verb:
        """Draws a verb with exactly one object, whose meaning may be `kind`."""
        verb = self.weighted(*VERBS)
        suits = len(verb.objects) == 1 and bool(verb.objects[0].kind & kind)
        return verb if suits else self.one_object_verb(kind)

    def clause(
        self,
        *,
        subject: Phrase | None = None,
        verb: Verb | None = None,
        tense: Tense | None = None,
        modal: Modal | None = None,
        adverbs: float = 1.0,
        negation: float = 0.1,
        fronting: bool = False,
    ) -> Clause:
        """Draws a clause. `adverbs` multiplies the probabilities of times, places and companions."""
        if verb is None and subject is not None:
            verb = self.verb_for(kind_of(subject))
        verb = verb or self.verb()
        subject = subject or self.subject(verb.subject)
        if tense is None:
            tense, modal = self.tense(verb, habits=adverbs > 0)
        phrases = self._objects(verb, subject)
        parts = [self.object(wanted, phrase) for wanted, phrase in zip(verb.objects, phrases, strict=True)]
        somewhere = any(kind_of(phrase) & Kind.PLACE for phrase in phrases)
        parts += self._circumstances(verb, subject, adverbs, placed=somewhere)
        fixed = tense is Tense.HABITUAL
        if (fixed and adverbs > 0) or (verb.aspect is not Aspect.STATE and self.chance(0.4 * adverbs)):
            parts.append(self.time(tense, modal=modal is not None))
        negated = self._may_negate(subject, parts, modal) and self.chance(negation)
        clause = Clause(subject, verb, tuple(parts), tense, modal, negated)
        return self._fronted(clause) if fronting else clause

    def description(self, subject: Phrase | None = None) -> Clause:
        """Draws a clause with *be* and a property or a place of the subject."""
        if subject is None:
            anything = self.noun_phrase(ANYTHING, subject=True, counted=False)
            subject = self.subject() if self.chance(0.5) else anything
        if isinstance(subject, NounPhrase):
            determiner = subject.determiner if subject.definite else "the"
            subject = replace(subject, determiner=determiner, number=None, adjective=None)
        kind = kind_of(subject)
        if self.chance(0.25) and kind & (Kind.PERSON | Kind.ANIMAL | Kind.PORTABLE | Kind.VEHICLE):
            predicate = self.place()
        else:
            adjective = self.weighted(*adjectives_of(kind))
            english, german = self.one_of(DEGREES) if adjective.comparative[0] else ("", "")
            predicate = Constituent(Role.PREDICATE, english + adjective.english, german + adjective.german)
        tense = Tense.PAST if self.chance(0.25) else Tense.PRESENT
        negated = self.chance(0.12) and self._may_negate(subject, (predicate,), None)
        return Clause(subject, lexicon.BE, (predicate,), tense, negated=negated)

    def _objects(self, verb: Verb, subject: Phrase) -> list[Phrase]:
        """Returns a phrase for each object. The first of two is definite, so that *kein* negates only the second."""
        phrases = []
        for wanted in verb.objects:
            phrase = self.other(wanted.kind, subject)
            if isinstance(phrase, NounPhrase):
                if wanted.indefinite and phrase.number is None:
                    phrase = replace(phrase, determiner="a")
                elif wanted is not verb.objects[-1]:
                    determiner = "the" if phrase.determiner in ("a", "") else phrase.determiner
                    phrase = replace(phrase, determiner=determiner, number=None, adjective=None)
            phrases.append(phrase)
        return phrases

    def _circumstances(self, verb: Verb, subject: Phrase, adverbs: float, *, placed: bool) -> list[Constituent]:
        parts = []
        if verb.goal:
            parts.append(self.place(goal=verb.goal))
        elif verb.place == 1 or (not placed and self.chance(verb.place * adverbs)):
            parts.append(self.place())
        if self.chance(verb.company * adverbs):
            parts.append(self.company(subject))
        return parts

    @staticmethod
    def _may_negate(subject: Phrase, parts: Sequence[Constituent], modal: Modal | None) -> bool:
        indefinite = not subject.definite
        definite = all(part.definite or part.negated for part in parts)
        frequent = any(part.role is Role.FREQUENCY for part in parts)
        return definite and not (indefinite or frequent or (modal is not None and modal.negative is None))

    def _fronted(self, clause: Clause) -> Clause:
        """Returns the clause. At random, a time or place is moved to the front."""
        for part in clause.parts:
            if (part.role is Role.TIME and self.chance(0.45)) or (
                part.role is Role.PLACE and clause.verb.place < 1 and self.chance(0.15)
            ):
                rest = tuple(other for other in clause.parts if other is not part)
                return replace(clause, parts=rest, front=part)
        return clause


def kind_of(phrase: Phrase) -> Kind:
    """Returns the meaning of a phrase. Names and pronouns are persons."""
    return phrase.noun.kind if isinstance(phrase, NounPhrase) else Kind.PERSON | Kind.GROWN


def _same(pronoun: Pronoun, subject: Phrase) -> bool:
    if pronoun in FIRST_PERSON and subject in FIRST_PERSON:
        return True
    return pronoun == subject or (pronoun.person is Person.YOU and subject.person is Person.YOU)
