# SPDX-License-Identifier: GPL-2.0-only
"""Waits: what ends them, and which time counts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from orchestrator.errors import LostVM
from orchestrator.machine import waiting
from orchestrator.machine.faults import Silent
from orchestrator.machine.waiting import Reader, Silence, Stopwatch, until


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_wait_ends_when_it_has_come_true_or_when_the_time_is_up(clock: Clock) -> None:
    assert until(lambda: clock.now > 1005, 10, lambda: None)
    start = clock.now
    assert not until(lambda: False, 10, lambda: None)
    assert 10 <= clock.now - start < 11


def test_an_observer_ends_a_wait(clock: Clock) -> None:
    def check() -> None:
        if clock.now > 1001:
            raise LostVM("QEMU was killed")

    with pytest.raises(LostVM):
        until(lambda: False, 600, check)
    assert clock.now < 1001.2


def test_time_in_which_this_process_was_stopped_is_not_waited(clock: Clock) -> None:
    """Ctrl-Z, or a laptop whose lid was closed."""
    turns = iter(range(1000))

    def predicate() -> bool:
        if next(turns) == 5:
            clock.pass_(3600)
        return clock.now > 4603

    assert until(predicate, 10, lambda: None)
    watch = Stopwatch()
    clock.pass_(3600)
    assert watch.poll() == waiting.LONGEST_LAP


def silence(clock: Clock, signs: Iterator[int], seconds: float) -> Silence:
    """One that was listened to for `seconds`, 20 times a second."""
    silence = Silence()
    silence.signs.append(lambda: next(signs))
    with silence.limit(60):
        for _ in range(round(seconds * 20)):
            clock.pass_(0.05)
            silence.listen()
    return silence


def test_a_guest_that_is_heard_from_may_take_its_time(clock: Clock) -> None:
    silence(clock, iter(range(10_000)), 600)


def test_a_silent_guest_is_given_up(clock: Clock) -> None:
    with pytest.raises(
        Silent, match="timed out after 60 s waiting for a sign of life from the guest"
    ):
        silence(clock, iter([1] * 10_000), 600)
    assert 60 < clock.now - 1000 < 63


def test_silence_while_nobody_waits_does_not_count(clock: Clock) -> None:
    quiet = Silence()
    quiet.signs.append(lambda: 1)
    with quiet.limit(60):
        for _ in range(50):  # something else takes 100 s again and again
            clock.pass_(100)
            quiet.listen()


def test_a_guest_that_is_stopped_may_be_silent(clock: Clock) -> None:
    quiet = Silence()
    quiet.signs.append(lambda: 1)
    with quiet.limit(60), quiet.limit(None):
        for _ in range(5000):
            clock.pass_(0.5)
            quiet.listen()


def test_a_reader_that_ends_by_an_exception_says_so() -> None:
    def read() -> None:
        raise ValueError("what is this")

    reader = Reader("the console", read)
    reader.start()
    reader.join(5)
    assert reader.lost == "the console is no longer read: ValueError: what is this"
    reader.lose("something else")
    assert "ValueError" in reader.lost
