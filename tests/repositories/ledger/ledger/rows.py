"""Comma-separated values with quotes."""


def split(line, separator=","):
    """The fields of a line; quotes protect separators, two quotes are one."""
    fields = []
    field = ""
    quoted = False
    at = 0
    while at < len(line):
        character = line[at]
        if quoted:
            if character == '"' and line[at + 1 : at + 2] == '"':
                field += '"'
                at += 1
            elif character == '"':
                quoted = False
            else:
                field += character
        elif character == '"' and not field:
            quoted = True
        elif character == separator:
            fields.append(field)
            field = ""
        else:
            field += character
        at += 1
    if quoted:
        raise ValueError("a quote is not closed")
    fields.append(field)
    return fields


def join(fields, separator=","):
    """A line that `split` reads."""
    out = []
    for field in fields:
        if separator in field or '"' in field:
            escaped = field.replace('"', '""')
            out.append(f'"{escaped}"')
        else:
            out.append(field)
    return separator.join(out)


def cents(text):
    """Amount in cents of "12.5", "-3" or "1,000.25"."""
    text = text.replace(",", "").strip()
    negative = text.startswith("-")
    whole, _, rest = text.lstrip("-").partition(".")
    if len(rest) > 2:
        raise ValueError(f"too many decimals in {text}")
    amount = int(whole or "0") * 100 + int((rest + "00")[:2])
    return -amount if negative else amount
