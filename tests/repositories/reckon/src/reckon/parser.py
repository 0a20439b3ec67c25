"""From tokens to trees: ("number", n), ("name", s), ("call", s, [args]), ("neg", x), (operator, left, right)."""

from .tokens import tokenize

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 4}
RIGHT = {"^"}


class ParseError(ValueError):
    """The text is no expression."""


def parse(text):
    """The tree of an expression."""
    try:
        parser = Parser(tokenize(text))
    except ValueError as error:
        raise ParseError(str(error)) from None
    tree = parser.expression(1)
    if parser.kind is not None:
        raise ParseError(f"unexpected {parser.kind!r}")
    return tree


class Parser:
    """Precedence climbing over a list of tokens."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.at = 0

    @property
    def kind(self):
        """Kind of the token at hand, None at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else None

    def advance(self, expected=None):
        """Take a token."""
        if expected is not None and self.kind != expected:
            raise ParseError(f"expected {expected!r}, got {self.kind!r}")
        if self.kind is None:
            raise ParseError("unexpected end")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def expression(self, least):
        """An expression of operators that bind at least so strongly."""
        left = self.operand()
        while self.kind in PRECEDENCE and PRECEDENCE[self.kind] >= least:
            operator = self.advance()
            stronger = PRECEDENCE[operator] + (0 if operator in RIGHT else 1)
            left = (operator, left, self.expression(stronger))
        return left

    def operand(self):
        """A number, a name, a call, or something in parentheses."""
        if self.kind == "-":
            self.advance()
            return ("neg", self.expression(3))
        if self.kind == "(":
            self.advance()
            inner = self.expression(1)
            self.advance(")")
            return inner
        if self.kind == "number":
            text = self.advance()
            return ("number", float(text) if "." in text else int(text))
        name = self.advance("name")
        if self.kind != "(":
            return ("name", name)
        self.advance()
        arguments = []
        while self.kind != ")":
            arguments.append(self.expression(1))
            if self.kind != ")":
                self.advance(",")
        self.advance(")")
        return ("call", name, arguments)
