"""The demo corpus: it is deterministic, English determines the German sentence, and the German is grammatical."""

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from seqtk.corpora import demo
from seqtk.corpora.demo import lexicon, pairs, write_corpus
from seqtk.corpora.demo.clauses import (
    Clause,
    Constituent,
    Role,
    Tense,
    english_question,
    english_statement,
    german_infinitive,
    german_statement,
    german_verb_first,
    german_verb_last,
)
from seqtk.corpora.demo.phrases import (
    PRONOUNS,
    Named,
    NounPhrase,
    Phrase,
    contracted,
    english_number,
    german_number,
    relative_pronoun,
)
from seqtk.corpora.demo.sampler import Sampler
from seqtk.corpora.demo.sentences import RULES, sentence
from seqtk.corpora.demo.words import Case, Gender, Modal, Name, Noun, Verb
from seqtk.utils.errors import UserError

ADJECTIVE = {adjective.english: adjective for adjective in lexicon.ADJECTIVES}
NOUN = {noun.english[0]: noun for noun in lexicon.NOUNS}
EVERY_VERB = (*lexicon.VERBS, *lexicon.MOTION, *lexicon.CONTROL, *lexicon.SAYING, lexicon.ASK, lexicon.COST)
ANNA = Named(Name("Anna", "Anna", Gender.FEMININE))


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, str]]:
    return list(pairs(20000, seed=1))


def finite_forms() -> set[str]:
    forms = {form for modal in (*lexicon.MODALS, lexicon.FUTURE) for form in modal.german}
    forms |= {"habe", "hast", "hat", "haben", "bin", "bist", "ist", "sind"}
    for verb in (*EVERY_VERB, lexicon.BE):
        for form in (*verb.german[:4], *(verb.preterite or ())):
            forms |= {form, verb.particle + form}
    return forms


FINITE = finite_forms()


# The corpus


def test_same_seed_gives_the_same_pairs() -> None:
    assert list(pairs(200, seed=3)) == list(pairs(200, seed=3))
    assert list(pairs(200, seed=3)) != list(pairs(200, seed=4))
    assert list(pairs(200, seed=3))[:50] == list(pairs(50, seed=3))


def test_english_sentences_are_distinct(corpus: list[tuple[str, str]]) -> None:
    assert len({english for english, _ in corpus}) == len(set(corpus)) == 20000


def test_each_english_sentence_has_one_translation() -> None:
    known: dict[str, str] = {}
    for seed in range(2):
        draw = Sampler(random.Random(seed))
        for _ in range(12000):
            english, german = sentence(draw)
            assert known.setdefault(english, german) == german


def test_sentences_have_correct_spacing_and_punctuation(corpus: list[tuple[str, str]]) -> None:
    for english, german in corpus:
        assert 3 <= len(english.split()) <= 25
        for text in (english, german):
            assert re.fullmatch(r"[A-Z\d].*[^ ,.?][.?]", text.replace("Ä", "A"))
            assert not re.search(r" [,.?]|,[^ ]|,\s*[,.?]|  ", text)


def test_sentences_are_short_on_average(corpus: list[tuple[str, str]]) -> None:
    assert 6.5 <= sum(len(english.split()) for english, _ in corpus) / len(corpus) <= 9


def test_splits_share_no_english_sentence(tmp_path: Path) -> None:
    write_corpus(tmp_path / "demo", train=300, valid=40, test=50, seed=2)
    lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "demo").iterdir()}
    assert {name: len(text) for name, text in lines.items()} == {
        "train.en": 300, "train.de": 300, "valid.en": 40, "valid.de": 40, "test.en": 50, "test.de": 50,
    }  # fmt: skip
    assert len({line for name, text in lines.items() if name.endswith(".en") for line in text}) == 390


def test_held_out_pairs_do_not_depend_on_train_size(tmp_path: Path) -> None:
    for train in (10, 20):
        write_corpus(tmp_path / str(train), train=train, valid=5, test=5)
    for name in ("valid.en", "valid.de", "test.en", "test.de"):
        assert (tmp_path / "10" / name).read_bytes() == (tmp_path / "20" / name).read_bytes()


def test_every_word_occurs_at_least_20_times(corpus: list[tuple[str, str]]) -> None:
    words = Counter(word for english, _ in corpus for word in set(re.findall(r"[\w-]+", english.lower())))
    phrases = Counter(
        f"{first} {second}"
        for english, _ in corpus
        for first, second in pairwise(re.findall(r"[\w-]+", english.lower()))
    )
    seen = words + phrases
    entries = [noun.english for noun in lexicon.NOUNS] + [verb.english for verb in EVERY_VERB]
    entries += [(adjective.english,) for adjective in lexicon.ADJECTIVES]
    entries += [(name.english,) for name in (*lexicon.PEOPLE, *lexicon.CITIES)]
    entries += [(english,) for english, _ in (*lexicon.DAYS, *lexicon.MONTHS, *lexicon.FREQUENCIES)]
    rare = [forms for forms in entries if sum(seen[form.lower()] for form in forms) < 20]
    assert not rare
    text = " ".join(english for english, _ in corpus)
    for part in lexicon.SURNAME_HEADS:
        assert len(re.findall(rf"Mrs?\. {part}", text)) >= 20
    for part in lexicon.SURNAME_TAILS:
        assert len(re.findall(rf"Mrs?\. \w+{part}\b", text)) >= 20


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sentences_of_each_rule_end_in_punctuation(rule: object) -> None:
    assert callable(rule)
    draw = Sampler(random.Random(0))
    for _ in range(50):
        english, german = rule(draw)
        assert english[-2:] == german[-2:]
        assert english[-2:] in (" .", " ?")


# Word order


def test_subordinate_clauses_end_in_their_finite_verb(corpus: list[tuple[str, str]]) -> None:
    found: Counter[str] = Counter()
    for english, german in corpus:
        for word in ("weil", "obwohl", "dass", "ob"):
            if match := re.search(rf", {word} ([^,]*)\.$", german):
                found[word] += 1
                assert match[1].split()[-1] in FINITE, german
        if match := re.match(r"Wenn ([^,]*), (\w+)", german):
            found["wenn"] += 1
            assert match[1].split()[-1] in FINITE, german
            assert match[2] in FINITE, german
        if re.search(r" whom? ", english) and (match := re.search(r", (?:d\w+|an d\w+|auf d\w+) ([^,]*)[,.]", german)):
            found["relative"] += 1
            assert match[1].split()[-1] in FINITE, german
    assert all(found[word] > 100 for word in ("weil", "obwohl", "dass", "ob", "wenn", "relative"))


def test_finite_verb_is_second_after_an_adverb(corpus: list[tuple[str, str]]) -> None:
    fronted = [
        german.split()[1] for _, german in corpus if german.split()[0] in ("Heute", "Gestern", "Morgen", "Jetzt")
    ]
    assert len(fronted) > 300
    assert set(fronted) <= FINITE


def call(
    tense: Tense = Tense.PRESENT, modal: Modal | None = None, subject: Phrase = ANNA, negated: bool = False
) -> Clause:
    verb = next(verb for verb in lexicon.VERBS if verb.english[0] == "call")
    doctor = NounPhrase(NOUN["doctor"])
    part = Constituent(Role.ACCUSATIVE, doctor.english(subject=False), doctor.german(Case.ACCUSATIVE))
    return Clause(subject, verb, (part, Constituent(Role.TIME, "today", "heute")), tense, modal, negated)


def test_separable_verbs_are_split_in_main_clauses() -> None:
    assert german_statement(call()) == "Anna ruft heute den Arzt an"
    assert german_verb_last(call()) == "Anna heute den Arzt anruft"
    assert german_infinitive(call()) == "heute den Arzt anzurufen"
    assert german_statement(call(Tense.PAST)) == "Anna hat heute den Arzt angerufen"
    assert german_verb_last(call(Tense.PAST)) == "Anna heute den Arzt angerufen hat"
    assert german_verb_first(call(modal=lexicon.FUTURE)) == "wird Anna heute den Arzt anrufen"
    assert german_statement(call(negated=True)) == "Anna ruft heute den Arzt nicht an"


def test_english_verb_forms_and_auxiliaries_are_correct() -> None:
    you, want = PRONOUNS[1], lexicon.MODALS[3]
    assert english_statement(call()) == "Anna is calling the doctor today"
    assert english_statement(call(Tense.HABITUAL)) == "Anna calls the doctor today"
    assert english_statement(call(Tense.PAST, negated=True)) == "Anna did not call the doctor today"
    assert english_question(call(subject=you)) == "are you calling the doctor today"
    assert english_question(call(modal=want)) == "does Anna want to call the doctor today"
    assert english_statement(call(modal=want, subject=you)) == "you want to call the doctor today"


def test_negation_uses_kein_or_nicht(corpus: list[tuple[str, str]]) -> None:
    for english, german in corpus:
        negations = len(re.findall(r"\bnot\b|\bcannot\b", english))
        assert negations == len(re.findall(r"\bnicht\b|\bkein\w*\b", german)), (english, german)
        assert not re.search(r"\bnicht ein(en|e|em|er)? \w+ (gesehen|gekauft|gelesen)", german)


# Inflection

PARADIGM = {  # rows: nominative, accusative, dative; columns: masculine, feminine, neuter, plural
    "the": """der kleine Hund|die kleine Katze|das kleine Pferd|die kleinen Pferde
              den kleinen Hund|die kleine Katze|das kleine Pferd|die kleinen Pferde
              dem kleinen Hund|der kleinen Katze|dem kleinen Pferd|den kleinen Pferden""",
    "this": """dieser kleine Hund|diese kleine Katze|dieses kleine Pferd|diese kleinen Pferde
               diesen kleinen Hund|diese kleine Katze|dieses kleine Pferd|diese kleinen Pferde
               diesem kleinen Hund|dieser kleinen Katze|diesem kleinen Pferd|diesen kleinen Pferden""",
    "a": """ein kleiner Hund|eine kleine Katze|ein kleines Pferd|kleine Pferde
            einen kleinen Hund|eine kleine Katze|ein kleines Pferd|kleine Pferde
            einem kleinen Hund|einer kleinen Katze|einem kleinen Pferd|kleinen Pferden""",
    "our": """unser kleiner Hund|unsere kleine Katze|unser kleines Pferd|unsere kleinen Pferde
              unseren kleinen Hund|unsere kleine Katze|unser kleines Pferd|unsere kleinen Pferde
              unserem kleinen Hund|unserer kleinen Katze|unserem kleinen Pferd|unseren kleinen Pferden""",
}


@pytest.mark.parametrize("determiner", PARADIGM)
def test_determiners_and_adjectives_agree(determiner: str) -> None:
    for case, row in zip(Case, PARADIGM[determiner].splitlines(), strict=True):
        columns = [("dog", False), ("cat", False), ("horse", False), ("horse", True)]
        phrases = [NounPhrase(NOUN[noun], determiner, plural, ADJECTIVE["small"]) for noun, plural in columns]
        assert "|".join(phrase.german(case) for phrase in phrases) == row.strip()


def test_adjectives_without_article_have_strong_endings() -> None:
    cold = [NounPhrase(NOUN[noun], "a", False, ADJECTIVE["cold"]) for noun in ("tea", "milk", "water")]
    forms = [[phrase.german(case) for phrase in cold] for case in Case]
    assert forms == [
        ["kalter Tee", "kalte Milch", "kaltes Wasser"],
        ["kalten Tee", "kalte Milch", "kaltes Wasser"],
        ["kaltem Tee", "kalter Milch", "kaltem Wasser"],
    ]
    assert cold[0].german_negated(Case.ACCUSATIVE) == "keinen kalten Tee"
    dogs = NounPhrase(NOUN["dog"], "", True, ADJECTIVE["old"], 21)
    assert dogs.english(subject=True) == "twenty-one old dogs"
    assert dogs.german(Case.DATIVE) == "einundzwanzig alten Hunden"


@pytest.mark.parametrize(
    ("noun", "forms"),
    [
        ("boy", "der Junge, den Jungen, dem Jungen; die Jungen, die Jungen, den Jungen"),
        ("neighbor", "der Nachbar, den Nachbarn, dem Nachbarn; die Nachbarn, die Nachbarn, den Nachbarn"),
        ("car", "das Auto, das Auto, dem Auto; die Autos, die Autos, den Autos"),
        ("house", "das Haus, das Haus, dem Haus; die Häuser, die Häuser, den Häusern"),
        ("friend", "der Freund, den Freund, dem Freund; die Freunde, die Freunde, den Freunden"),
    ],
)
def test_nouns_are_inflected(noun: str, forms: str) -> None:
    numbers = [[NounPhrase(NOUN[noun], "the", plural).german(case) for case in Case] for plural in (False, True)]
    assert "; ".join(", ".join(row) for row in numbers) == forms


def test_irregular_adjectives_and_articles_are_inflected() -> None:
    dark, tired, old = (ADJECTIVE[word] for word in ("dark", "tired", "old"))
    assert NounPhrase(NOUN["forest"], "a", adjective=dark).german(Case.NOMINATIVE) == "ein dunkler Wald"
    assert NounPhrase(NOUN["boy"], "a", adjective=tired).german(Case.NOMINATIVE) == "ein müder Junge"
    assert NounPhrase(NOUN["dog"], "a", adjective=old).english(subject=True) == "an old dog"
    assert NounPhrase(NOUN["cat"], "this", plural=True).english(subject=True) == "these cats"


def test_titles_and_relative_pronouns_are_inflected() -> None:
    man = Named(Name("Goldbach", "Goldbach", Gender.MASCULINE), titled=True)
    assert [man.german(case) for case in Case] == ["Herr Goldbach", "Herrn Goldbach", "Herrn Goldbach"]
    forms = {gender: [relative_pronoun(gender, human=True).german(case) for case in Case] for gender in Gender}
    assert list(forms.values()) == [
        ["der", "den", "dem"], ["die", "die", "der"], ["das", "das", "dem"], ["die", "die", "denen"],
    ]  # fmt: skip


def test_prepositions_contract_with_the_article() -> None:
    phrases = [("in", "dem Garten"), ("in", "das Haus"), ("zu", "der Schule"), ("an", "dem See"), ("mit", "dem Hund")]
    assert [contracted(*phrase) for phrase in phrases] == [
        "im Garten", "ins Haus", "zur Schule", "am See", "mit dem Hund",
    ]  # fmt: skip


def test_numbers_are_written_as_words() -> None:
    known = {
        1: ("one", "eins"),
        7: ("seven", "sieben"),
        12: ("twelve", "zwölf"),
        16: ("sixteen", "sechzehn"),
        17: ("seventeen", "siebzehn"),
        20: ("twenty", "zwanzig"),
        21: ("twenty-one", "einundzwanzig"),
        30: ("thirty", "dreißig"),
        47: ("forty-seven", "siebenundvierzig"),
        66: ("sixty-six", "sechsundsechzig"),
        71: ("seventy-one", "einundsiebzig"),
        99: ("ninety-nine", "neunundneunzig"),
    }
    assert {number: (english_number(number), german_number(number)) for number in known} == known
    for word in (english_number, german_number):
        assert len({word(number) for number in range(1, 100)}) == 99


def test_every_word_has_one_translation() -> None:
    nouns: tuple[Noun, ...] = lexicon.NOUNS
    verbs: tuple[Verb, ...] = EVERY_VERB
    for forms in ([noun.english[0] for noun in nouns], [verb.english[0] for verb in lexicon.VERBS]):
        assert len(set(forms)) == len(forms)
    assert all(noun.german[0][0].isupper() for noun in nouns)
    assert all(form == form.lower() for verb in verbs for form in verb.german)


class TestEnsure:
    def test_existing_demo_corpus_is_kept(self, tmp_path: Path) -> None:
        config = demo.DemoConfig(destdir=str(tmp_path / "demo"), pairs=60, vocab_size=200)
        demo.prepare(config)
        made = {path: path.read_bytes() for path in (tmp_path / "demo").glob("*.*")}
        demo.ensure(config.destdir)
        assert made == {path: path.read_bytes() for path in (tmp_path / "demo").glob("*.*")}
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    def test_data_bin_is_not_replaced_without_overwrite(self, tmp_path: Path) -> None:
        config = demo.DemoConfig(destdir=str(tmp_path / "demo"), pairs=60, vocab_size=200)
        demo.prepare(config)
        with pytest.raises(UserError, match="overwrite=true"):
            demo.prepare(config)
