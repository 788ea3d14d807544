"""The command line: one verb a job, the verb's config dataclass is its options.

Exit codes: 0 done, 2 what was asked for cannot be (one line says why and what would do), 1 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

from lilliput import __version__
from lilliput.errors import LilliputError

# verb: (module, config, function, one line); a new verb is one row here and one module in lilliput.jobs
VERBS: dict[str, tuple[str, str, str, str]] = {
    "build": ("lilliput.jobs.build", "BuildConfig", "build", "from images and a chip's budget to firmware that ran"),
    "design": ("lilliput.jobs.design", "DesignConfig", "design", "from a budget to an architecture, in seconds"),
    "deploy": (
        "lilliput.jobs.deploy",
        "DeployConfig",
        "deploy",
        "from an int8 network to firmware within a chip's memory",
    ),
    "quantize": (
        "lilliput.jobs.quantize",
        "QuantizeConfig",
        "quantize",
        "weights in a few bits, by SplitQuant or its rivals",
    ),
    "adapt": (
        "lilliput.jobs.adapt",
        "AdaptConfig",
        "adapt",
        "from a pretrained network to firmware that learns on the chip",
    ),
    "certify": (
        "lilliput.jobs.certify",
        "CertifyConfig",
        "certify",
        "sound bounds of how fast a network's outputs change",
    ),
    "report": ("lilliput.jobs.report", "ReportConfig", "report", "draw a run's report page again"),
    "doctor": (
        "lilliput.jobs.doctor",
        "DoctorConfig",
        "doctor",
        "what is installed, what is missing, and what installs it",
    ),
}

_HELP = f"""\
usage: lilliput VERB [OPTIONS]

Tiny neural networks that you can trust. Verbs:

{chr(10).join(f"  {verb:<10}{row[3]}" for verb, row in VERBS.items())}

options for every verb:
  --help      the verb's options
  --debug     show the traceback of an error
  --version   print Lilliput's version

examples:
  lilliput build --data digits --sram 16KB --flash 128KB --out runs/digits
  lilliput design --macs 1.82G --params 11.69M --rho 0.3 --image-size 224
  lilliput deploy vww_96_int8.tflite --sram 32KB --flash 1MB --input stream --out runs/vww
  lilliput quantize runs/digits --bits 2 --sweep --out runs/digits-2bit
  lilliput adapt runs/digits --shift rotate --sram 32KB --flash 256KB --out runs/rotated
  lilliput certify runs/digits --center test:0 --eps 8/255 --out runs/cert
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (a usage error found by tyro exits with 2 itself)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        print(f"lilliput {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if words else 2
    try:
        return _run(words[0], words[1:])
    except LilliputError as error:
        if debug:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; a run that was being written is kept as *.partial: --resume continues it", file=sys.stderr)
        return 130
    except Exception as error:  # the last resort: a fault of ours is still one line, and its exit code says whose it is
        if debug:
            raise
        print(f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)", file=sys.stderr)
        return 1


def _run(verb: str, words: list[str]) -> int:
    if verb not in VERBS:
        raise LilliputError(f"unknown verb {verb!r}: must be one of {', '.join(VERBS)}; lilliput --help describes them")
    import tyro

    module_name, config_name, function_name, _ = VERBS[verb]
    module = importlib.import_module(module_name)
    kind = getattr(module, config_name)
    config: Any = tyro.cli(kind, prog=f"lilliput {verb}", description=inspect.getdoc(kind), args=words)
    result = getattr(module, function_name)(config)
    show = getattr(module, "show", None)
    if show is not None:
        show(config, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
