"""Double-entry accounts."""

from dataclasses import dataclass, field

from .rows import cents, split


class Refused(ValueError):
    """A transfer that is not allowed."""


@dataclass
class Account:
    """Its entries are pairs of a day and cents."""

    name: str
    overdraft: int = 0
    entries: list = field(default_factory=list)

    def balance(self, day=None):
        """Sum of all entries, up to and with a day."""
        return sum(amount for when, amount in self.entries if day is None or when <= day)

    def available(self):
        """Return the amount that can be withdrawn."""
        return self.balance() + self.overdraft


class Book:
    """All accounts."""

    def __init__(self):
        self.accounts = {}

    def open(self, name, overdraft=0):
        """A new account."""
        if name in self.accounts:
            raise Refused(f"{name} exists")
        account = Account(name, overdraft)
        self.accounts[name] = account
        return account

    def deposit(self, name, amount, day):
        """Put money in."""
        if amount <= 0:
            raise Refused("a deposit is positive")
        self.accounts[name].entries.append((day, amount))

    def transfer(self, source, target, amount, day):
        """Move money between accounts."""
        if source == target:
            raise Refused("source and target are the same")
        if amount <= 0:
            raise Refused("a transfer is positive")
        if self.accounts[source].available() < amount:
            raise Refused(f"{source} has too little")
        self.accounts[source].entries.append((day, -amount))
        self.accounts[target].entries.append((day, amount))

    def load(self, lines):
        """Do what lines of day, source, target, amount say; an empty source deposits. Returns how many."""
        done = 0
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            day, source, target, amount = split(line.strip())
            if source:
                self.transfer(source, target, cents(amount), int(day))
            else:
                self.deposit(target, cents(amount), int(day))
            done += 1
        return done

    def total(self):
        """Sum of all balances."""
        return sum(account.balance() for account in self.accounts.values())


def interest(account, rate, first, last):
    """Interest in cents on each day's balance, at a yearly rate, for days first to last."""
    total = 0.0
    for day in range(first, last + 1):
        balance = account.balance(day)
        if balance > 0:
            total += balance * rate / 365
    return round(total)


def statement(account, first, last):
    """Lines of day, amount and balance."""
    balance = account.balance(first - 1)
    lines = [f"before: {balance / 100:.2f}"]
    for day, amount in account.entries:
        if first <= day <= last:
            balance += amount
            lines.append(f"{day}: {amount / 100:+.2f} = {balance / 100:.2f}")
    return lines
