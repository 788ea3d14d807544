"""The emitted C as a shared library of this computer: the fast simulator, one call a sample, bit for bit the device."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import DataError, ToolchainError
from lilliput.mcu.boards import find_board
from lilliput.mcu.image import build_library
from lilliput.mcu.toolchain import find_toolchain
from lilliput.mcu.training.firmware import TrainFirmware
from lilliput.mcu.training.interpreter import State


class HostModel:
    """One instance of the model with memory of its own, as if it were one device."""

    def __init__(self, firmware: TrainFirmware, toolchain: str = "auto", flags: tuple[str, ...] = ("-O2",)) -> None:
        """Build the library where that has not been done, and load a copy.

        Args:
            firmware: emitted project.
            toolchain: of the host: ``auto``, ``host-cc`` or ``host-zig``.
            flags: for the compiler.
        Raises:
            ToolchainError: no compiler, or it refuses.
        """
        tools = find_toolchain(find_board("host"), toolchain)
        self.firmware, self.layout, self.num_classes = firmware, firmware.layout, firmware.num_classes
        self.input_shape = firmware.input_shape
        library = build_library(firmware.directory, tools, flags)
        # A library is loaded once for a path; its variables are the device's memory.
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            own = Path(folder) / "library.so"
            shutil.copyfile(library, own)
            try:
                self._c = ctypes.CDLL(str(own))
            except OSError as error:
                raise ToolchainError(f"{library} could not be loaded: {error}") from error
        self._c.ll_model_logits.restype = ctypes.POINTER(ctypes.c_int32)
        self._c.ll_model_get_params.restype = ctypes.POINTER(ctypes.c_uint8)
        for name in ("ll_model_predict", "ll_model_predicted"):
            getattr(self._c, name).restype = ctypes.c_uint32
        self._streams = hasattr(self._c, "ll_library_image")

    def predict(self, x: Int8[np.ndarray, " ..."]) -> int:
        """The class of one sample."""
        return int(self._c.ll_model_predict(self._sample(x)))

    def logits(self, x: Int8[np.ndarray, " ..."]) -> Int64[np.ndarray, " classes"]:
        """The head's sums for one sample."""
        self.predict(x)
        return np.ctypeslib.as_array(self._c.ll_model_logits(), (self.num_classes,)).astype(np.int64)

    def train_step(self, x: Int8[np.ndarray, " ..."], label: int) -> int:
        """One step on one sample; the loss before it in nats times 2**16.

        Raises:
            DataError: a label that is no class, or a sample of another shape.
        """
        loss = int(self._c.ll_model_train_step(self._sample(x), ctypes.c_uint32(label)))
        if loss < 0:
            raise DataError(f"label {label}: must be 0 to {self.num_classes - 1}")
        return loss

    @property
    def predicted(self) -> int:
        """What the last sample was taken for."""
        return int(self._c.ll_model_predicted())

    def set_rate(self, q15: int) -> None:
        """Factor of the learning rate, 0 to 2**15."""
        self._c.ll_model_set_rate(ctypes.c_uint32(q15))

    def get_params(self) -> bytes:
        """All that was learnt, as it is written to flash."""
        return ctypes.string_at(self._c.ll_model_get_params(), self.layout.size_bytes)

    def set_params(self, image: bytes) -> None:
        """Go on from a saved image.

        Raises:
            DataError: the model refuses it, and is as it was.
        """
        if len(image) != self.layout.size_bytes or not self._c.ll_model_set_params(ctypes.c_char_p(image)):
            self.layout.unpack(image)  # says what is wrong with it
            raise DataError("the model refuses an image of trained parameters that has the form of one; build it again")

    def reset(self) -> None:
        """Forget all that was learnt."""
        self._c.ll_model_reset()

    @property
    def state(self) -> State:
        """The trained tensors, to simulate on from."""
        return self.layout.unpack(self.get_params())

    @state.setter
    def state(self, state: State) -> None:
        self.set_params(self.layout.pack(state))

    def _sample(self, x: Any) -> ctypes.c_void_p:
        if x.dtype != np.int8 or x.shape != self.input_shape:
            raise DataError(f"a sample is int8{list(self.input_shape)}; got {x.dtype}{list(x.shape)}")
        self._held = np.ascontiguousarray(x)  # while C reads it
        place = ctypes.c_void_p(self._held.ctypes.data)
        if self._streams:
            ctypes.c_void_p.in_dll(self._c, "ll_library_image").value = self._held.ctypes.data
        return place
