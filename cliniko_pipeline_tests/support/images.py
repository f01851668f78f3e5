"""The image of deploy/docker/, built in a folder of this machine by the Dockerfile's own commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

from cliniko_pipeline_tests.support import deploy_files as files

_ABSOLUTE = re.compile(r"(?<![\w./:$}])/(?=(?:opt|build|tmp)\b)")
"""The beginning of a path of the image, which on this machine begins with the image's folder."""


class BuiltImage:
    """The files of the image under `root`, and the environment of its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root
        (root / "tmp").mkdir()
        # The base image has the Python that the tests run with, without the tests' own packages.
        (root / "base").mkdir()
        (root / "base" / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
        self.environ = {"PATH": f"{root / 'base'}:{os.environ['PATH']}", "TMPDIR": str(root / "tmp")}

    def build(self) -> None:
        """Execute the instructions of the Dockerfile that make files or set variables."""
        for instruction, value in files.dockerfile():
            if instruction == "WORKDIR":
                self._folder = Path(self.mapped(value))
                self._folder.mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                self._copy(value.split())
            elif instruction == "RUN":
                self._run(value)
            elif instruction == "ENV":
                variables = files.image_variables()
                self.environ |= {
                    name: Template(self.mapped(each)).safe_substitute(self.environ) for name, each in variables.items()
                }
        # The last stage has only what it copies from the stage that builds.
        shutil.rmtree(self.root / "build")

    def mapped(self, text: str) -> str:
        """Return the text with this machine's paths in place of the image's."""
        return _ABSOLUTE.sub(lambda _match: f"{self.root}/", text)

    def contents(self) -> dict[str, int]:
        """Return the time of the last change of each file that a running container must not change.

        Folders are left out. Dagster's daemon creates two that stay empty, and does without them if it cannot.
        """
        found = (path for path in (self.root / "opt").rglob("*") if path.is_file())
        return {str(path): path.lstat().st_mtime_ns for path in found}

    def _copy(self, words: list[str]) -> None:
        if words[0].startswith("--from="):
            # All stages have one folder here, so the files are there already.
            assert words[1] == words[2]
            return
        *sources, target = words
        folder = self._folder / self.mapped(target)
        for source in (files.ROOT / name for name in sources):
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder, dirs_exist_ok=True, ignore=ignored)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["sh", "-ec", self.mapped(command)],
            cwd=self._folder,
            env={**os.environ, **self.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
