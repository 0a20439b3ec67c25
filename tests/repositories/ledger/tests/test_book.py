import pytest

from ledger.book import Book, Refused, interest, statement


@pytest.fixture
def book():
    book = Book()
    book.open("ann", overdraft=5000)
    book.open("bob")
    book.deposit("ann", 10000, day=1)
    return book


class TestTransfers:
    def test_transfer(self, book):
        book.transfer("ann", "bob", 2500, day=2)
        assert book.accounts["ann"].balance() == 7500
        assert book.accounts["bob"].balance() == 2500
        assert book.total() == 10000

    def test_overdraft(self, book):
        book.transfer("ann", "bob", 15000, day=2)
        assert book.accounts["ann"].balance() == -5000
        with pytest.raises(Refused, match="too little"):
            book.transfer("ann", "bob", 1, day=2)

    def test_refused(self, book):
        for arguments in [("bob", "ann", 1, 1), ("ann", "ann", 1, 1), ("ann", "bob", 0, 1)]:
            with pytest.raises(Refused):
                book.transfer(*arguments)


def test_open_twice(book):
    with pytest.raises(Refused, match="ann exists"):
        book.open("ann")


def test_deposit_is_positive(book):
    with pytest.raises(Refused):
        book.deposit("ann", 0, day=3)


def test_load(book):
    lines = ["# day,source,target,amount", "2,ann,bob,10.50", "", '3,,bob,"1,000"']
    assert book.load(lines) == 2
    assert book.accounts["bob"].entries == [(2, 1050), (3, 100000)]


def test_balance_of_a_day(book):
    book.deposit("ann", 500, day=4)
    assert book.accounts["ann"].balance(1) == 10000
    assert book.accounts["ann"].balance(4) == 10500


def test_interest(book):
    assert interest(book.accounts["ann"], 0.0365, 1, 10) == 10
    assert interest(book.accounts["bob"], 0.0365, 1, 10) == 0


def test_statement(book):
    book.transfer("ann", "bob", 1234, day=5)
    assert statement(book.accounts["ann"], 2, 6) == ["before: 100.00", "5: -12.34 = 87.66"]
