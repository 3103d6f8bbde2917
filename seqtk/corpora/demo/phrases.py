"""Builds noun phrases in English and German: determiners, adjective endings, case, pronouns, names, number words."""

from dataclasses import dataclass
from typing import ClassVar

from seqtk.corpora.demo.words import Adjective, Case, Gender, Kind, Name, Noun, Person

# Each row is a case (nominative, accusative, dative), each column a gender (masculine, feminine, neuter, plural).
DEFINITE = ("der die das die", "den die das die", "dem der dem den")
STRONG = ("er e es e", "en e es e", "em er em en")  # dies-, and adjectives without a determiner
MIXED = ("er e es en", "en e es en", "en en en en")  # adjectives after ein, kein, mein
WEAK = ("e e e en", "en e e en", "en en en en")  # adjectives after der, dieser
POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}

UNITS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
EINER = ("", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
         "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn")  # fmt: skip
ZEHNER = ("", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")


def english_number(number: int) -> str:
    """Returns the English word for a number from 1 to 99: *twenty-one*."""
    tens, unit = divmod(number, 10)
    if number < 20:
        return UNITS[number]
    return f"{TENS[tens]}-{UNITS[unit]}" if unit else TENS[tens]


def german_number(number: int) -> str:
    """Returns the German word for a number from 1 to 99, with the unit before the ten: *einundzwanzig*. 1 is *eins*."""
    tens, unit = divmod(number, 10)
    if number < 20:
        return "eins" if number == 1 else EINER[number]
    return f"{EINER[unit]}und{ZEHNER[tens]}" if unit else ZEHNER[tens]


def contracted(preposition: str, phrase: str) -> str:
    """Joins a German preposition and phrase, and contracts the article if possible: *im Garten*, *zur Schule*."""
    article, _, rest = phrase.partition(" ")
    short = {
        ("in", "dem"): "im",
        ("in", "das"): "ins",
        ("an", "dem"): "am",
        ("zu", "dem"): "zum",
        ("zu", "der"): "zur",
    }.get((preposition, article))
    return f"{short} {rest}" if short else f"{preposition} {phrase}"


class Phrase:
    """A noun phrase, name or pronoun: its English text, and its German text in each case."""

    person: Person = Person.ONE
    light: ClassVar[bool] = False  # pronouns and names come directly after the German verb
    definite: bool = True

    def english(self, *, subject: bool) -> str:
        raise NotImplementedError

    def german(self, case: Case) -> str:
        raise NotImplementedError

    def german_negated(self, case: Case) -> str:
        """Returns the form with *kein*, or an empty string if *nicht* must negate the clause."""
        return ""


@dataclass(frozen=True)
class Pronoun(Phrase):
    """A personal, relative or interrogative pronoun: its English subject and object forms, and its German cases."""

    english_forms: tuple[str, str]
    german_forms: tuple[str, str, str]
    person: Person = Person.ONE
    light: ClassVar[bool] = True

    def english(self, *, subject: bool) -> str:
        return self.english_forms[0 if subject else 1]

    def german(self, case: Case) -> str:
        return self.german_forms[case]


PRONOUNS = (
    Pronoun(("I", "me"), ("ich", "mich", "mir"), Person.I),
    Pronoun(("you", "you"), ("du", "dich", "dir"), Person.YOU),
    Pronoun(("he", "him"), ("er", "ihn", "ihm")),
    Pronoun(("she", "her"), ("sie", "sie", "ihr")),
    Pronoun(("we", "us"), ("wir", "uns", "uns"), Person.MANY),
    Pronoun(("they", "them"), ("sie", "sie", "ihnen"), Person.MANY),
)
FIRST_PERSON = {PRONOUNS[0], PRONOUNS[4]}
WHO = Pronoun(("who", "who"), ("wer", "wen", "wem"))
WHAT = Pronoun(("what", "what"), ("was", "was", "was"))


def relative_pronoun(gender: Gender, *, human: bool) -> Pronoun:
    """Returns the pronoun *who* or *that*, with the German pronoun of this gender (or plural)."""
    dative = "denen" if gender is Gender.PLURAL else DEFINITE[Case.DATIVE].split()[gender]
    german = (DEFINITE[0].split()[gender], DEFINITE[1].split()[gender], dative)
    person = Person.MANY if gender is Gender.PLURAL else Person.ONE
    return Pronoun(("who", "whom") if human else ("that", "that"), german, person)


@dataclass(frozen=True)
class Named(Phrase):
    """The name of a person or city. A title precedes surnames: *Mr.* or *Mrs.*, in German *Herr* (Herrn) or *Frau*."""

    name: Name
    titled: bool = False
    light: ClassVar[bool] = True

    def english(self, *, subject: bool) -> str:
        title = "Mr. " if self.name.gender is Gender.MASCULINE else "Mrs. "
        return (title if self.titled else "") + self.name.english

    def german(self, case: Case) -> str:
        masculine = "Herr " if case is Case.NOMINATIVE else "Herrn "
        title = masculine if self.name.gender is Gender.MASCULINE else "Frau "
        return (title if self.titled else "") + self.name.german


@dataclass(frozen=True)
class Both(Phrase):
    """Two phrases joined by *and*."""

    first: Phrase
    second: Phrase
    person: Person = Person.MANY

    def english(self, *, subject: bool) -> str:
        return f"{self.first.english(subject=subject)} and {self.second.english(subject=subject)}"

    def german(self, case: Case) -> str:
        return f"{self.first.german(case)} und {self.second.german(case)}"


@dataclass(frozen=True)
class NounPhrase(Phrase):
    """A noun with an adjective and a determiner (`the`, `a`, `this` or a possessive) or a number."""

    noun: Noun
    determiner: str = "the"
    plural: bool = False
    adjective: Adjective | None = None
    number: int | None = None
    relative: tuple[str, str] | None = None  # a relative clause, in both languages

    @property
    def person(self) -> Person:  # type: ignore[override]
        return Person.MANY if self.plural else Person.ONE

    @property
    def definite(self) -> bool:  # type: ignore[override]
        return self.number is None and self.determiner != "a"

    @property
    def gender(self) -> Gender:
        return Gender.PLURAL if self.plural else self.noun.gender

    def english(self, *, subject: bool) -> str:
        words = [self.adjective.english] if self.adjective else []
        words.append(self.noun.english[self.plural])
        if self.number is not None:
            words.insert(0, english_number(self.number))
        elif self.determiner == "a":
            if not self.plural and len(self.noun.english) == 2:
                words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        elif self.determiner == "this" and self.plural:
            words.insert(0, "these")
        else:
            words.insert(0, self.determiner)
        return " ".join(words + ([self.relative[0]] if self.relative else []))

    def german(self, case: Case) -> str:
        if self.number is not None:
            return self._german(german_number(self.number), STRONG, case)
        if self.determiner == "a":
            if self.plural or len(self.noun.german) == 1:
                return self._german("", STRONG, case)
            return self._german(self._ein("ein", case), MIXED, case)
        if self.determiner == "this":
            return self._german("dies" + self._ending(STRONG, case), WEAK, case)
        if self.determiner == "the":
            return self._german(self._ending(DEFINITE, case), WEAK, case)
        return self._german(self._ein(POSSESSIVES[self.determiner], case), MIXED, case)

    def german_negated(self, case: Case) -> str:
        return self._german(self._ein("kein", case), MIXED, case) if self.determiner == "a" else ""

    def _ending(self, table: tuple[str, str, str], case: Case) -> str:
        return table[case].split()[self.gender]

    def _ein(self, stem: str, case: Case) -> str:
        """Returns a word inflected like *ein*, which has no ending in the masculine and neuter nominative."""
        bare = (self.gender is Gender.MASCULINE and case is Case.NOMINATIVE) or (
            self.gender is Gender.NEUTER and case is not Case.DATIVE
        )
        ending = "" if bare else self._ending(STRONG, case)
        return stem + ending

    def _german(self, determiner: str, endings: tuple[str, str, str], case: Case) -> str:
        words = [determiner] if determiner else []
        if self.adjective:
            words.append((self.adjective.stem or self.adjective.german) + self._ending(endings, case))
        words.append(self._german_noun(case))
        return " ".join(words + ([f", {self.relative[1]} ,"] if self.relative else []))

    def _german_noun(self, case: Case) -> str:
        if not self.plural:
            return self.noun.oblique if self.noun.oblique and case is not Case.NOMINATIVE else self.noun.german[0]
        form = self.noun.german[1]
        return form + "n" if case is Case.DATIVE and form[-1] not in "ns" else form


def pronoun_for(phrase: Phrase) -> Pronoun | None:
    """Returns the pronoun for a person that was mentioned before.

    Returns None for *das Mädchen* and animals, which have different genders in English and German.
    """
    if isinstance(phrase, Pronoun):
        return phrase if phrase in PRONOUNS else None
    if phrase.person is Person.MANY:
        return PRONOUNS[5]
    if isinstance(phrase, Named):
        gender = phrase.name.gender
    elif isinstance(phrase, NounPhrase) and Kind.PERSON in phrase.noun.kind:
        gender = phrase.gender
    else:
        return None
    return {Gender.MASCULINE: PRONOUNS[2], Gender.FEMININE: PRONOUNS[3]}.get(gender)
