"""ClaimX, iTel and a token endpoint, played over real sockets, with faults where they are wanted."""

from __future__ import annotations

from itel_cabinet.local.simulators.claimx import ClaimXSimulator, MediaFault, media_bytes
from itel_cabinet.local.simulators.itel import ItelSimulator
from itel_cabinet.local.simulators.oauth2 import OAuth2Simulator
from itel_cabinet.local.simulators.simulator import Faults, Request, Response, Simulator, serve

__all__ = [
    "ClaimXSimulator",
    "Faults",
    "ItelSimulator",
    "MediaFault",
    "OAuth2Simulator",
    "Request",
    "Response",
    "Simulator",
    "media_bytes",
    "serve",
]
