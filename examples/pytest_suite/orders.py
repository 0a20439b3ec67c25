"""The code under test."""


def total(prices: list[int], discount: int = 0) -> int:
    """Return the sum of the prices, less a discount in percent."""
    amount = 0
    for price in prices:
        amount += price
    return amount * (100 - discount) // 100
