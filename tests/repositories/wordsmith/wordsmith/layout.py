"""Texts in lines and columns."""


def wrap(text, width):
    """Break at blanks into lines of at most `width`; a longer word stands alone."""
    lines = []
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        lines.append(line)
    return lines


def justify(words, width):
    """One line of exactly `width`, spare blanks from the left."""
    if len(words) == 1:
        return words[0].ljust(width)
    gaps = len(words) - 1
    blanks = width - sum(len(word) for word in words)
    each, spare = divmod(blanks, gaps)
    parts = []
    for index, word in enumerate(words[:-1]):
        parts.append(word)
        parts.append(" " * (each + (1 if index < spare else 0)))
    parts.append(words[-1])
    return "".join(parts)


def table(rows, separator=" | "):
    """Rows of cells with columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(separator.join(cells).rstrip())
    return "\n".join(lines)
