"""Tests of signals during a call: no deadlock, no leak, no unexpected error."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The start of every program: a timer that fires at random times.
_BEGINNING = """
import faulthandler, os, random, signal, sys, threading, time
from dstash import Client
from dstash.errors import ClosedError, DStashError

faulthandler.dump_traceback_later(60, exit=True)
seeds = sys.argv[1:]
chance = random.Random(7)

def arm(longest):
    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, longest))

def disarm():
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


def run(program: str, seeds: list[str]) -> str:
    """Run a program in a separate process and return its output."""
    text = _BEGINNING + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", text, *seeds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_signal_handler_makes_calls_during_calls(seeds: list[str]) -> None:
    """Handler and program use the same client, which often has no connection yet."""
    printed = run(
        """
        handled = failed = 0

        def handler(number, frame):
            global handled, failed
            try:
                client.put("signals", f"h{handled}", handled)
                assert client.lookup("signals", f"h{handled}") == handled
                handled += 1
            except ClosedError:
                pass
            except DStashError:
                failed += 1
            arm(0.02)

        signal.signal(signal.SIGALRM, handler)
        for round in range(25):
            client = Client(*seeds, timeout=20)
            arm(0.01)
            for number in range(10):
                client.put("signals", f"k{number}", {number, (number,)})
                assert client.lookup("signals", f"k{number}") == {number, (number,)}
            disarm()
            client.close()
        print(handled > 50, failed)
        """,
        seeds,
    )
    assert printed.split() == ["True", "0"]


def test_call_from_every_line_of_a_call_succeeds(seeds: list[str]) -> None:
    """A handler makes a call between any two lines; the test tries all of them."""
    printed = run(
        """
        places = set()

        def tracer(frame, event, arg):
            code = frame.f_code
            if os.sep + "dstash" + os.sep not in code.co_filename:
                return None
            place = code.co_filename, frame.f_lineno
            if event == "line" and place not in places:
                places.add(place)
                client.put("signals", "inner", len(places))
                assert client.lookup("signals", "inner") == len(places)
            return tracer

        client = Client(*seeds, timeout=20)
        sys.settrace(tracer)
        client.put("signals", "outer", {1, (2, 3)})
        assert client.lookup("signals", "outer") == {1, (2, 3)}
        sys.settrace(None)
        client.close()
        print(len(places) > 300)
        """,
        seeds,
    )
    assert printed.split() == ["True"]


def test_interrupt_at_any_line_of_first_call_leaves_client_usable(seeds: list[str]) -> None:
    printed = run(
        """
        def tracer(frame, event, arg):
            global left
            if os.sep + "dstash" + os.sep not in frame.f_code.co_filename:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return tracer

        Client(*seeds).close()
        at, interrupts, slowest = 1, 0, 0.0
        enough = time.monotonic() + 8  # then fewer lines, but still from the first to the last
        while True:
            client = Client(*seeds, timeout=20)
            left, kept = at, None
            try:
                sys.settrace(tracer)
                client.put("signals", "k", at)
                break  # it has fewer lines
            except KeyboardInterrupt as error:
                kept = error
                interrupts += 1
            finally:
                sys.settrace(None)
            began = time.monotonic()
            assert client.lookup("signals", "nothing") is None
            client.close()
            slowest = max(slowest, time.monotonic() - began)
            at += 13 if interrupts <= 50 or time.monotonic() < enough else 170
        print(interrupts > 50, slowest < 5)
        """,
        seeds,
    )
    assert printed.split() == ["True", "True"]


def test_interrupt_at_any_time_leaks_nothing(seeds: list[str]) -> None:
    printed = run(
        """
        interrupts = 0
        slowest = 0.0
        enough = time.monotonic() + 10  # closing takes up to 2 s after some interrupts

        def handler(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, handler)
        for round in range(200):
            if interrupts > 20 and time.monotonic() > enough:
                break
            client = Client(*seeds, timeout=20)
            kept = None
            try:
                arm(0.012)
                client.put("signals", "k", round)
                client.lookup("signals", "k")
                disarm()
            except KeyboardInterrupt as error:
                kept = error  # and so the frames of the call
                interrupts += 1
            disarm()
            began = time.monotonic()
            client.put("signals", "again", round)
            assert client.lookup("signals", "again") == round
            client.close()
            slowest = max(slowest, time.monotonic() - began)
            del kept
        print(interrupts > 20, slowest < 5)
        """,
        seeds,
    )
    assert printed.split() == ["True", "True"]


def test_signal_handler_closes_client_during_a_call(seeds: list[str]) -> None:
    printed = run(
        """
        closed = 0
        slowest = 0.0

        def handler(number, frame):
            global slowest
            began = time.monotonic()
            client.close()
            slowest = max(slowest, time.monotonic() - began)

        signal.signal(signal.SIGALRM, handler)
        for round in range(60):
            client = Client(*seeds, timeout=20)
            arm(0.01)
            try:
                while True:
                    client.put("signals", "k", round)
            except ClosedError:
                closed += 1
            disarm()
        print(closed, slowest < 5)  # the timeout is 20 s
        """,
        seeds,
    )
    assert printed.split() == ["60", "True"]


def test_close_fails_and_awaits_calls_of_other_threads(seeds: list[str]) -> None:
    printed = run(
        """
        errors, working = [], set()

        def work():
            try:
                while True:
                    client.put("signals", "k", 1)
                    working.add(threading.get_ident())
            except DStashError as error:
                errors.append(type(error).__name__)

        client = Client(*seeds, timeout=20)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(working) < len(threads):
            time.sleep(0.01)
        began = time.monotonic()
        client.close()
        took = time.monotonic() - began
        for thread in threads:
            thread.join(10)
        print(errors, took < 5)  # the timeout is 20 s
        """,
        seeds,
    )
    assert printed.strip() == f"{['ClosedError'] * 4} True"
