"""The word lists of the demo language. Each English word has one translation, so English determines German.

Weights are relative frequencies within a list. Words with a weight below 0.5 are rare in the training text.
"""

from typing import Any

from seqtk.corpora.demo.words import Adjective, Aspect, Case, Gender, Kind, Modal, Name, Noun, Object, Verb

M, F, N = Gender.MASCULINE, Gender.FEMININE, Gender.NEUTER
PERSON, ANIMAL, PLACE, ROOM, VEHICLE = Kind.PERSON, Kind.ANIMAL, Kind.PLACE, Kind.ROOM, Kind.VEHICLE
BREAKABLE, COLORED = Kind.BREAKABLE, Kind.COLORED
READABLE, FOOD, DRINK, LAMP, OPENABLE, GOODS = (
    Kind.READABLE, Kind.FOOD, Kind.DRINK, Kind.LAMP, Kind.OPENABLE, Kind.GOODS,
)  # fmt: skip
SMALL = Kind.PORTABLE | GOODS
LIVING = PERSON | ANIMAL
ADULT = PERSON | Kind.GROWN
THING = GOODS | Kind.PORTABLE | VEHICLE


def _noun(
    english: str, german: str, gender: Gender, kind: Kind, weight: float = 1.0, *, at: str = "", **others: Any
) -> Noun:
    english_at, _, german_at = at.partition(" ")
    at_both = (english_at, german_at)
    return Noun(tuple(english.split()), tuple(german.split()), gender, kind, weight, at=at_both, **others)


def _verb(english: str, german: str, *objects: Object, preterite: str = "", **others: Any) -> Verb:
    forms = tuple(form.replace("_", " ") for form in english.split())
    return Verb(forms, tuple(german.split()), objects=objects, preterite=tuple(preterite.split()), **others)


NOUNS = (
    _noun("man men", "Mann Männer", M, ADULT, 4.0, owned=False),
    _noun("woman women", "Frau Frauen", F, ADULT, 4.0, owned=False),
    _noun("child children", "Kind Kinder", N, PERSON, 4.0),
    _noun("boy boys", "Junge Jungen", M, PERSON, oblique="Jungen"),
    _noun("girl girls", "Mädchen Mädchen", N, PERSON, owned=False),
    _noun("teacher teachers", "Lehrer Lehrer", M, ADULT, 2.5),
    _noun("doctor doctors", "Arzt Ärzte", M, ADULT, 2.5),
    _noun("neighbor neighbors", "Nachbar Nachbarn", M, ADULT, oblique="Nachbarn"),
    _noun("student students", "Student Studenten", M, PERSON, oblique="Studenten"),
    _noun("friend friends", "Freund Freunde", M, ADULT, 2.5),
    _noun("brother brothers", "Bruder Brüder", M, ADULT, owned=True),
    _noun("sister sisters", "Schwester Schwestern", F, ADULT, owned=True),
    _noun("aunt aunts", "Tante Tanten", F, ADULT, owned=True),
    _noun("queen queens", "Königin Königinnen", F, ADULT, 0.4),
    _noun("gardener gardeners", "Gärtner Gärtner", M, ADULT, 0.4),
    _noun("dog dogs", "Hund Hunde", M, ANIMAL, 4.0),
    _noun("cat cats", "Katze Katzen", F, ANIMAL, 2.5),
    _noun("horse horses", "Pferd Pferde", N, ANIMAL),
    _noun("bird birds", "Vogel Vögel", M, ANIMAL),
    _noun("hedgehog hedgehogs", "Igel Igel", M, ANIMAL, 0.4),
    _noun("squirrel squirrels", "Eichhörnchen Eichhörnchen", N, ANIMAL, 0.4),
    _noun("book books", "Buch Bücher", N, READABLE | SMALL, 4.0),
    _noun("letter letters", "Brief Briefe", M, READABLE | Kind.PORTABLE, 2.5),
    _noun("newspaper newspapers", "Zeitung Zeitungen", F, READABLE | SMALL),
    _noun("key keys", "Schlüssel Schlüssel", M, SMALL, 2.5),
    _noun("cup cups", "Tasse Tassen", F, SMALL | COLORED | BREAKABLE),
    _noun("lamp lamps", "Lampe Lampen", F, SMALL | LAMP | COLORED | BREAKABLE),
    _noun("bag bags", "Tasche Taschen", F, SMALL | OPENABLE | COLORED | BREAKABLE),
    _noun("knife knives", "Messer Messer", N, SMALL | BREAKABLE),
    _noun("coat coats", "Mantel Mäntel", M, SMALL | COLORED),
    _noun("umbrella umbrellas", "Regenschirm Regenschirme", M, SMALL | COLORED | BREAKABLE, 0.4),
    _noun("suitcase suitcases", "Koffer Koffer", M, SMALL | OPENABLE | COLORED | BREAKABLE),
    _noun("door doors", "Tür Türen", F, OPENABLE | COLORED | BREAKABLE, 2.5),
    _noun("window windows", "Fenster Fenster", N, OPENABLE | BREAKABLE),
    _noun("apple apples", "Apfel Äpfel", M, FOOD | COLORED, 2.5),
    _noun("cake cakes", "Kuchen Kuchen", M, FOOD),
    _noun("egg eggs", "Ei Eier", N, FOOD),
    _noun("soup", "Suppe", F, FOOD),
    _noun("bread", "Brot", N, FOOD),
    _noun("tea", "Tee", M, DRINK),
    _noun("milk", "Milch", F, DRINK),
    _noun("water", "Wasser", N, DRINK),
    _noun("car cars", "Auto Autos", N, VEHICLE | COLORED | BREAKABLE, 2.5),
    _noun("bicycle bicycles", "Fahrrad Fahrräder", N, VEHICLE | COLORED | BREAKABLE),
    _noun("ship ships", "Schiff Schiffe", N, VEHICLE | BREAKABLE, 0.5),
    _noun("house houses", "Haus Häuser", N, PLACE | ROOM, 4.0, at="in in"),
    _noun("garden gardens", "Garten Gärten", M, PLACE, 2.5, at="in in"),
    _noun("kitchen kitchens", "Küche Küchen", F, PLACE | ROOM, at="in in"),
    _noun("school schools", "Schule Schulen", F, PLACE, at="in in"),
    _noun("church churches", "Kirche Kirchen", F, PLACE, at="in in", owned=False),
    _noun("castle castles", "Schloss Schlösser", N, PLACE, at="in in", owned=False),
    _noun("village villages", "Dorf Dörfer", N, PLACE, at="in in", owned=False),
    _noun("forest forests", "Wald Wälder", M, PLACE, at="in in", owned=False),
    _noun("bridge bridges", "Brücke Brücken", F, PLACE, 2.5, at="on auf", owned=False),
    _noun("street streets", "Straße Straßen", F, PLACE, at="on auf", owned=False),
    _noun("market markets", "Markt Märkte", M, PLACE, at="at auf", owned=False),
    _noun("station stations", "Bahnhof Bahnhöfe", M, PLACE, 2.5, at="at an", owned=False),
    _noun("lake lakes", "See Seen", M, PLACE, at="at an", owned=False),
    _noun("lighthouse lighthouses", "Leuchtturm Leuchttürme", M, PLACE, 0.4, at="at an", owned=False),
)

ADJECTIVES = (
    Adjective("old", "alt", Kind.GROWN | ANIMAL | THING | PLACE, "", ("older", "älter"), 1.5),
    Adjective("young", "jung", LIVING, "", ("younger", "jünger")),
    Adjective("small", "klein", LIVING | THING | FOOD | PLACE, "", ("smaller", "kleiner"), 1.5),
    Adjective("big", "groß", ANIMAL | THING | PLACE, "", ("bigger", "größer"), 1.5),
    Adjective("tall", "groß", PERSON, "", ("taller", "größer")),
    Adjective("new", "neu", THING | ROOM | OPENABLE, "", ("newer", "neuer")),
    Adjective("beautiful", "schön", ANIMAL | THING | PLACE, "", ("more beautiful", "schöner")),
    Adjective("heavy", "schwer", Kind.PORTABLE, "", ("heavier", "schwerer")),
    Adjective("expensive", "teuer", GOODS | VEHICLE | FOOD, "teur", ("more expensive", "teurer")),
    Adjective("red", "rot", COLORED),
    Adjective("green", "grün", COLORED),
    Adjective("blue", "blau", COLORED),
    Adjective("cold", "kalt", FOOD | DRINK | ROOM, "", ("colder", "kälter")),
    Adjective("warm", "warm", FOOD | DRINK | ROOM, "", ("warmer", "wärmer")),
    Adjective("dark", "dunkel", PLACE, "dunkl", ("darker", "dunkler")),
    Adjective("broken", "kaputt", BREAKABLE),
    Adjective("famous", "berühmt", Kind.GROWN | PLACE, "", ("more famous", "berühmter")),
    Adjective("friendly", "freundlich", LIVING, "", ("friendlier", "freundlicher")),
    Adjective("tired", "müde", LIVING, "müd"),
    Adjective("happy", "glücklich", PERSON, "", ("happier", "glücklicher")),
    Adjective("clever", "klug", LIVING, "", ("cleverer", "klüger")),
    Adjective("rich", "reich", Kind.GROWN, "", ("richer", "reicher"), 0.4),
    Adjective("curious", "neugierig", LIVING, "", ("more curious", "neugieriger"), 0.4),
)

TO_PERSON, DATIVE_PERSON = Object(PERSON, Case.DATIVE, "to"), Object(PERSON, Case.DATIVE)

VERBS = (
    _verb("read reads reading read", "lese liest liest lesen gelesen", Object(READABLE), place=0.2, weight=3.0),
    _verb("buy buys buying bought", "kaufe kaufst kauft kaufen gekauft", Object(GOODS | FOOD | VEHICLE), place=0.2,
          weight=3.0),
    _verb("sell sells selling sold", "verkaufe verkaufst verkauft verkaufen verkauft", Object(GOODS | VEHICLE)),
    _verb(
        "see sees seeing saw", "sehe siehst sieht sehen gesehen", Object(LIVING | THING | PLACE),
        subject=LIVING, aspect=Aspect.EVENT, place=0.2, weight=3.0),
    _verb("look_for looks_for looking_for looked_for", "suche suchst sucht suchen gesucht",
          Object(LIVING | Kind.PORTABLE), place=0.2, weight=2.0),
    _verb("find finds finding found", "finde findest findet finden gefunden", Object(ANIMAL | Kind.PORTABLE),
          aspect=Aspect.EVENT, place=0.2),
    _verb("lose loses losing lost", "verliere verlierst verliert verlieren verloren", Object(Kind.PORTABLE),
          aspect=Aspect.EVENT, place=0.2),
    _verb("eat eats eating ate", "esse isst isst essen gegessen", Object(FOOD), place=0.2, company=0.1, weight=2.0),
    _verb("drink drinks drinking drank", "trinke trinkst trinkt trinken getrunken", Object(DRINK), place=0.2,
          company=0.1, weight=2.0),
    _verb("carry carries carrying carried", "trage trägst trägt tragen getragen", Object(Kind.PORTABLE)),
    _verb("paint paints painting painted", "male malst malt malen gemalt", Object(ANIMAL | PLACE)),
    _verb("repair repairs repairing repaired", "repariere reparierst repariert reparieren repariert",
          Object(VEHICLE | LAMP)),
    _verb("visit visits visiting visited", "besuche besuchst besucht besuchen besucht", Object(PERSON), company=0.15),
    _verb("call calls calling called", "rufe rufst ruft rufen gerufen", Object(PERSON), particle="an", weight=3.0),
    _verb("invite invites inviting invited", "lade lädst lädt laden geladen", Object(PERSON), particle="ein"),
    _verb("fetch fetches fetching fetched", "hole holst holt holen geholt", Object(LIVING | Kind.PORTABLE),
          particle="ab"),
    _verb("open opens opening opened", "mache machst macht machen gemacht", Object(OPENABLE), particle="auf",
          weight=2.0),
    _verb("close closes closing closed", "mache machst macht machen gemacht", Object(OPENABLE), particle="zu"),
    _verb("switch_on switches_on switching_on switched_on", "schalte schaltest schaltet schalten geschaltet",
          Object(LAMP), particle="ein", weight=0.5),
    _verb("clean_up cleans_up cleaning_up cleaned_up", "räume räumst räumt räumen geräumt", Object(ROOM),
          particle="auf", weight=0.7),
    _verb("help helps helping helped", "helfe hilfst hilft helfen geholfen", DATIVE_PERSON, place=0.1, weight=3.0),
    _verb("thank thanks thanking thanked", "danke dankst dankt danken gedankt", DATIVE_PERSON),
    _verb("follow follows following followed", "folge folgst folgt folgen gefolgt", Object(LIVING, Case.DATIVE),
          subject=LIVING, sein=True),
    _verb("listen listens listening listened", "höre hörst hört hören gehört", TO_PERSON, particle="zu"),
    _verb("wait waits waiting waited", "warte wartest wartet warten gewartet",
          Object(PERSON, Case.ACCUSATIVE, "for", "auf"), place=0.3, weight=2.0),
    _verb("think thinks thinking thought", "denke denkst denkt denken gedacht",
          Object(PERSON, Case.ACCUSATIVE, "of", "an")),
    _verb("know knows knowing knew", "kenne kennst kennt kennen gekannt", Object(PERSON | PLACE),
          aspect=Aspect.STATE, preterite="kannte kanntest kannte kannten"),
    _verb("love loves loving loved", "liebe liebst liebt lieben geliebt", Object(LIVING), aspect=Aspect.STATE),
    _verb("have has having had", "habe hast hat haben gehabt", Object(ANIMAL | GOODS | VEHICLE, indefinite=True),
          aspect=Aspect.STATE, preterite="hatte hattest hatte hatten", weight=3.0),
    _verb("give gives giving gave", "gebe gibst gibt geben gegeben", DATIVE_PERSON, Object(Kind.PORTABLE | FOOD),
          weight=3.0),
    _verb("show shows showing showed", "zeige zeigst zeigt zeigen gezeigt", DATIVE_PERSON,
          Object(ANIMAL | THING | PLACE), weight=2.0),
    _verb("send sends sending sent", "schicke schickst schickt schicken geschickt", DATIVE_PERSON,
          Object(READABLE | Kind.PORTABLE)),
    _verb("sleep sleeps sleeping slept", "schlafe schläfst schläft schlafen geschlafen", subject=LIVING, place=0.6,
          weight=1.5),
    _verb("play plays playing played", "spiele spielst spielt spielen gespielt", subject=LIVING, place=0.4,
          company=0.5),
    _verb("work works working worked", "arbeite arbeitest arbeitet arbeiten gearbeitet", place=0.5, company=0.3,
          weight=1.5),
    _verb("dance dances dancing danced", "tanze tanzt tanzt tanzen getanzt", place=0.4, company=0.5),
    _verb("live lives living lived", "wohne wohnst wohnt wohnen gewohnt", aspect=Aspect.STATE, place=1.0, company=0.2,
          weight=2.0),
    _verb("get_up gets_up getting_up got_up", "stehe stehst steht stehen gestanden", particle="auf", sein=True),
    _verb("arrive arrives arriving arrived", "komme kommst kommt kommen gekommen", particle="an", sein=True,
          aspect=Aspect.EVENT, place=1.0, company=0.1),
    _verb("fall_asleep falls_asleep falling_asleep fell_asleep", "schlafe schläfst schläft schlafen geschlafen",
          particle="ein", sein=True, subject=LIVING, aspect=Aspect.EVENT, place=0.3),
)  # fmt: skip

MOTION = (
    _verb(
        "go goes going went",
        "gehe gehst geht gehen gegangen",
        sein=True,
        subject=LIVING,
        goal=PLACE,
        company=0.25,
        weight=2.5,
    ),
    _verb(
        "run runs running ran", "laufe läufst läuft laufen gelaufen", sein=True, subject=LIVING, goal=PLACE, company=0.2
    ),
    _verb(
        "travel travels traveling traveled", "reise reist reist reisen gereist", sein=True, goal=Kind.CITY, company=0.3
    ),
)

# Reasons to go somewhere.
PURPOSES = tuple(
    verb
    for verb in VERBS
    if verb.english[0] in ("buy", "sell", "read", "eat", "drink", "paint", "visit", "fetch", "help", "thank", "show")
    or verb.english[0] in ("look for", "sleep", "play", "work", "dance")
)

BE = _verb(
    "be is being was", "bin bist ist sein gewesen", sein=True, aspect=Aspect.STATE, preterite="war warst war waren"
)
COST = _verb("cost costs costing cost", "koste kostest kostet kosten gekostet", aspect=Aspect.STATE)

CONTROL = (  # followed by "to" and an infinitive; German: a comma and an infinitive with "zu"
    _verb("try tries trying tried", "versuche versuchst versucht versuchen versucht"),
    _verb("begin begins beginning began", "fange fängst fängt fangen gefangen", particle="an"),
    _verb("forget forgets forgetting forgot", "vergesse vergisst vergisst vergessen vergessen", aspect=Aspect.EVENT),
    _verb("promise promises promising promised", "verspreche versprichst verspricht versprechen versprochen",
          aspect=Aspect.EVENT),
)  # fmt: skip

SAYING = (  # followed by a clause with "that"
    _verb("know knows knowing knew", "weiß weißt weiß wissen gewusst", aspect=Aspect.STATE,
          preterite="wusste wusstest wusste wussten"),
    _verb("say says saying said", "sage sagst sagt sagen gesagt", aspect=Aspect.STATE),
    _verb("believe believes believing believed", "glaube glaubst glaubt glauben geglaubt", aspect=Aspect.STATE),
    _verb("hope hopes hoping hoped", "hoffe hoffst hofft hoffen gehofft", aspect=Aspect.STATE),
)  # fmt: skip
ASK = _verb("ask asks asking asked", "frage fragst fragt fragen gefragt")

MODALS = (
    Modal("can", ("kann", "kannst", "kann", "können"), "cannot", weight=1.5),
    Modal("must", ("muss", "musst", "muss", "müssen"), None),
    Modal("should", ("soll", "sollst", "soll", "sollen"), "should not"),
    Modal("want", ("will", "willst", "will", "wollen"), "not want to", lexical=True, weight=1.5),
)
FUTURE = Modal("will", ("werde", "wirst", "wird", "werden"), "will not")


def _names(text: str, gender: Gender, weight: float) -> tuple[Name, ...]:
    halves = [(name.split("=") * 2)[:2] for name in text.split()]
    return tuple(Name(english, german, gender, weight) for english, german in halves)


PEOPLE = (
    _names("Anna Emma Clara Julia Maria Laura Sophie Lena Martha Nina Sarah Hannah", F, 4.0)
    + _names("Ben Paul Peter Felix David Thomas Lukas Martin Oskar Simon Jonas Karl", M, 4.0)
    + _names("Adelheid Brunhilde Dorothea Edeltraud Friederike Gudrun Henriette Isolde Kunigunde", F, 0.5)
    + _names("Ludmilla Mathilde Ottilie Philippa Rosalinde Thusnelda Walburga Yvonne Zenobia", F, 0.5)
    + _names("Adalbert Balthasar Cornelius Dietmar Eberhard Ferdinand Gottfried Hieronymus", M, 0.5)
    + _names("Ignaz Kasimir Leopold Neidhart Ottokar Quirin Rupert Siegfried Theobald Wolfram Xaver Zacharias", M, 0.5)
)
CITIES = (
    _names("Berlin Hamburg Paris London Munich=München Vienna=Wien Rome=Rom Zurich=Zürich", N, 4.0)
    + _names("Cologne=Köln Prague=Prag Warsaw=Warschau Geneva=Genf Lisbon=Lissabon Copenhagen=Kopenhagen", N, 1.0)
    + _names("Oslo Madrid Reykjavik Heidelberg Lübeck Greifswald Quedlinburg Wuppertal", N, 0.8)
)
# Surnames have two parts, so that a test sentence may contain a surname that is not in the training text.
SURNAME_HEADS = ("Berg", "Stein", "Linden", "Wald", "Gold", "Silber", "Eichen", "Hohen")
SURNAME_TAILS = ("mann", "bach", "hof", "feld", "thal", "berger", "stein", "baum")

DAYS = (("Monday", "Montag"), ("Tuesday", "Dienstag"), ("Wednesday", "Mittwoch"), ("Thursday", "Donnerstag"),
        ("Friday", "Freitag"), ("Saturday", "Samstag"), ("Sunday", "Sonntag"))  # fmt: skip
MONTHS = (("January", "Januar"), ("February", "Februar"), ("March", "März"), ("April", "April"), ("May", "Mai"),
          ("June", "Juni"), ("July", "Juli"), ("August", "August"), ("September", "September"),
          ("October", "Oktober"), ("November", "November"), ("December", "Dezember"))  # fmt: skip
FREQUENCIES = (("often", "oft"), ("always", "immer"), ("never", "nie"), ("sometimes", "manchmal"))
