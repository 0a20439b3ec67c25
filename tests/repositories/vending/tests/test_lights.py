from lights import Light, cycle


def test_plan():
    light = Light()
    assert light.tick(29) == []
    assert light.tick(1) == ["green"]
    assert light.tick(30) == ["yellow", "red"]


def test_request_shortens_green():
    light = Light("green")
    light.request()
    assert light.tick(9) == []
    assert light.tick(1) == ["yellow"]


def test_request_is_kept_until_red():
    light = Light("red")
    light.request()
    assert light.tick(40) == ["green", "yellow"]
    assert light.requested
    light.tick(5)
    assert not light.requested


def test_late_request_changes_nothing():
    light = Light("green")
    light.tick(20)
    light.request()
    assert light.left == 5


def test_cycle():
    assert cycle() == 60
    light = Light()
    light.tick(cycle() * 3)
    assert (light.color, light.left) == ("red", 30)
