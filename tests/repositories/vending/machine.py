"""A vending machine: idle, selecting, paid, out of order."""

COINS = (200, 100, 50, 20, 10, 5)


class InvalidAction(Exception):
    """The action is not possible in the present state."""


class Machine:
    """Sells items for coins, in cents."""

    def __init__(self, stock):
        self.stock = dict(stock)
        self.state = "idle"
        self.paid = 0
        self.selected = None
        self.sales = []

    def select(self, item):
        """Choose an item, or another one."""
        self._expect("idle", "selecting")
        if item not in self.stock:
            raise KeyError(item)
        price, count = self.stock[item]
        if count == 0:
            raise InvalidAction(f"{item} is sold out")
        self.selected = item
        self.state = "selecting"
        return price - self.paid

    def insert(self, coin):
        """Pay; what is still owed."""
        self._expect("selecting")
        if coin not in COINS:
            raise ValueError(f"no coin of {coin}")
        self.paid += coin
        price, _ = self.stock[self.selected]
        if self.paid >= price:
            self.state = "paid"
        return max(price - self.paid, 0)

    def take(self):
        """Take the item: its name and the change."""
        self._expect("paid")
        price, count = self.stock[self.selected]
        self.stock[self.selected] = (price, count - 1)
        self.sales.append((self.selected, price))
        item, back = self.selected, change(self.paid - price)
        self._reset()
        return item, back

    def cancel(self):
        """Get all coins' worth back."""
        self._expect("selecting", "paid")
        back = change(self.paid)
        self._reset()
        return back

    def service(self, broken):
        """Take out of order, or back into service."""
        if broken:
            self.state = "out of order"
        else:
            self._expect("out of order")
            self._reset()

    def turnover(self):
        """Sum of all sales, by item."""
        totals = {}
        for item, price in self.sales:
            totals[item] = totals.get(item, 0) + price
        return totals

    def _expect(self, *states):
        if self.state not in states:
            raise InvalidAction(f"not possible: {self.state}")

    def _reset(self):
        self.state = "idle"
        self.paid = 0
        self.selected = None


def change(amount):
    """Fewest coins that make an amount."""
    coins = []
    for coin in COINS:
        while amount >= coin:
            coins.append(coin)
            amount -= coin
    if amount:
        raise ValueError(f"{amount} cannot be paid out")
    return coins
