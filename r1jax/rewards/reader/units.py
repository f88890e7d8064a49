r"""Units of measure after a number, in words or LaTeX, with powers and quotients: a closed list.

`cm`, `\text{ cm}^2`, `square feet`, `km/h`, `miles per hour`, `^\circ`, `dollars a day`, `years old`: each phrase has a
normal form (`cm^2`, `km h^-1`), and units are equal if their normal forms are. Nothing is converted: 100 cm is not 1 m
here. Counted things (`7 apples`) are units as well. Any other word changes a number: `3 pi`, `7 times`, `5 million`
have no unit, and are not numbers.
"""

import re
from collections import Counter

from r1jax.rewards.reader.counted import COUNTED, singular

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

# Units separated by |: the name used here, then other spellings. Plurals of words of three letters or more are known.
_MEASURES = """
mm millimeter millimetre|cm centimeter centimetre|dm decimeter decimetre|m meter metre|km kilometer kilometre
nm nanometer|inch in inches|foot feet ft|yard yd|mile mi|mg milligram milligramme|g gram gramme gm
kg kilogram kilogramme kilo|tonne ton|ounce oz|lb pound|ml mL milliliter millilitre|cl cL centiliter|dl dL
l L liter litre|gallon gal|quart qt|pint pt|cup|tablespoon tbsp|teaspoon tsp|acre|hectare ha|ms millisecond
s sec second|min minute|h hr hour|day|week wk|month|year yr|decade|century centuries|Hz hertz|kHz kilohertz|MHz|GHz
N newton|J joule|kJ kilojoule|W watt|kW kilowatt|kWh|MW megawatt|V volt|mV|A amp ampere|mA|Pa pascal|kPa|atm|bar
mol mole|eV electronvolt|keV|MeV|cal calorie kcal|kB kilobyte KB|MB megabyte|GB gigabyte|TB terabyte|byte|bit
degree deg|radian rad|dollar buck USD|cent|euro EUR|yen|rupee rs Rs|peso|franc|unit|percentage|knot|mph|kph kmh|ppm
dB decibel|Ω ohm|lumen|tick
""".strip().replace("\n", "|")
_ALIASES: dict[str, str] = {}
for _line in _MEASURES.split("|"):
    for _alias in _line.split():
        _ALIASES.setdefault(_alias, _line.split()[0])
_WRITTEN_OUT = {"mph": ("mile", "h"), "kph": ("km", "h"), "kmh": ("km", "h")}
# Words of a phrase that do not change the unit.
_FILLERS = frozenset(
    "of them left possible different the for in total altogether old long away tall wide deep all together each".split()
)
_PER = frozenset(("per", "/", "a", "an", "each", "every"))
# Words that calculate, choose or compare: a phrase that contains one is not a unit.
_OTHER_WORDS = frozenset(
    "hundred thousand million billion trillion dozen half halves third thirds quarter quarters tenth tenths hundredths "
    "thousandths fifth fifths score gross lakh crore k bn mn pi times factorial squared cubed plus minus less more "
    "fewer than or and to not but through until between about percent percentage points mod modulo choose over by root "
    "equals is are was if remainder".split()
)
_FLATTENED = re.compile(r"\\(?:text(?:rm|it|bf|up)?|mathrm|mathit|mathbf|mbox|operatorname|rm|it|bf|hbox)(?![a-zA-Z])")
_DEGREES = re.compile(r"(?:\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree)(?![a-zA-Z])")
_PLAIN_POWER = re.compile(r"\^ ?\{? ?(-?[1-9]) ?\}?")
_TOKENS = re.compile(r"[A-Za-zµΩ]+'?|\^-?[1-9]|[/*]|(?P<odd>[^\s])")
_HSPACE = re.compile(r"\\[hv]space ?\{[^{}]*\}")
_MAX_LENGTH = 120
_ATTACHED = re.compile(r"[A-Za-zµΩ]{2,}(?![A-Za-z])|\\|\^|/|°")


def read_unit(phrase: str) -> str | None:
    r"""Normal form of the unit phrase after a number (`" km/h"`, `"\text{ cm}^2"`); "" if it is empty.

    None if the phrase is not a unit, or if a unit of one letter follows the number directly (`5m` may be five times m).
    """
    if len(phrase) > _MAX_LENGTH:
        return None
    if not phrase.strip(" ."):
        return ""
    if phrase in ("'", '"'):
        return "foot" if phrase == "'" else "inch"
    if phrase[0] not in " \\{(^/-~" and not _ATTACHED.match(phrase):
        return None
    phrase = _DEGREES.sub(" degree ", _FLATTENED.sub(" ", phrase))
    phrase = _HSPACE.sub(" ", phrase)
    phrase = re.sub(r"\\cdot(?= ?[a-zA-Z\\{])", " ", phrase.replace(r"\Omega", "Ω"))
    phrase = _PLAIN_POWER.sub(r"^\1", phrase.replace(r"\mu", "µ").replace(r"\$", " dollar "))
    phrase = re.sub(r"\([^()]*\)$", "", phrase) if re.search(r"\([a-z -]+\)$", phrase) else phrase
    phrase = re.sub(r"[{}~()\[\]]|(?<=[a-z])\.(?= |$)|(?<=[a-zA-Z])-(?=[a-zA-Z])", " ", phrase)
    phrase = re.sub(r"\bin (?:total|all)\b", "", phrase)
    phrase = (
        re.sub(r"\bout of (?:the )?[0-9]{1,9}(?: [a-z]+)?$", "", phrase)
        if re.match(" [a-z]+ out of", phrase)
        else phrase
    )
    tokens = list(_TOKENS.finditer(phrase))
    if not tokens or any(token["odd"] for token in tokens):
        return "" if not tokens else None
    return _spell([token[0] for token in tokens])


def _spell(words: list[str]) -> str | None:
    powers: Counter[str] = Counter()
    sign, raised, last = 1, 1, ""
    for number, word in enumerate(words):
        lower = word.lower()
        if lower in ("square", "sq", "cubic", "cu"):
            raised = 2 if lower[0] == "s" else 3
        elif lower in ("squared", "cubed") and last:
            powers[last] *= 2 if lower == "squared" else 3
        elif word[0] == "^":
            if not last:
                return None
            powers[last] += (int(word[1:]) - 1) * (1 if powers[last] > 0 else -1)
        elif word in _PER and (number > 0 or word in ("per", "/")):
            sign = -1
        elif (unit := _find_unit(word)) is not None:
            for part in unit:
                powers[part] += sign * raised
                sign = -1 if len(unit) > 1 else sign
            last, raised = unit[0], 1
        elif word == "*" or lower in _FILLERS:
            continue
        elif lower in _OTHER_WORDS or not _ends_in_thing(words[number:]):
            return None  # an adjective before a counted thing may be any word: `7 red apples`
    powers.pop("unit", None)
    if "degree" in powers and len(words) > 1 and words[-1].lower() in ("c", "f", "celsius", "fahrenheit"):
        powers[words[-1][0].lower()] = 1
    return " ".join(unit if power == 1 else f"{unit}^{power}" for unit, power in sorted(powers.items()) if power)


def _find_unit(word: str) -> tuple[str, ...] | None:
    for spelled in (word, word.lower()) if len(word) > 2 else (word,):
        for form in (spelled, spelled.removesuffix("s") if len(spelled) > 2 else spelled):
            name = _ALIASES.get(form)
            if name is not None:
                return _WRITTEN_OUT.get(name, (name,))
    thing = singular(word.lower())
    return (thing,) if thing in COUNTED and len(word) > 2 else None


def _ends_in_thing(words: list[str]) -> bool:
    """Whether only words that do not calculate come before a counted thing."""
    if len(words) > 4 or not all(
        word.isalpha() and word.lower() not in _OTHER_WORDS and len(word) > 1 for word in words
    ):
        return (
            words[-1:] in (["C"], ["F"], ["Celsius"], ["Fahrenheit"], ["celsius"], ["fahrenheit"]) and len(words) == 1
        )
    return singular(words[-1].lower()) in COUNTED or len(words) == 1 and words[0].lower() in ("celsius", "fahrenheit")
