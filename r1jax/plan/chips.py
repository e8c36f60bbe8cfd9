"""Accelerators, per chip, and the machines built of them: what a plan is held against.

Sources: the Cloud TPU documentation and the JAX scaling book for TPUs (where the two differ, the documentation); the
scaling book for H100, MLPerf system files for H200, public spec sheets for B200. `usable` memory of TPUs is what the
compiler (libtpu 0.0.42) says it has, for v5p more than the 95 GiB that the documentation sells: the compiler's figure
is the one that a program is refused by. Of GPUs what XLA takes by default, three quarters, is not used: all counts.
"""

from __future__ import annotations

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip; rates in operations or bytes a second."""

    name: str
    platform: str  # 'tpu' or 'cuda'
    bf16: float  # dense matrix products
    memory: float  # bytes of HBM as sold
    usable: float  # bytes of HBM a program may take
    bandwidth: float  # bytes a second of HBM
    link: float  # one way: of one link of a TPU's torus; of all NVLinks of a GPU
    axes: int  # of a TPU's torus; 0: a switch
    network: float  # one way, for each chip, between slices or hosts
    largest: int  # chips of one slice, or GPUs of one NVLink domain
    devices: int = 1  # devices that JAX sees of one chip
    config: str = ""  # how libtpu is to see the chip, where its own choice is not what the cloud rents out

    @property
    def device(self) -> Chip:
        """What one JAX device of the chip has: its share."""
        parts = self.devices
        shares = {name: getattr(self, name) / parts for name in ("bf16", "memory", "usable", "bandwidth", "network")}
        return dataclasses.replace(self, **shares, link=self.link / parts, devices=1)


# network, from the Cloud TPU documentation: v5p 50 Gb/s and tpu7x 100 Gb/s a chip; a pod of 256 chips has 6.4 Tb/s of
# v5e and 25.6 Tb/s of v6e. v4: 25 GB/s a host of four chips, which the scaling book has as typical; the documentation
# says nothing of it. GPUs: one 400 Gb/s adapter each.
# v4: the cloud joins the two cores of a chip to one device ("megacore"), which libtpu does only if asked to.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 30.75 * GIB, 1.2e12, 45e9, 3, 6.25e9, 4096, config="megacore"),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 15.75 * GIB, 0.819e12, 50e9, 2, 3.125e9, 256),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 95.74 * GIB, 2.765e12, 90e9, 3, 6.25e9, 8960),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 31.25 * GIB, 1.638e12, 100e9, 2, 12.5e9, 256),
        Chip("tpu7x", "tpu", 2307e12, 192 * GIB, 189.5 * GIB, 7.38e12, 100e9, 3, 12.5e9, 9216, devices=2),
        Chip("h100", "cuda", 989e12, 80e9, 80e9, 3.35e12, 450e9, 0, 50e9, 8),
        Chip("h200", "cuda", 989e12, 141e9, 141e9, 4.8e12, 450e9, 0, 50e9, 8),
        Chip("b200", "cuda", 2250e12, 192e9, 180e9, 8e12, 900e9, 0, 50e9, 8),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine: `v5p:8x8x16` (the torus in chips), `2*v5p:8x8x8` (slices), `h100:8x16` (GPUs of a host x hosts)."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        many = f"{self.slices}*" if self.slices > 1 else ""
        return f"{many}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def slice_name(self) -> str:
        """Of one slice, as libtpu knows it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which axes of a TPU slice are rings, links joining the last chip to the first; the others are lines.

        With three axes (v4, v5p, tpu7x) chips stand in cubes of 4x4x4, which optical switches join: slices of whole
        cubes are rings along every axis, smaller ones along none (Cloud TPU documentation of v5p). With two (v5e, v6e)
        only an axis as long as the pod's edge, 16, is one (scaling book, "How to Think About TPUs").
        """
        if self.chip.axes == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(size == math.isqrt(self.chip.largest) for size in self.shape)

    @property
    def chips(self) -> int:
        """In all."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """That JAX sees."""
        return self.chips * self.chip.devices


def parse_topology(text: str) -> Topology:
    """What a `--topology` names. Raises ValueError with the value and what is allowed."""
    match = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)", text)
    if match is None:
        raise ValueError(
            f"topology: {text!r} is not of the form CHIP:AxB, CHIP:AxBxC or SLICES*CHIP:AxBxC; for example v5p:8x8x16, "
            "v6e:16x16 or h100:8x16 (GPUs of a host x hosts)"
        )
    slices, name, sizes = int(match[1] or 1), match[2], tuple(int(size) for size in match[3].split("x"))
    if name not in CHIPS:
        raise ValueError(f"topology: {text!r} has the chip {name!r}; known are {', '.join(CHIPS)}")
    chip, axes = CHIPS[name], CHIPS[name].axes or 2
    if len(sizes) != axes or min(sizes) < 1 or slices < 1:
        what = f"{axes} axes of a torus" if chip.axes else "two sizes, GPUs of a host x hosts"
        raise ValueError(f"topology: {text!r}: {name} has {what}, each at least 1")
    if chip.platform == "tpu" and math.prod(sizes) > chip.largest:
        raise ValueError(
            f"topology: {text!r} has {math.prod(sizes)} chips; a slice of {name} has at most {chip.largest}"
        )
    if chip.platform == "cuda" and (slices > 1 or sizes[0] > chip.largest):
        raise ValueError(f"topology: {text!r}: at most {chip.largest} GPUs of a host, and no slices")
    return Topology(chip, sizes, slices)
