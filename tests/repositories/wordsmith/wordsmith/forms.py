"""Other forms of a text."""

NUMERALS = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
            (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def slug(text, limit=40):
    """Lower case words joined by hyphens, cut at a word."""
    words = []
    word = ""
    for character in text.lower():
        if character.isalnum():
            word += character
        elif word:
            words.append(word)
            word = ""
    if word:
        words.append(word)
    while len(words) > 1 and len("-".join(words)) > limit:
        words.pop()
    return "-".join(words)[:limit]


def to_roman(number):
    """Roman numeral of 1 to 3999."""
    if not 0 < number < 4000:
        raise ValueError(f"no numeral for {number}")
    out = ""
    for value, sign in NUMERALS:
        while number >= value:
            out += sign
            number -= value
    return out


def from_roman(text):
    """Number of a Roman numeral."""
    values = dict((sign, value) for value, sign in NUMERALS if len(sign) == 1)
    total = 0
    for here, after in zip(text, text[1:] + " "):
        value = values[here]
        if values.get(after, 0) > value:
            total -= value
        else:
            total += value
    return total


def run_lengths(text):
    """Runs of equal characters with their lengths."""
    runs = []
    for character in text:
        if runs and runs[-1][0] == character:
            runs[-1][1] += 1
        else:
            runs.append([character, 1])
    return [(character, length) for character, length in runs]


def caesar(text, shift):
    """Shift letters in the alphabet, others stay."""
    out = []
    for character in text:
        if character.isascii() and character.isalpha():
            base = ord("A") if character.isupper() else ord("a")
            out.append(chr((ord(character) - base + shift) % 26 + base))
        else:
            out.append(character)
    return "".join(out)
