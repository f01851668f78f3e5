"""Runs one of the things to be measured: the task comes as JSON on standard input, what it took goes to `answer`
in the task's folder.
"""

import sys
from importlib import import_module
from pathlib import Path

import msgspec

from benchmarks.others.measuring import Stopwatch, Task


def main() -> None:
    """`NAME`, or `MODULE/VARIANT`."""
    module, _, variant = sys.argv[1].partition("/")
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    watch = Stopwatch()
    import_module(f"benchmarks.others.{module}").run(task, watch, *([variant] if variant else []))
    (Path(task.folder) / "answer").write_bytes(msgspec.json.encode(watch.taken()))


if __name__ == "__main__":
    main()
