# SPDX-License-Identifier: GPL-2.0-only
"""GDB's output as records, however damaged it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from orchestrator.errors import InfraError
from orchestrator.watch import mi


@pytest.fixture
def pipe() -> Iterator[tuple[mi.Output, int]]:
    """The output of a GDB, and what it is written to."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    with os.fdopen(read, "rb", buffering=0) as file:
        yield mi.Output([file]), write


@pytest.mark.parametrize(
    ("line", "kind", "message", "payload", "token"),
    [
        ("17^done", "result", "done", None, 17),
        ('3^done,value="42"', "result", "done", {"value": "42"}, 3),
        ('^error,msg="no \\"x\\"\\n"', "result", "error", {"msg": 'no "x"\n'}, None),
        (
            '*stopped,reason="signal-received",frame={addr="0x1",args=[]},core="0"',
            "notify",
            "stopped",
            {"reason": "signal-received", "frame": {"addr": "0x1", "args": []}, "core": "0"},
            None,
        ),
        (
            '=library-loaded,ranges=[{from="1"},{from="2"}],t=["a","b"],u=[f={l="1"}]',
            "notify",
            "library-loaded",
            {"ranges": [{"from": "1"}, {"from": "2"}], "t": ["a", "b"], "u": [{"l": "1"}]},
            None,
        ),
        ('=x,id="1",id="2",id="3"', "notify", "x", {"id": ["1", "2", "3"]}, None),
        ('~"\\303\\244 \\\\ \\t\\377"', "console", None, "ä \\ \t\ufffd", None),
        ('&"quit\\n"', "log", None, "quit\n", None),
        ("text of a program", "output", None, "text of a program", None),
        ('~"no end', "output", None, '~"no end', None),
        ('=x,"', "output", None, '=x,"', None),
        ("9" * 5000 + "^done", "output", None, "9" * 5000 + "^done", None),
    ],
)
def test_a_line_is_a_record(
    line: str, kind: str, message: str | None, payload: object, token: int | None
) -> None:
    record = {"type": kind, "message": message, "payload": payload, "token": token}
    assert mi.parse(line) == record


@pytest.mark.parametrize(
    "rest",
    ["x={y=[", 'x="', 'x="1"y="2"', "x", "x={1}", "x=[a]", 'x="1",', "x=" + "[" * 100_000, "x=}"],
)
@pytest.mark.parametrize("head", ["7^done,", "*stopped,"])
def test_a_damaged_answer_or_stop_is_an_error(head: str, rest: str) -> None:
    with pytest.raises(InfraError, match="GDB wrote"):
        mi.parse(head + rest)


def test_a_flood_is_read_in_linear_time(pipe: tuple[mi.Output, int]) -> None:
    output, write = pipe
    start = time.monotonic()
    for line in (b'~"' + b"x\\n" * 1_000_000 + b'"\n', b'^done,x="' + b"y" * 3_000_000 + b'"\n'):
        records = []
        for at in range(0, len(line), 50_000):
            os.write(write, line[at : at + 50_000])
            records += output.records(0)
        assert len(records) == 1
    assert time.monotonic() - start < 10  # with pygdbmi's parser it took minutes


def test_lines_are_put_together_from_what_arrives(pipe: tuple[mi.Output, int]) -> None:
    output, write = pipe
    os.write(write, b"(gdb) \n1^do")
    assert output.records(0) == []
    os.write(write, b'ne\n\n~"a"\n2^')
    assert [record["type"] for record in output.records(1)] == ["result", "console"]
    os.close(write)
    assert output.records(1) == []
    assert output.records(0.1) == []


def test_a_line_without_an_end_is_an_error(
    pipe: tuple[mi.Output, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = pipe
    monkeypatch.setattr(mi, "MAX_LINE", 10_000)
    os.write(write, b"x" * 20_000)
    with pytest.raises(InfraError, match="GDB wrote a line of more than"):
        output.records(0)
