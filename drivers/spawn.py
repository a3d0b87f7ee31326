"""Starts a program without holding up the other threads of this one.

`subprocess` and `os.posix_spawn` keep the interpreter lock from the fork until the child has its program. On a busy
machine the child waits for its turn meanwhile, and every thread here with it: 42 ms were measured (two cores, four
other programs), and a deadline clock must not stand still so long. A foreign function called through ctypes lets go of
the lock, so it is libc's ``posix_spawn`` that is called here.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_libc = ctypes.CDLL(None)
_FILE_ACTIONS_BYTES = 512  # posix_spawn_file_actions_t has 80 bytes in glibc and in musl
_ATTRIBUTES_BYTES = 1024  # posix_spawnattr_t has 336 bytes in glibc and in musl
_SIGNAL_SET_BYTES = 256  # sigset_t has 128
_SETSIGMASK = 0x08  # POSIX_SPAWN_SETSIGMASK of glibc and musl
SOCKET = 3
"""The descriptor under which the program finds what it was given."""


def spawn(arguments: Sequence[str], given: int) -> int:
    """Start a program and return its pid.

    Its standard input and output are ``/dev/null``, standard error is ours, and descriptor `SOCKET` is a copy of
    ``given``. It inherits nothing else. SIGINT is blocked in it from its first instruction: Ctrl-C in a terminal goes
    to the whole group, and an interpreter that still starts would answer with a traceback.

    Raises
    ------
    OSError
        It cannot be started.
    """
    actions, attributes = (ctypes.create_string_buffer(size) for size in (_FILE_ACTIONS_BYTES, _ATTRIBUTES_BYTES))
    blocked = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
    _libc.sigemptyset(blocked)
    _libc.sigaddset(blocked, signal.SIGINT)
    _check(_libc.posix_spawn_file_actions_init(actions))
    _check(_libc.posix_spawnattr_init(attributes))
    try:
        _check(_libc.posix_spawnattr_setsigmask(attributes, blocked))
        _check(_libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSIGMASK)))
        _check(_libc.posix_spawn_file_actions_adddup2(actions, given, SOCKET))  # both may be 3: it is inherited then
        for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
            _check(_libc.posix_spawn_file_actions_addopen(actions, descriptor, os.fsencode(os.devnull), flags, 0))
        if hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np"):  # glibc 2.34; what Python opens closes itself
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, SOCKET + 1))
        pid = ctypes.c_int()
        argv = _strings([os.fsencode(argument) for argument in arguments])
        environment = _strings([name + b"=" + value for name, value in os.environb.items()])
        _check(_libc.posix_spawn(ctypes.byref(pid), argv[0], actions, attributes, argv, environment))
    finally:
        _libc.posix_spawnattr_destroy(attributes)
        _libc.posix_spawn_file_actions_destroy(actions)
    return pid.value


def _strings(values: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """Make the NULL-terminated array that C programs are given."""
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
