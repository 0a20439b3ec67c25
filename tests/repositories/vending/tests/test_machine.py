import pytest
from machine import InvalidAction, Machine, change


@pytest.fixture
def machine():
    return Machine({"tea": (120, 2), "gum": (35, 0), "nuts": (250, 1)})


def test_purchase(machine):
    assert machine.select("tea") == 120
    assert machine.insert(100) == 20
    assert machine.insert(50) == 0
    assert machine.take() == ("tea", [20, 10])
    assert machine.stock["tea"] == (120, 1)
    assert machine.state == "idle"


def test_sold_out(machine):
    with pytest.raises(InvalidAction, match="gum is sold out"):
        machine.select("gum")


def test_unknown_item(machine):
    with pytest.raises(KeyError):
        machine.select("tar")


def test_change_of_mind(machine):
    machine.select("nuts")
    machine.insert(100)
    assert machine.select("tea") == 20


def test_cancel(machine):
    machine.select("nuts")
    machine.insert(200)
    machine.insert(20)
    assert machine.cancel() == [200, 20]
    assert (machine.paid, machine.state) == (0, "idle")


def test_bad_coin(machine):
    machine.select("tea")
    with pytest.raises(ValueError):
        machine.insert(3)


def test_wrong_order(machine):
    for action in (machine.take, machine.cancel, lambda: machine.insert(10)):
        with pytest.raises(InvalidAction):
            action()


def test_service(machine):
    machine.service(True)
    with pytest.raises(InvalidAction, match="out of order"):
        machine.select("tea")
    machine.service(False)
    assert machine.select("tea") == 120


def test_turnover(machine):
    for _ in range(2):
        machine.select("tea")
        machine.insert(200)
        machine.take()
    assert machine.turnover() == {"tea": 240}


def test_change():
    assert change(0) == []
    assert change(385) == [200, 100, 50, 20, 10, 5]
    with pytest.raises(ValueError):
        change(7)
