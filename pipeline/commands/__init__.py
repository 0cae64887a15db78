"""The command line, `itel-cabinet`: a module a group of commands.

Other distributions may add commands of their own (entry points ``itel_cabinet.commands``); what they need is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from itel_cabinet.pipeline.commands.app import main
from itel_cabinet.pipeline.commands.shared import BROKER_SECONDS, PROGRAM, AsJson, CommandError, Servers, asking

if TYPE_CHECKING:
    from itel_cabinet.pipeline.commands.contract_choice import (
        DEFAULT_CONTRACT,
        ContractName,
        ContractVars,
        load,
        read_vars,
    )
    from itel_cabinet.pipeline.commands.printing import print_json, print_rows

__all__ = [
    "BROKER_SECONDS",
    "DEFAULT_CONTRACT",
    "PROGRAM",
    "AsJson",
    "CommandError",
    "ContractName",
    "ContractVars",
    "Servers",
    "asking",
    "load",
    "main",
    "print_json",
    "print_rows",
    "read_vars",
]

# The command waits for what it prints with, not for what others import from here.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "contract_choice": ["DEFAULT_CONTRACT", "ContractName", "ContractVars", "load", "read_vars"],
        "printing": ["print_json", "print_rows"],
    },
)
