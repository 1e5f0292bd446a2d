"""Signals that are put off until what is being computed is written: answered once, by whoever handles them."""

import os
import signal
import time

import pytest

from xaibench import interrupt


class Answered(Exception):
    """What the handler of these tests raises."""


@pytest.fixture
def handled():
    """Handle SIGUSR2 by counting it and raising -> the list of signals that were answered."""
    answered = []

    def answer(number, frame):
        answered.append(number)
        raise Answered

    before = signal.signal(signal.SIGUSR2, answer)
    yield answered
    assert signal.getsignal(signal.SIGUSR2) is answer
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_waits_until_it_is_answered(handled):
    with interrupt.put_off(signal.SIGUSR2, 60):
        interrupt.answer()  # nothing has come
        os.kill(os.getpid(), signal.SIGUSR2)
        assert handled == []
        with pytest.raises(Answered):
            interrupt.answer()
        interrupt.answer()
    assert handled == [signal.SIGUSR2]


def test_one_that_comes_again_is_answered_where_it_finds_the_program(handled):
    with interrupt.put_off(signal.SIGUSR2, 60):
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(Answered):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(60)
    assert handled == [signal.SIGUSR2]


def test_one_that_has_waited_for_long_is_answered_too(handled):
    with pytest.raises(Answered), interrupt.put_off(signal.SIGUSR2, 0.1):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(60)
    assert handled == [signal.SIGUSR2]


def test_what_nobody_handles_stays_so():
    before = signal.getsignal(signal.SIGUSR2)
    with interrupt.put_off(signal.SIGUSR2, 60):
        assert signal.getsignal(signal.SIGUSR2) is before


def test_the_work_may_end_before_the_answer(handled):
    with interrupt.put_off(signal.SIGUSR2, 0.2):
        os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.4)
    interrupt.answer()
    assert handled == []
