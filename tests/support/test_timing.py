import numpy as np
import pytest
import torch

from vitfx.support import timing as latency
from vitfx.support.errors import UserError
from vitfx.support.timing import Timing, batch_to_time, ratio, speed_up, time_interleaved


class Clock:
    """A clock that only the runs push on; `log` holds what happened, in order."""

    def __init__(self, monkeypatch):
        self.now = 0
        self.log = []
        monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: self.now)

    def run(self, name, milliseconds):
        """A run that takes the next of `milliseconds`, the last one again and again."""
        left = list(milliseconds)

        def body():
            self.log.append(name)
            self.now += int(1e6 * (left.pop(0) if len(left) > 1 else left[0]))

        return body


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_turns_rotate_after_the_warm_up(clock):
    runs = {name: clock.run(name, [1]) for name in "abc"}
    timings = time_interleaved(runs, warmup=2, rounds=4)
    assert "".join(clock.log) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert list(timings) == ["a", "b", "c"]
    assert all(timing.rounds == 4 for timing in timings.values())


def test_medians_and_spread_leave_the_warm_up_out(clock):
    runs = {"a": clock.run("a", [999, 10, 20, 30, 40, 50]), "b": clock.run("b", [999, 5])}
    timings = time_interleaved(runs, warmup=1, rounds=5)
    assert timings["a"].samples_ms == (10, 20, 30, 40, 50)
    assert (timings["a"].p10_ms, timings["a"].median_ms, timings["a"].p90_ms) == (14, 30, 46)
    assert timings["b"].to_json() == {"median_ms": 5, "p10_ms": 5, "p90_ms": 5, "rounds": 5}


def test_rounds_go_on_until_the_time_is_spent(clock):
    heard = []
    runs = {"a": clock.run("a", [100]), "b": clock.run("b", [150])}
    timings = time_interleaved(
        runs, warmup=0, rounds=2, min_seconds=1, progress=lambda done, total: heard.append((done, total))
    )
    assert timings["a"].rounds == 4
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_rounds_are_kept_where_the_time_is_spent_early(clock):
    heard = []
    runs = {"a": clock.run("a", [1000])}
    time_interleaved(runs, warmup=0, rounds=3, min_seconds=1, progress=lambda *now: heard.append(now))
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("milliseconds", "rounds", "log", "expected"),
    [
        (5_000, 15, "a" * 4, [(1, 3), (2, 3), (3, 3)]),  # Slower than the limit: one warm-up, three rounds.
        (500, 15, "a" * (1 + 4), [(1, 4), (2, 4), (3, 4), (4, 4)]),
        (10, 15, "a" * (3 + 15), [(done, 15) for done in range(1, 16)]),  # Fast enough for all.
        (5_000, 2, "a" * 3, [(1, 2), (2, 2)]),
    ],
)
def test_a_slow_run_ends_early(clock, milliseconds, rounds, log, expected):
    heard = []
    runs = {"a": clock.run("a", [milliseconds])}
    time_interleaved(runs, rounds=rounds, max_seconds=2, progress=lambda *now: heard.append(now))
    assert ("".join(clock.log), heard) == (log, expected)


def test_rounds_go_on_until_the_times_are_settled_or_the_limit_is_reached(clock):
    looked = []

    def settled(timings):
        looked.append(timings["a"].rounds)
        return timings["a"].rounds >= 12

    runs = {"a": clock.run("a", [100])}
    assert time_interleaved(runs, rounds=10, settled=settled)["a"].rounds == 12
    assert looked == [10, 12]
    assert time_interleaved(runs, rounds=10, max_seconds=1.05, settled=lambda _: False)["a"].rounds == 11


def test_the_interval_of_a_speed_up_holds_the_truth_and_narrows():
    rng = np.random.default_rng(0)

    def measured(rounds, noise):
        slow, fast = (tuple(base * (1 + noise * rng.exponential(size=rounds))) for base in (30.0, 20.0))
        return speed_up(Timing(slow), Timing(fast))

    held = [estimate.low <= 1.5 <= estimate.high for estimate in (measured(40, 0.1) for _ in range(50))]
    assert sum(held) >= 40
    assert measured(400, 0.1).width < measured(20, 0.1).width < measured(20, 1.0).width
    assert str(speed_up(Timing((3.0, 3.0)), Timing((2.0, 2.0)))) == "1.50× (1.50 to 1.50)"


def test_the_device_is_waited_for_inside_the_measured_time(clock):
    def wait():
        clock.log.append("|")
        clock.now += 7_000_000

    timings = time_interleaved({"a": clock.run("a", [3])}, warmup=0, rounds=2, synchronize=wait)
    assert "".join(clock.log) == "|a||a|"
    assert timings["a"].samples_ms == (10, 10)


def test_ratio_of_pairs_withstands_drift():
    # b takes twice as long as a in every round but the disturbed one, while the machine slows down.
    a, b = Timing((10, 20, 400, 40, 50)), Timing((20, 40, 60, 80, 100))
    assert ratio(a, b).paired == 0.5
    assert ratio(a, b).of_medians == pytest.approx(40 / 60)
    with pytest.raises(ValueError, match="5 and 1 rounds"):
        ratio(a, Timing((1,)))


def test_nothing_to_time_and_no_rounds_are_refused(clock):
    with pytest.raises(ValueError, match="nothing to time"):
        time_interleaved({})
    with pytest.raises(UserError, match="rounds is 0"):
        time_interleaved({"a": clock.run("a", [1])}, rounds=0)
    with pytest.raises(UserError, match="warm-up -1"):
        time_interleaved({"a": clock.run("a", [1])}, warmup=-1)


def test_the_real_clock_tells_long_from_short():
    timings = time_interleaved({"long": lambda: sum(range(200_000)), "short": lambda: None}, rounds=5)
    assert timings["long"].median_ms > timings["short"].median_ms > 0


def test_a_batch_to_time_repeats_images_where_there_are_too_few():
    images = torch.randn(3, 2, 1, 1)
    batch = batch_to_time(images, 8)
    assert batch.shape == (8, 2, 1, 1) and torch.equal(batch[:2], batch[6:])
    assert torch.equal(batch_to_time(images, 2), images[:2])
