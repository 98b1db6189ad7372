"""Virtual time follows from position; events come in order, each at its own time."""

from hvemu.machine.clock import FAR_AWAY, NANOSECONDS_PER_BYTE, VirtualClock


def clock_at(position):
    """A clock whose mode stands at a position that the test can move."""
    clock, place = VirtualClock(), [position]
    clock.position = lambda: place[0]
    return clock, place


def test_time_is_position_times_four_nanoseconds():
    """Nothing else moves the clock."""
    clock, place = clock_at(0)
    place[0] = 25
    assert 25 * NANOSECONDS_PER_BYTE == clock.now()


def test_events_come_in_order_and_see_their_own_time():
    """Late events see the time they were due at; equal times keep the order of scheduling."""
    clock, place = clock_at(0)
    seen = []
    for name, at in (("b", 40), ("a", 8), ("c", 40)):
        clock.schedule(at, lambda name=name: seen.append((name, clock.now())))
    place[0] = 100
    assert 3 == clock.run_due()
    assert [("a", 8), ("b", 40), ("c", 40)] == seen


def test_a_deadline_is_the_first_position_not_before_the_event():
    """Nine nanoseconds are reached by the third byte."""
    clock, _ = clock_at(0)
    assert FAR_AWAY == clock.deadline()
    clock.schedule(9, lambda: None)
    assert 3 == clock.deadline()


def test_cancelled_events_are_forgotten():
    """They neither happen nor set a deadline."""
    clock, place = clock_at(0)
    clock.schedule(8, lambda: 1 / 0).cancel()
    place[0] = 100
    assert (FAR_AWAY, 0) == (clock.deadline(), clock.run_due())


def test_an_earlier_event_shortens_the_run():
    """The mode is told the new position, unless the event was not the earliest."""
    clock, _ = clock_at(0)
    told = []
    clock.shorten = told.append
    for at in (400, 800, 40):
        clock.schedule(at, lambda: None)
    assert [100, 10] == told
