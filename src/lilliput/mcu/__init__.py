"""Int8 networks on microcontrollers: plan memory, write C, run it on an emulated chip, train it there, keep the receipt."""

from lilliput.mcu.arena import Block, Packing, pack
from lilliput.mcu.boards import BOARDS, Board
from lilliput.mcu.codegen import emit_c
from lilliput.mcu.firmware import Firmware, Receipt
from lilliput.mcu.plan import Plan, Step, plan
from lilliput.mcu.tiling import Patches, Rows, splits
from lilliput.mcu.toolchain import Toolchain, find_toolchain, probe
from lilliput.mcu.training import SGD, TrainStep, UpdatePlan, compile_training, contribution, search_update
from lilliput.quantize.tflite import load_tflite

__all__ = [
    "BOARDS",
    "SGD",
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
    "TrainStep",
    "UpdatePlan",
    "compile_training",
    "contribution",
    "emit_c",
    "find_toolchain",
    "load_tflite",
    "pack",
    "plan",
    "probe",
    "search_update",
    "splits",
]
