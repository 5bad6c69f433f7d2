"""Prints the lower bounds of a pyproject.toml as constraints for pip: name==version, linters and pytest left out."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["adaptive"], *extras["experiments"], *extras["text"]]:
    print(re.sub(r">=([\w.]+).*", r"==\1", requirement))
