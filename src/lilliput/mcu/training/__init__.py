"""Training on the device: what is updated, the integer graph of one step, and how the choice is searched."""

from lilliput.mcu.training.accounting import ExtraMemory, extra_memory
from lilliput.mcu.training.contribution import Contribution, contribution
from lilliput.mcu.training.firmware import TrainFirmware, TrainReceipt
from lilliput.mcu.training.float_mode import FloatMode
from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.interpreter import State
from lilliput.mcu.training.memory_report import MemoryReport
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.rate import warmup_cosine
from lilliput.mcu.training.search import search_update
from lilliput.mcu.training.train_step import TrainingLog, TrainStep, compile_training
from lilliput.mcu.training.update_plan import LayerUpdate, UpdatePlan

__all__ = [
    "SGD",
    "Contribution",
    "ExtraMemory",
    "FloatMode",
    "HostModel",
    "LayerUpdate",
    "MemoryReport",
    "State",
    "TrainFirmware",
    "TrainReceipt",
    "TrainStep",
    "TrainingLog",
    "UpdatePlan",
    "compile_training",
    "contribution",
    "extra_memory",
    "search_update",
    "warmup_cosine",
]
