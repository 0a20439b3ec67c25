"""Cutting a text into tokens."""

OPERATORS = "+-*/^(),"


def tokenize(text):
    """Pairs of kind and text: "number", "name", or the operator itself."""
    tokens = []
    at = 0
    while at < len(text):
        character = text[at]
        if character.isspace():
            at += 1
        elif character in OPERATORS:
            tokens.append((character, character))
            at += 1
        elif character.isdigit() or character == ".":
            start = at
            while at < len(text) and (text[at].isdigit() or text[at] == "."):
                at += 1
            tokens.append(("number", text[start:at]))
        elif character.isalpha():
            start = at
            while at < len(text) and text[at].isalnum():
                at += 1
            tokens.append(("name", text[start:at]))
        else:
            raise ValueError(f"unexpected {character!r} at {at}")
    return tokens
