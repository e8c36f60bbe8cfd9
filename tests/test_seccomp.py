"""The system call filter, as a small interpreter decides, against hand-worked cases and the kernel's headers."""

from __future__ import annotations

import pathlib
import struct

import pytest

from r1jax.rewards.isolation import seccomp


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would return: an interpreter of the six instructions that the filter uses."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    word, position = 0, 0
    steps = list(struct.iter_unpack("=HBBI", program))
    while True:
        code, when_true, when_false, constant = steps[position]
        position += 1
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:
            return constant
        else:
            true = {0x15: word == constant, 0x35: word >= constant, 0x45: bool(word & constant)}[code]
            position += when_true if true else when_false


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


@pytest.mark.parametrize(
    ("machine", "architecture", "read", "clone", "openat"),
    [("x86_64", 0xC000003E, 0, 56, 257), ("aarch64", 0xC00000B7, 63, 220, 56)],
)
def test_filter_decides_by_hand_worked_cases(machine, architecture, read, clone, openat):
    program = seccomp.filter_program(machine)
    column = ("x86_64", "aarch64").index(machine)
    assert decide(program, architecture, read) == ALLOW
    assert decide(program, architecture, openat) == ALLOW
    assert decide(program, 0x40000003, read) == KILL  # i386
    assert decide(program, 0x40000028, read) == KILL  # 32-bit ARM
    assert decide(program, architecture, 0x40000000 + read) == KILL  # x32
    for name, numbers in seccomp.DENIED.items():
        if numbers[column] is not None:
            assert decide(program, architecture, numbers[column]) == EPERM, name
    assert decide(program, architecture, clone, 17) == ALLOW  # fork
    assert decide(program, architecture, clone, 0x3D0F00) == ALLOW  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, architecture, clone, 17 | flag) == EPERM
    assert decide(program, architecture, 435, 0) == ENOSYS  # clone3
    assert decide(program, architecture, 437) == ALLOW  # openat2
    assert decide(program, architecture, 428) == ENOSYS  # open_tree
    assert decide(program, architecture, 10_000) == ENOSYS
    socketpair, ioctl = (53, 16) if machine == "x86_64" else (199, 29)
    assert decide(program, architecture, socketpair, 1) == ALLOW
    assert decide(program, architecture, socketpair, 2) == EPERM
    assert decide(program, architecture, ioctl, 1, 0x5401) == ALLOW  # TCGETS
    assert decide(program, architecture, ioctl, 1, 0x5412) == EPERM


def test_a_filter_for_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.filter_program("riscv64")


@pytest.mark.parametrize(("column", "path"), [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_system_call_numbers_are_the_kernel_headers(column, path):
    header = pathlib.Path("/usr/include") / path
    if not header.exists():
        pytest.skip("no kernel headers")
    numbers = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
            numbers[words[1].removeprefix("__NR3264_").removeprefix("__NR_")] = int(words[2])
    for name, call in seccomp.DENIED.items():
        assert numbers.get(name) == call[column], name
    for name, number in seccomp.NEWER.items():
        assert numbers.get(name, number) == number, name
