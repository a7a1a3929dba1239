"""What a model's exceptions say of the device. torch is not imported here: its errors are known by name."""

from __future__ import annotations

_NO_MEMORY = ("out of memory", "ALLOC_FAILED")


class DeviceLostError(BaseException):
    """The device does not work any more, and only a new process can have it back.

    No Exception, so that nothing that tries again swallows it.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice: fewer photos at once may do."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # The libraries below torch say it in words alone.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Return whether every further call would fail: CUDA keeps its first error until the process ends."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")
