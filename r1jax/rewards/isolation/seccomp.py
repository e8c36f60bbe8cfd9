"""The system calls that a program in the sandbox may not make, as a classic BPF program.

What is not named here is allowed, up to the newest call that was known when this was written: later numbers do not
exist inside (ENOSYS), but for a few that libraries use. On top of the namespaces, so that a hole in one of the large
kernel interfaces that no solution of a task needs is out of reach:

- killed: any call through another instruction set's table (32-bit, x32), where the numbers below mean something else;
- EPERM: the calls of `DENIED`; `clone` with a flag that makes a namespace; `socketpair` of anything but AF_UNIX (which
  asyncio needs); `ioctl` that types into a terminal (TIOCSTI, TIOCLINUX);
- ENOSYS: `clone3`, whose flags lie in memory, where a filter cannot look (the C library falls back to `clone`).
"""

from __future__ import annotations

import errno
import struct

# name: (number on x86_64, number on aarch64); None where the machine has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    # the machine
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    "personality": (135, 92),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "lookup_dcookie": (212, 18),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    # large kernel interfaces
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "seccomp": (317, 277),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_submit": (209, 2),
    "io_cancel": (210, 3),
    "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "vmsplice": (278, 75),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236),
    # memory that no limit of a process counts
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # the network, and descriptors sent to another process
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
}

# Of the numbers that all machines share (424 and on), those that do nothing but save a library a detour.
NEWER = {
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "futex_waitv": 449,
    "fchmodat2": 452,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "mseal": 462,
}

# machine: (column of DENIED, AUDIT_ARCH_*, clone, clone3, socketpair, ioctl, the last number before 424)
_MACHINES = {
    "x86_64": (0, 0xC000003E, 56, 435, 53, 16, 334),
    "aarch64": (1, 0xC00000B7, 220, 435, 199, 29, 294),
}
_X32 = 0x40000000  # numbers of the x32 table carry this bit
# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, steps to skip if true, steps to skip if false, constant


def _unless(test: int, constant: int, verdict: int) -> list[Instruction]:
    """Ends with `verdict` where the test of the loaded word holds, and goes on where it does not."""
    return [(test, 0, 1, constant), (_RETURN, 0, 0, verdict)]


def _argument(call: int, index: int, tests: list[Instruction]) -> list[Instruction]:
    """For one call: loads the low word of an argument, runs `tests`, and allows what passes them."""
    body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * index), *tests, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), call), *body]


def machines() -> tuple[str, ...]:
    """The machines (`platform.machine()`) that a filter can be built for."""
    return tuple(_MACHINES)


def filter_program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`, as `bwrap --seccomp` reads it. ValueError for another machine."""
    if machine not in _MACHINES:
        raise ValueError(f"no system call table for {machine!r}; there is one for {', '.join(_MACHINES)}")
    column, architecture, clone, clone3, socketpair, ioctl, last = _MACHINES[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_unless(_AT_LEAST, _X32, _KILL),
        *_unless(_EQUAL, clone3, _ENOSYS),
    ]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += _unless(_EQUAL, number, _EPERM)
    program += _argument(clone, 0, _unless(_ANY_BIT, _NAMESPACES, _EPERM))
    program += _argument(socketpair, 0, [(_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _EPERM)])
    program += _argument(ioctl, 1, [step for code in _TERMINAL for step in _unless(_EQUAL, code, _EPERM)])
    for number in NEWER.values():
        program += _unless(_EQUAL, number, _ALLOW)
    program += _unless(_AT_LEAST, last + 1, _ENOSYS)
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in program)
