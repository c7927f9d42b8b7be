"""Units: an allow list of the words and symbols that may accompany a number, by kind.

Other words are not ignored: ``42 million`` and ``42 is wrong`` are not 42.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from reval_core.answers.tokens import Token, words_of


class Unit(NamedTuple):
    """The kind of a unit and its size in the first unit of that kind. Size 0: not convertible."""

    kind: str
    size: Fraction
    power: int = 1


_KINDS: dict[str, str] = {
    "length": """m meter metre=1; km kilometer kilometre=1000; cm centimeter centimetre=1/100;
        mm millimeter millimetre=1/1000; nm nanometer nanometre=1/1000000000; inch inches in=254/10000;
        ft foot feet=3048/10000; yd yard=9144/10000; mi mile=1609344/1000; pc parsec=0; ly=0; au=0""",
    "mass": """g gram gm=1; kg kilogram kilo=1000; mg milligram=1/1000; t ton tonne=0; oz ounce=0""",
    "time": """s sec second=1; min mins minute=60; h hr hrs hour=3600; day=86400; week=604800;
        ms millisecond=1/1000; month=0; year yr yrs=0; decade=0; century centuries=0""",
    "angle": r"degree deg \circ=1; radian rad=0; arcsecond=1/3600; arcminute=1/60",
    "temperature": "celsius °c=0; fahrenheit °f=0; K kelvin=0",
    "money": r"""dollar usd \$ buck=1; cent=1/100; euro eur € \euro=0; pence=0;
        rupee inr rs ₹=0; yen jpy ¥ \yen=0; yuan rmb cny 元=0; won ₩=0; ruble rub ₽=0; peso=0; franc=0; dirham=0""",
    "pound": r"pound lb lbs £ gbp \pounds quid=1",
    "percent": r"percent percentage pct % \%=1; permille permil ‰ \permil=1/10",
    "volume": """l liter litre=1; ml milliliter millilitre=1/1000; gallon gal=0; quart=0; pint=0; cup=0; cc=1/1000;
        tablespoon=0; teaspoon=0; barrel=0; bushel=0""",
    "area": "acre=0; hectare ha=0; sqft=0; sqm=0",
    "speed": "mph=0; kmph kmh kph=0",
    "physics": r"""N newton=0; J joule=0; W watt=0; V volt=0; A amp ampere=0; hz hertz=0; pa pascal=0; C coulomb=0;
        ohm \omega=0; ev=0; kj=0; kw kilowatt=0; mw=0; kpa=0; atm=0; mol mole=0; thz=0; ghz=0; mhz=0; khz=0;
        F farad=0; H henry=0; T tesla=0; erg=0; dyne=0; calorie cal=0; kcal=0; db decibel=0; bit=0;
        byte=0; gb=0; mb=0""",
}
_COUNTED = """
    people person persons student child children kid man men woman women boy girl adult member friend player
    customer passenger employee worker patient parent teacher family grandchildren camper soldier voter vote way
    solution value integer number digit unit point line triangle circle rectangle side edge vertex vertices face
    diagonal region element subset set arrangement permutation combination outcome possibility path route step
    move turn term factor divisor pair group team class row column cell item object thing piece part slice
    portion section apple orange banana lemon peach peaches pear mango mangoes strawberry strawberries blueberry
    blueberries berry berries cherry cherries watermelon tomato tomatoes potato potatoes carrot mushroom
    vegetable fruit nut peanut egg cookie cake cupcake pie pizza donut doughnut brownie candy candies chocolate
    sweet lollipop pancake sandwich sandwiches hotdog hamburger cracker loaf loaves bread meal serving dish
    dishes plate glass glasses bottle can jar box boxes bag basket pack package packet case container barrel cup
    bowl carton crate tray bucket book page letter word sentence pencil pen crayon marker eraser notebook paper
    sheet card sticker stamp envelope photo picture painting poster magazine ticket coin penny pennies nickel
    dime bill marble bead ball balloon toy doll block brick tile button key nail board plank stick rock stone
    shell seashell token game song movie video episode match matches puzzle car truck bus buses bike bicycle
    boat train plane trip lap round tree flower rose tulip daisy daisies plant seed leaf leaves bush bushes
    branch branches petal bouquet animal dog cat puppy puppies kitten bird chicken duck cow horse sheep goat pig
    rabbit fish frog turtle lion shark ant bee bug insect cricket butterfly butterflies legs leg eye ear wheel
    tire shirt dress dresses shoe sock hat coat scarf scarves towel bracelet necklace ring earring room house
    home building floor door window chair seat table shelf shelves bed lamp wall stair computer phone machine
    level goal mark question problem test lesson classes course chapter night weekend shift session event day
    date birthday party parties gift present decoration candle pill dose load bar drop scoop bunch bunches daps
    monkey chore text message email call visit click follower jellybean contestant participant guest farmer
    sibling brother sister twin tooth teeth gumball pastry pastries tie vehicle mouse mice goose geese hen chip
    rope pole post tower bridge street shop store market sale order sample trial toss flip draw hand deck suit
    rook queen pawn knight bishop pearl diamond ruby gem graph cycle polygon pentagon hexagon sphere cone ray
    intersection crossing partition function polynomial matrix matrices vector sequence string tuple prime
    number
    """
_CLASSIFIERS = (
    "个 只 本 张 条 件 人 名 位 次 天 年 月 岁 元 米 厘米 千米 公里 克 千克 小时 分钟 秒 种 块 支 辆 棵 头 円 度"
)
_MEASURED = "米 m 厘米 cm 千米 km 公里 km 克 g 千克 kg 小时 h 分钟 min 秒 s 元 元 円 ¥ 度 degree"
_CLASSIFIED = dict(zip(_MEASURED.split()[::2], _MEASURED.split()[1::2], strict=True))
_SYMBOLS_OF_MONEY = {"$": r"\$", "£": "£", "€": "€", "₹": "₹", "¥": "¥", "₩": "₩", "₽": "₽"}

JOINING = words_of("per of a an each every the / in")
"""Words that occur within a unit (``dollars per hour``) but cannot start one."""
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
FILLERS = words_of(
    "the a an answer is are final result equals equal to total altogether exactly approximately approx "
    "value of different distinct possible ordered positive real us unique"
)
"""Words without meaning before a number or its unit."""
_TRAILING_FILLERS = words_of("total altogether exactly away long old tall wide high each apart only left remaining")


def _read_table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for kind, entries in _KINDS.items():
        for entry in entries.split(";"):
            names, _, size = entry.partition("=")
            for name in names.split():
                found.setdefault(
                    name, Unit(kind if Fraction(size) else f"{kind}: {names.split()[0]}", Fraction(size))
                )
    return found


UNITS = _read_table()
_SIGNS_ONLY = ("percent", "angle", "temperature")
_COUNTED_WORDS = frozenset(_COUNTED.split())
COUNT = Unit("count", Fraction(1))


def unit_named(name: str) -> Unit | None:
    """The unit with this name or symbol, in the singular or the plural; None if there is none."""
    word = name.strip().rstrip(".")
    if word in _SYMBOLS_OF_MONEY:
        return UNITS[_SYMBOLS_OF_MONEY[word]]
    if word in _CLASSIFIERS.split():
        return UNITS.get(_CLASSIFIED.get(word, ""), COUNT) if word in _CLASSIFIED else COUNT
    if len(word) == 1:
        return UNITS.get(word) or (UNITS["l"] if word == "L" else None)
    word = word.lower()
    for form in (word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)):
        if form in UNITS:
            return UNITS[form]
        if form in _COUNTED_WORDS:
            return COUNT
    return None


def is_trailing_filler(word: str) -> bool:
    """Whether a word has no meaning after a number or its unit: ``12 in total``, ``5 miles away``."""
    return word.lower() in _TRAILING_FILLERS


class Measure(NamedTuple):
    """The unit of a number: its kinds with their powers, and its size."""

    kinds: tuple[tuple[str, int], ...] = ()
    size: Fraction = Fraction(1)


def read_measure(tokens: Sequence[Token]) -> Measure | None:
    r"""Parse all tokens as a unit: ``square feet``, ``\text{m/s}^2``, ``%``; None if they contain anything else."""
    powers: dict[str, int] = {}
    size = Fraction(1)
    place, sign, times = 0, 1, 1
    counted = False
    named = bool(tokens) and all(is_trailing_filler(token.text) or token.text == "in" for token in tokens)
    while place < len(tokens):
        token = tokens[place]
        word = token.text.lower().rstrip(".")
        place += 1
        if word in POWERS:
            place += place < len(tokens) and tokens[place].text == "."
            after = unit_named(tokens[place].text) if place < len(tokens) else None
            if after is None or after.kind not in ("length", "count"):
                return None
            if after.kind == "count" and not tokens[place].text.startswith("unit"):
                return None
            times = POWERS[word]
            continue
        if word in ("/", "per", "a", "an", "each", "every") and named:
            sign = -1
            continue
        if (token.kind == "sign" and word in (".", "-", "")) or (word == r"\cdot" and named):
            continue
        if is_trailing_filler(word) or (place < len(tokens) and (word in JOINING or word in FILLERS)):
            continue
        if token.text == "^" and place < len(tokens):
            unit, place = _circle(tokens, place)
        else:
            unit = unit_named(token.text)
        if unit is None:
            return None
        if unit.kind == "angle" and place < len(tokens) and tokens[place].text in ("C", "F"):
            unit = UNITS["celsius" if tokens[place].text == "C" else "fahrenheit"]
            place += 1
        raised, place = _exponent(tokens, place)
        power = sign * times * raised
        counted = counted or unit.kind == "count"
        if unit.kind != "count":
            powers[unit.kind] = powers.get(unit.kind, 0) + power
            size *= unit.size**power if unit.size else 1
        named, times = True, 1
    kinds = tuple(sorted((kind, power) for kind, power in powers.items() if power))
    if counted and not kinds:
        kinds = (("count", 1),)
    doubled = any(kind in _SIGNS_ONLY and power != 1 for kind, power in kinds)
    return Measure(kinds, size) if named and not doubled else None


def _circle(tokens: Sequence[Token], place: int) -> tuple[Unit | None, int]:
    """The degrees of ``^\\circ``, and the position after it."""
    texts = [token.text for token in tokens[place : place + 3]]
    if texts[:1] == [r"\circ"]:
        return UNITS[r"\circ"], place + 1
    return (UNITS[r"\circ"], place + 3) if texts == ["{", r"\circ", "}"] else (None, place)


def _exponent(tokens: Sequence[Token], place: int) -> tuple[int, int]:
    """The exponent at a position, 1 if there is none, and the position after it."""
    texts = [token.text for token in tokens[place : place + 5]]
    if texts[:1] != ["^"]:
        return 1, place
    for start, end in ((1, 2), (2, 3), (3, 4)):
        number = "".join(texts[1:end]).strip("{")
        if re.fullmatch(r"-?[1-4]", number) and start == end - 1:
            braced = texts[1] == "{"
            return int(number), place + end + (1 if braced else 0)
    return 1, place
