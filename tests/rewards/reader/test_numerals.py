"""Numbers in texts: exact values, what is a sign and what an operator, and texts built to hang a parser."""

from fractions import Fraction

import pytest

from r1jax.rewards.reader.numerals import MAX_DIGITS, Numeral, find_last_numeral, read_numeral, same_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", "72"),
        (" 72. ", "72"),
        ("-3", "-3"),
        ("- 3", "-3"),
        ("−3", "-3"),
        ("–3", "-3"),
        ("007", "7"),
        ("1,234", "1234"),
        ("1,234,567.50", "1234567.5"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        (r"12,\!345", "12345"),
        ("0.1", "1/10"),
        (".5", "1/2"),
        ("2.50", "5/2"),
        ("1/3", "1/3"),
        ("-1/3", "-1/3"),
        ("1 / 3", "1/3"),
        ("2 1/2", "5/2"),
        ("1.5/3", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"-\dfrac{1}{2}", "-1/2"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"\frac12", "1/2"),
        (r"2\frac{1}{2}", "5/2"),
        (r"\frac{1,000}{2}", "500"),
        ("$18", "18"),
        ("-$18", "-18"),
        ("$-18", "-18"),
        (r"\$18.00", "18"),
        ("€ 18", "18"),
        ("$18$", "18"),
        ("$$18$$", "18"),
        (r"\(18\)", "18"),
        (r"\[ 18 \]", "18"),
        ("**18**", "18"),
        (r"\text{18}", "18"),
        (r"$\mathbf{18}$.", "18"),
        ("1.5e3", "1500"),
        ("2E-2", "1/50"),
        ("x = 5", "5"),
        ("72 clips", "72"),
        ("5 cm.", "5"),
        (r"5 \text{ cm}", "5"),
        (r"5\text{ square feet}", "5"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        ("90°", "90"),
        ("", None),
        (".", None),
        ("-", None),
        ("$", None),
        ("seven", None),
        ("3 4", None),
        ("3, 4", None),
        ("12,34", None),
        ("3 + 4", None),
        ("10 - 3", None),
        ("3 or 4", None),
        ("$3$ or $4$", None),
        ("5x", None),
        ("5 x", None),
        ("2^3", None),
        (r"2\pi", None),
        ("7 million", None),
        ("The answer is 7", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1.2.3", None),
    ],
)
def test_read_numeral(text, value):
    numeral = read_numeral(text)
    assert (numeral and numeral.value) == (None if value is None else Fraction(value))


@pytest.mark.parametrize("text", ["50%", r"50\%", "50 %", "50 percent", "50 per cent", r"$50\%$"])
def test_percent(text):
    percent = read_numeral(text)
    assert percent == Numeral(Fraction(50), percent=True)
    assert same_value(percent, Numeral(Fraction(1, 2)))
    assert same_value(Numeral(Fraction(50)), percent)
    assert not same_value(percent, Numeral(Fraction(5000), percent=True))
    assert not same_value(percent, Numeral(Fraction(5)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Natalia sold 48/2 = 24 clips in May, 72 in all.", "72"),
        ("It is 1,234.50 dollars.", "1234.5"),
        ("so 5-3", "3"),
        ("so 5 - 3", "3"),
        ("x-3", "3"),
        ("between 10–20", "20"),
        ("gives = -3", "-3"),
        ("(-3)", "-3"),
        ("gives −3.", "-3"),
        ("a loss of -$5!", "-5"),
        ("the answer is...72", "72"),
        ("the answer is.72", "72"),
        ("it is .72", "18/25"),
        ("the answer is 3/4.", "3/4"),
        ("the answer is 2 1/2 pies", "5/2"),
        (r"thus \boxed{\frac{3}{4}}", "3/4"),
        ("1, 2, 3, 4", "4"),
        ("- 5", "5"),
        ("50% of it, so 8", "8"),
        ("no number", None),
        ("", None),
        ("5 and then 1/0", None),
    ],
)
def test_find_last_numeral(text, value):
    numeral = find_last_numeral(text)
    assert (numeral and numeral.value) == (None if value is None else Fraction(value))


def test_numbers_of_a_thousand_digits_are_exact_and_longer_ones_have_no_value():
    digits = "9" * MAX_DIGITS
    assert read_numeral(digits) == Numeral(Fraction(10**MAX_DIGITS - 1))
    assert read_numeral(digits + "9") is None
    assert find_last_numeral(f"3 {digits}9") is None
    assert read_numeral("1e1000") is not None
    assert read_numeral("1e1001") is None
    assert read_numeral("1e999999999") is None


@pytest.mark.parametrize(
    "text",
    [
        "7" * 10**6,
        "1," * 500_000,
        "1,234" * 200_000,
        "1/" * 500_000,
        "1 " * 500_000,
        " " * 10**6,
        "1" + " " * 10**6 + "x",
        "-" * 10**6,
        "$" * 10**6,
        "." * 10**6,
        "1e" * 500_000,
        "1." * 500_000,
        r"\frac{" * 160_000,
        r"1\frac{1}" * 100_000,
        r"\text{" * 160_000,
        "{,}" * 330_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_megabytes_do_not_hang(text):
    find_last_numeral(text)
    assert read_numeral(text) is None
    read_numeral(text[:5000])
