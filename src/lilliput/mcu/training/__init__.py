"""Training on the device: what is updated, the integer graph of one step, and how the choice is searched."""

from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.update_plan import LayerUpdate, UpdatePlan

__all__ = ["SGD", "LayerUpdate", "UpdatePlan"]
