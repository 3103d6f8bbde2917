"""The types of words of the demo language, with the English and German forms that inflection cannot derive."""

from dataclasses import dataclass
from enum import Enum, Flag, IntEnum, auto


class Gender(IntEnum):
    """A column of the German declension tables. The plural of all genders is one column."""

    MASCULINE = 0
    FEMININE = 1
    NEUTER = 2
    PLURAL = 3


class Case(IntEnum):
    """A row of the German declension tables."""

    NOMINATIVE = 0
    ACCUSATIVE = 1
    DATIVE = 2


class Person(IntEnum):
    """The grammatical person, an index into the forms of a verb. MANY is the plural: *we* and *they*."""

    I = 0  # noqa: E741
    YOU = 1
    ONE = 2
    MANY = 3


class Kind(Flag):
    """The meaning of a noun, which restricts its verbs and adjectives: people read letters, not bridges."""

    PERSON = auto()
    GROWN = auto()
    ANIMAL = auto()
    READABLE = auto()
    FOOD = auto()
    DRINK = auto()
    LAMP = auto()
    OPENABLE = auto()
    BREAKABLE = auto()
    COLORED = auto()
    GOODS = auto()
    PORTABLE = auto()
    VEHICLE = auto()
    ROOM = auto()
    PLACE = auto()
    CITY = auto()


class Aspect(Enum):
    """The English present tense of a verb: *is reading* (activity), *knows* (state), or none (event: *find*)."""

    ACTIVITY = "activity"
    STATE = "state"
    EVENT = "event"


@dataclass(frozen=True)
class Noun:
    """A noun. `english` and `german` are (singular, plural), or only the singular of a substance such as *tea*."""

    english: tuple[str, ...]
    german: tuple[str, ...]
    gender: Gender
    kind: Kind
    weight: float = 1.0
    oblique: str = ""  # accusative and dative singular of the weak masculines (der Junge, den Jungen)
    owned: bool | None = None  # possessive: always (*my aunt*), never (*the bridge*), or None: sometimes
    at: tuple[str, str] = ("", "")  # the preposition for the place, in English and German: (at, an) for the station


@dataclass(frozen=True)
class Adjective:
    """An adjective. German endings are added to `stem` if it differs from the base form (dunkel, ein dunkler Wald)."""

    english: str
    german: str
    kind: Kind
    stem: str = ""
    comparative: tuple[str, str] = ("", "")
    weight: float = 1.0


@dataclass(frozen=True)
class Object:
    """The requirements of a verb for one object: the object's meaning, its German case, and its prepositions."""

    kind: Kind
    case: Case = Case.ACCUSATIVE
    english: str = ""
    german: str = ""
    indefinite: bool = False


@dataclass(frozen=True)
class Verb:
    """A verb. `english`: base, third person, -ing, past. `german`: ich, du, er, infinitive, participle, all without
    the separable `particle`; `preterite` (ich, du, er, wir), if any, replaces the perfect where German prefers it."""

    english: tuple[str, ...]
    german: tuple[str, ...]
    particle: str = ""
    sein: bool = False
    subject: Kind = Kind.PERSON
    objects: tuple[Object, ...] = ()
    aspect: Aspect = Aspect.ACTIVITY
    preterite: tuple[str, ...] = ()
    weight: float = 1.0
    goal: Kind | None = None  # the destination of a verb of motion: a PLACE or a CITY
    place: float = 0.0  # probability of a place
    company: float = 0.0  # probability of a companion


@dataclass(frozen=True)
class Modal:
    """A modal verb. An infinitive without *to* follows it, except for *want to*. `german`: ich, du, er, wir."""

    english: str
    german: tuple[str, str, str, str]
    negative: str | None
    lexical: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Name:
    """A proper name in English and German spelling."""

    english: str
    german: str
    gender: Gender
    weight: float = 1.0
