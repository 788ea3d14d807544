"""A Cortex-M board on Unicorn: memory, semihosting files, exit status, exact instruction counts.

A program of its own (it imports nothing of Lilliput), so that a broken image cannot take the caller down with it, and so that it is used
like any emulator: ``python machine.py image.elf ...`` with the current directory as the image's. Unicorn has no system peripherals:
SysTick reads as a constant, and the count comes from a hook on every block instead, written to ``counts.bin``.
"""

from __future__ import annotations

import argparse
import ctypes
import struct
import sys
from pathlib import Path
from typing import IO, Any

import unicorn.arm_const as arm
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from unicorn import UC_ARCH_ARM, UC_HOOK_BLOCK, UC_HOOK_INTR, UC_MODE_MCLASS, UC_MODE_THUMB, Uc, UcError
from unicorn import unicorn_const as errors
from unicorn.unicorn_py3.unicorn import uclib

SYSTEM_ORIGIN, SYSTEM_BYTES = 0xE000_0000, 0x10_0000
SYST_CVR = 0xE018
CPUS = {"cortex-m4": arm.UC_CPU_ARM_CORTEX_M4, "cortex-m7": arm.UC_CPU_ARM_CORTEX_M7}

BREAKPOINT = 7  # Unicorn's numbers are QEMU's EXCP_*
SEMIHOSTING = b"\xab\xbe"
# number -> (fault, its bit in CFSR, exit status as in port.h)
EXCEPTIONS = {
    1: ("UsageFault", 1 << 16, 84),  # undefined instruction
    3: ("BusFault", 1 << 8, 83),  # instruction fetch
    4: ("BusFault", 1 << 9, 83),  # data access
    17: ("UsageFault", 1 << 19, 84),  # no coprocessor
    18: ("UsageFault", 1 << 17, 84),  # not Thumb state
}
UNMAPPED = {
    errors.UC_ERR_READ_UNMAPPED: 1 << 9,
    errors.UC_ERR_WRITE_UNMAPPED: 1 << 9,
    errors.UC_ERR_READ_PROT: 1 << 9,
    errors.UC_ERR_WRITE_PROT: 1 << 9,
    errors.UC_ERR_FETCH_UNMAPPED: 1 << 8,
    errors.UC_ERR_FETCH_PROT: 1 << 8,
}
HARD_FAULT_STATUS, STACK_OVERRUN_STATUS = 81, 86
GUARD = struct.pack("<I", 0xA5C3A5C3) * 8
FILE_MODES = ("r", "rb", "r+", "rb+", "w", "wb", "w+", "wb+", "a", "ab", "a+", "ab+")


class Counter(ctypes.Structure):
    """``struct counter`` of block_counter.c."""

    _fields_ = (
        ("code", ctypes.c_char_p),
        ("code_origin", ctypes.c_uint64),
        ("code_bytes", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("stop", ctypes.c_uint64),
        ("total", ctypes.c_uint64),
        ("total_at_start", ctypes.c_uint64),
        ("outside", ctypes.c_uint64),
        ("counts", ctypes.POINTER(ctypes.c_uint64)),
        ("capacity", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("step_end", ctypes.c_uint64),
        ("step_begin", ctypes.c_uint64),
        ("steps", ctypes.POINTER(ctypes.c_uint64)),
        ("step_capacity", ctypes.c_uint64),
        ("step_notes", ctypes.c_uint64),
    )


class Machine:
    """One processor with its memories; :meth:`run` answers with the image's exit status."""

    def __init__(self, image: Path, cpu: str, flash: tuple[int, int], sram: tuple[int, int]) -> None:
        self.engine = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        self.engine.ctl_set_cpu_model(CPUS[cpu])
        self.flash_origin, self.flash_bytes = flash
        self.engine.mem_map(*flash)
        self.engine.mem_map(*sram)
        self.engine.mmio_map(SYSTEM_ORIGIN, SYSTEM_BYTES, _read_system, None, _write_system, None)
        self.engine.hook_add(UC_HOOK_INTR, self._interrupt)
        self.files: list[IO[bytes] | None] = []
        self.status: int | None = None
        with image.open("rb") as file:
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_LOAD"):
                if segment["p_filesz"]:
                    self.engine.mem_write(segment["p_paddr"], segment.data())
            table = elf.get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)  # our linker scripts never strip
            self.symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}

    def count_calls(self, library: Path, capacity: int, steps: int) -> Counter:
        """From now on, count the instructions of each call to ll_model_run, and those up to where each of its steps ends and begins."""
        code = bytes(self.engine.mem_read(self.flash_origin, self.flash_bytes))
        self._counts = (ctypes.c_uint64 * capacity)()
        self._steps = (ctypes.c_uint64 * (2 * steps))()
        self._counter = Counter(
            code=code,
            code_origin=self.flash_origin,
            code_bytes=len(code),
            start=self.symbols["ll_model_run"] & ~1,
            stop=self.symbols["ll_model_returned"] & ~1,
            counts=ctypes.cast(self._counts, ctypes.POINTER(ctypes.c_uint64)),
            capacity=capacity,
            step_end=self.symbols["ll_profile_end"] & ~1 if steps else 0,
            step_begin=self.symbols["ll_profile_begin"] & ~1 if steps else 0,
            steps=ctypes.cast(self._steps, ctypes.POINTER(ctypes.c_uint64)),
            step_capacity=2 * steps,
        )
        self._library = ctypes.CDLL(str(library))
        hook = ctypes.c_size_t()
        # The Python binding only takes Python callables; this is the C function that it calls underneath.
        status = uclib.uc_hook_add(
            self.engine._uch,
            ctypes.byref(hook),
            UC_HOOK_BLOCK,
            ctypes.cast(self._library.ll_count_block, ctypes.c_void_p),
            ctypes.cast(ctypes.pointer(self._counter), ctypes.c_void_p),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if status != errors.UC_ERR_OK:
            raise UcError(status)
        return self._counter

    def run(self) -> int:
        """From reset to the image's own exit, or to its fault."""
        stack_pointer, entry = struct.unpack("<II", self.engine.mem_read(self.flash_origin, 8))
        self.engine.reg_write(arm.UC_ARM_REG_SP, stack_pointer)
        try:
            self.engine.emu_start(entry | 1, 0xFFFF_FFFE)
        except UcError as error:
            if self.status is None:
                if error.errno in UNMAPPED:
                    self._fault("BusFault", UNMAPPED[error.errno], 83)
                elif error.errno == errors.UC_ERR_INSN_INVALID:
                    is_thumb = self.engine.reg_read(arm.UC_ARM_REG_XPSR) >> 24 & 1
                    self._fault(*EXCEPTIONS[1 if is_thumb else 18])
                else:
                    self._fault(f"HardFault ({error})", 0, HARD_FAULT_STATUS)
        return HARD_FAULT_STATUS if self.status is None else self.status

    def _stop(self, status: int) -> None:
        self.status = status
        self.engine.emu_stop()

    def _fault(self, name: str, cfsr: int, status: int) -> None:
        pc, lr, sp = (self.engine.reg_read(r) for r in (arm.UC_ARM_REG_PC, arm.UC_ARM_REG_LR, arm.UC_ARM_REG_SP))
        bottom, top = self.symbols["ll_stack_bottom"], self.symbols["ll_stack_top"]
        if not bottom <= sp <= top or bytes(self.engine.mem_read(bottom, len(GUARD))) != GUARD:
            status = STACK_OVERRUN_STATUS
        text = f"lilliput fault: {name} number=0x0 pc={pc:#x} lr={lr:#x} sp={sp:#x} cfsr={cfsr:#x} hfsr=0x0 bfar=0x0"
        print(text, file=sys.stderr)
        self._stop(status)

    def _interrupt(self, engine: Any, number: int, _: object) -> None:
        pc = engine.reg_read(arm.UC_ARM_REG_PC)
        if number == BREAKPOINT and bytes(engine.mem_read(pc, 2)) == SEMIHOSTING:
            operation, argument = engine.reg_read(arm.UC_ARM_REG_R0), engine.reg_read(arm.UC_ARM_REG_R1)
            engine.reg_write(arm.UC_ARM_REG_R0, self._semihosting(operation, argument) & 0xFFFF_FFFF)
            engine.reg_write(arm.UC_ARM_REG_PC, (pc + 2) | 1)
        else:
            self._fault(*EXCEPTIONS.get(number, (f"HardFault (exception {number})", 0, HARD_FAULT_STATUS)))

    def _semihosting(self, operation: int, argument: int) -> int:
        if operation == 0x04:  # SYS_WRITE0
            sys.stderr.write(self._text(argument))
            return 0
        words = struct.unpack("<4I", self.engine.mem_read(argument, 16))
        if operation == 0x20:  # SYS_EXIT_EXTENDED
            self._stop(words[1])
            return 0
        if operation == 0x01:  # SYS_OPEN
            try:
                self.files.append(open(self._text(words[0]), FILE_MODES[words[1]].replace("b", "") + "b"))  # noqa: SIM115
            except OSError:
                return -1
            return len(self.files)
        file = self.files[words[0] - 1] if 1 <= words[0] <= len(self.files) else None
        if file is None:
            return -1
        if operation == 0x02:  # SYS_CLOSE
            file.close()
            self.files[words[0] - 1] = None
            return 0
        if operation == 0x05:  # SYS_WRITE: the number of bytes not written
            return words[2] - file.write(bytes(self.engine.mem_read(words[1], words[2])))
        if operation == 0x06:  # SYS_READ: the number of bytes not read
            data = file.read(words[2])
            self.engine.mem_write(words[1], data)
            return words[2] - len(data)
        if operation == 0x0A:  # SYS_SEEK
            file.seek(words[1])
            return 0
        if operation == 0x0C:  # SYS_FLEN
            return Path(file.name).stat().st_size
        self._fault(f"HardFault (semihosting operation {operation:#x} is not one of ours)", 0, HARD_FAULT_STATUS)
        return -1

    def _text(self, address: int) -> str:
        text = b""
        while (byte := bytes(self.engine.mem_read(address + len(text), 1))) != b"\0":
            text += byte
        return text.decode("latin-1")


def _read_system(engine: Any, offset: int, size: int, _: object) -> int:
    return 1 if offset == SYST_CVR else 0  # not 0: the start-up code waits for the timer to leave it


def _write_system(engine: Any, offset: int, size: int, value: int, _: object) -> None:
    pass  # fault enables, the FPU switch and SysTick have no effect here


def _region(text: str) -> tuple[int, int]:
    origin, size = text.split(":")
    return int(origin, 0), int(size, 0)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image", type=Path)
    parser.add_argument("--cpu", choices=sorted(CPUS), required=True)
    parser.add_argument("--flash", type=_region, required=True, metavar="ORIGIN:BYTES")
    parser.add_argument("--sram", type=_region, required=True, metavar="ORIGIN:BYTES")
    parser.add_argument("--counter", type=Path, required=True, help="block_counter.c as a shared library")
    parser.add_argument("--calls", type=int, required=True, help="how many runs of the model to expect")
    parser.add_argument("--steps", type=int, default=0, help="of a profile build: how many steps are reported")
    options = parser.parse_args()
    machine = Machine(options.image, options.cpu, options.flash, options.sram)
    counter = machine.count_calls(options.counter, options.calls, options.steps)
    status = machine.run()
    for file in machine.files:
        if file is not None:
            file.close()
    if counter.outside:
        print(f"lilliput: {counter.outside} blocks ran outside the flash and were not counted", file=sys.stderr)
        return status or HARD_FAULT_STATUS
    for name, count, values in (
        ("counts.bin", counter.calls, counter.counts),
        ("steps.bin", counter.step_notes, counter.steps),
    ):
        Path(name).write_bytes(struct.pack(f"<{count}Q", *values[:count]))
    return status


if __name__ == "__main__":
    sys.exit(main())
