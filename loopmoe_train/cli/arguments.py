"""argparse whose errors are ours: one line, exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from loopmoe_train.errors import Refused


class Parser(argparse.ArgumentParser):
    """Raises Refused where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise Refused(message, f"see `{self.prog} --help`")
