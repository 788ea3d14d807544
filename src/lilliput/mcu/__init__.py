"""Int8 networks on microcontrollers: plan memory, write C, run it on an emulated chip, keep the receipt."""

from lilliput.mcu.arena import Block, Packing, pack, verify_packing
from lilliput.mcu.boards import BOARDS, Board
from lilliput.mcu.codegen import emit_c
from lilliput.mcu.firmware import Firmware, Receipt
from lilliput.mcu.plan import Plan, Step, plan
from lilliput.mcu.tiling import Patches, Rows, splits
from lilliput.mcu.toolchain import Toolchain, find_toolchain, probe
from lilliput.quantize.tflite import load_tflite

__all__ = [
    "BOARDS",
    "Block",
    "Board",
    "Firmware",
    "Packing",
    "Patches",
    "Plan",
    "Receipt",
    "Rows",
    "Step",
    "Toolchain",
    "emit_c",
    "find_toolchain",
    "load_tflite",
    "pack",
    "plan",
    "probe",
    "splits",
    "verify_packing",
]
