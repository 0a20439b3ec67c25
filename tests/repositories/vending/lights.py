"""A traffic light that counts seconds."""

PLAN = {"red": ("green", 30), "green": ("yellow", 25), "yellow": ("red", 5)}


class Light:
    """Runs through its plan; a request of a pedestrian shortens green."""

    def __init__(self, color="red"):
        self.color = color
        self.left = PLAN[color][1]
        self.requested = False

    def request(self):
        """A pedestrian wants to cross."""
        self.requested = True
        if self.color == "green" and self.left > 10:
            self.left = 10

    def tick(self, seconds=1):
        """Let time pass; the colors that came."""
        came = []
        while seconds >= self.left:
            seconds -= self.left
            self.color = PLAN[self.color][0]
            self.left = PLAN[self.color][1]
            came.append(self.color)
            if self.color == "red":
                self.requested = False
            elif self.color == "green" and self.requested:
                self.left = 10
        self.left -= seconds
        return came


def cycle():
    """Seconds of a whole cycle without requests."""
    total = 0
    for _, seconds in PLAN.values():
        total += seconds
    return total
