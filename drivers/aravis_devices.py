"""Which cameras Aravis sees, and which of them is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lineward.drivers import aravis_library, gvcp
from lineward.drivers.camera import CameraInfo, CameraNotFoundError

_TRANSPORTS = {"GigEVision": "GEV", "USB3Vision": "U3V"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A camera that could be opened: what Aravis calls it, and its IP address, empty when it has none."""

    info: CameraInfo
    aravis_id: str
    address: str

    def access(self) -> str:
        """Ask whether it is open in some program; USB gives no answer to that."""
        if not self.address:
            return "unknown"
        return "in use" if gvcp.in_use(self.address) else "available"


def listed(address: str = "") -> list[Candidate]:
    """Ask all networks and USB ports, 1 s; or only the camera at an address, at most 0.6 s."""
    aravis, _ = aravis_library.load()
    if address:
        return _at(address)
    aravis.update_device_list()
    return [_describe(aravis, index) for index in range(aravis.get_n_devices())]


def choose(serial: str, user_id: str, address: str) -> Candidate:
    """Return the one camera that fits.

    Raises
    ------
    CameraNotFoundError
        None fits, or several do; the message lists those that were seen.
    """
    there = listed(address)
    fitting = [
        candidate
        for candidate in there
        if serial in {"", candidate.info.serial} and user_id in {"", candidate.info.user_id}
    ]
    if len(fitting) == 1:
        return fitting[0]
    seen = "; ".join(
        f"{c.info.vendor} {c.info.name} serial {c.info.serial!r} user id {c.info.user_id!r} {c.address}".strip()
        for c in there
    )
    if fitting:
        raise CameraNotFoundError(f"several cameras fit; name one by [camera] serial. Seen: {seen}")
    wishes = {"serial": serial, "user id": user_id, "address": address}
    wanted = " and ".join(f"{name} {value!r}" for name, value in wishes.items() if value)
    raise CameraNotFoundError(
        f"no camera{' with ' if wanted else ''}{wanted} answers; check its power and cable, that its IP address is in "
        f"the network of this machine's interface, and that no firewall drops UDP; or correct [camera]. "
        f"Seen: {seen or 'none'}"
    )


def _describe(aravis: Any, index: int) -> Candidate:
    protocol = aravis.get_device_protocol(index)
    address = (aravis.get_device_address(index) or "") if protocol == "GigEVision" else ""
    identity = gvcp.identify(address) if address else None
    return Candidate(
        CameraInfo(
            name=aravis.get_device_model(index) or "",
            serial=aravis.get_device_serial_nbr(index) or "",
            driver="aravis",
            vendor=aravis.get_device_vendor(index) or "",
            user_id=identity.user_id if identity else "",
            transport=_TRANSPORTS.get(protocol, protocol),
            producer="Aravis 0.8",
        ),
        aravis.get_device_id(index),
        address,
    )


def _at(address: str) -> list[Candidate]:
    identity = gvcp.identify(address)
    if identity is None:
        return []
    info = CameraInfo(
        name=identity.model,
        serial=identity.serial,
        driver="aravis",
        vendor=identity.vendor,
        user_id=identity.user_id,
        transport="GEV",
        producer="Aravis 0.8",
    )
    return [Candidate(info, address, address)]
