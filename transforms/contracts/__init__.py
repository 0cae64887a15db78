"""Contracts: an integration as one file, which says what is read of ClaimX and what is sent to iTel.

See docs/contracts.md for the file, :mod:`.mapping` for its language.
"""

from itel_cabinet.transforms.contracts.contract import (
    SHIPPED,
    Body,
    Contract,
    Refusal,
    compile_contract,
    load_shipped,
    shipped_text,
)
from itel_cabinet.transforms.contracts.document import ContractError, Problem
from itel_cabinet.transforms.contracts.model import OWN_HEADERS, AnswerRule, FromVar, Secret, make_contract_schema

__all__ = [
    "OWN_HEADERS",
    "SHIPPED",
    "AnswerRule",
    "Body",
    "Contract",
    "ContractError",
    "FromVar",
    "Problem",
    "Refusal",
    "Secret",
    "compile_contract",
    "load_shipped",
    "make_contract_schema",
    "shipped_text",
]
