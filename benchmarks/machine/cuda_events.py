"""The GPU's own clock: events of CUDA's driver around a block, for PyTorch and JAX alike.

It answers two questions that the host's clock cannot: whether a framework's waiting (`torch.cuda.synchronize`,
`jax.block_until_ready`) returned before the device had done its work, and whether both clocks agree on the time.

Source: CUDA driver API, event management (cuEventCreate, cuEventRecord, cuEventElapsedTime).
"""

from __future__ import annotations

import ctypes
import time
from ctypes import byref, c_float, c_int, c_void_p
from typing import Any

NAMES = ("libcuda.so.1", "nvcuda.dll")  # the driver's library, on Linux and on Windows


class DriverError(Exception):
    """A call of CUDA's driver failed."""


class CudaTimer:
    """Two events in the context that the frameworks use, the device's primary one.

    They are recorded in the legacy default stream. At both times the device is idle, or the caller waits for it.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        device, context = c_int(), c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.context = context
        self.events = c_void_p(), c_void_p()
        self.call("cuCtxSetCurrent", self.context)
        for event in self.events:
            self.call("cuEventCreate", byref(event), 0)

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self.driver, name, None)
        code = -1 if function is None else function(*arguments)
        if code:
            raise DriverError(f"{name} of CUDA's driver gave the error {code}")

    def begin(self) -> None:
        """Record the first event."""
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuEventRecord", self.events[0], None)

    def end(self) -> tuple[float, float]:
        """Record the second event, and wait for all work of the device.

        Returns:
            Seconds between the events, and seconds for which the device was still working after this call.
        """
        begin = time.perf_counter()
        self.call("cuCtxSynchronize")
        late = time.perf_counter() - begin
        self.call("cuEventRecord", self.events[1], None)
        self.call("cuEventSynchronize", self.events[1])
        between = c_float()
        elapsed = "cuEventElapsedTime" if hasattr(self.driver, "cuEventElapsedTime") else "cuEventElapsedTime_v2"
        self.call(elapsed, byref(between), *self.events)
        return between.value / 1e3, late


def timer(driver: Any = None) -> tuple[CudaTimer | None, str | None]:
    """Return a timer, or None and the reason why there is none; then only the host's clock counts."""
    try:
        return CudaTimer(driver or _driver()), None
    except DriverError as error:
        return None, str(error)


def _driver() -> Any:
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DriverError(f"CUDA's driver library is missing ({' or '.join(NAMES)})")
