"""TensorFlow Lite files in and out of the integer graph, without TensorFlow: a bounds-checked flatbuffer reader and a small writer."""

from lilliput.quantize.tflite.load import load_tflite

__all__ = ["load_tflite"]
