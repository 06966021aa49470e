"""The guard at every public entry point.

The global state of the calling program neither changes the numbers of dinoeval nor is changed by it. Each thread has its own
autocast, grad mode, inference mode and default device. Everything else belongs to the process: the first call in progress
saves it, and the last one restores it, whichever threads they run in.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from dinoeval.errors import ConfigError, DataError, DinoevalError

P = ParamSpec("P")
T = TypeVar("T")
WORKER_ADVICE = (
    "The system may have run out of memory, /dev/shm may be full (in Docker, pass --shm-size), or, if processes are spawned, the "
    'script may lack `if __name__ == "__main__":`. Rerun the command, with fewer --workers, or with --workers 0 to read images in '
    "the main process; it resumes."
)
_forked = False
_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_SKLEARN_DEFAULTS = {"transform_output": "default", "array_api_dispatch": False, "assume_finite": False}


class _Setting(NamedTuple):
    """A setting of the process that changes numbers, and its value in a fresh process."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    default: Any


class _Shared:
    """State of the process that the first call in progress saves and the last one restores."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.number = 0  # of the calls that began when no other was in progress
        self.undo: dict[Any, Callable[[], object]] = {}

    def enter(self, prepare: Callable[[_Shared], None]) -> None:
        """Count a call; `prepare` notes in `undo` what to restore."""
        with self.lock:
            prepare(self)
            self.number += not self.calls
            self.calls += 1

    def leave(self) -> None:
        """Restore the state if no other call is in progress."""
        with self.lock:
            self.calls -= 1
            if not self.calls:
                for undo in reversed(list(self.undo.values())):
                    undo()
                self.undo.clear()


_numbers, _program = _Shared(), _Shared()


class Guard(contextlib.AbstractContextManager[None]):
    """A context in which the state of the calling program has no effect.

    Args:
        numbers_only: Guard what changes numbers, which is fast enough for every forward pass. By default random states,
            warning filters, thread counts and signal handlers are also saved and restored.

    Examples:
        >>> import torch
        >>> torch.set_default_dtype(torch.float64)
        >>> with Guard():
        ...     torch.zeros(1).dtype
        torch.float32
        >>> torch.zeros(1).dtype
        torch.float64
        >>> torch.set_default_dtype(torch.float32)
    """

    def __init__(self, *, numbers_only: bool = False) -> None:
        self._full, self._stack = not numbers_only, contextlib.ExitStack()

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            if self._full:
                _program.enter(_save_program)
                stack.callback(_program.leave)
            if "torch" in sys.modules:
                _numbers.enter(_reset_settings)
                stack.callback(_numbers.leave)
                _reset_thread(stack)
            self._stack = stack.pop_all()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, traceback)
        if isinstance(error, RuntimeError) and (explained := _explain(error)):
            raise explained from error


def entry_point(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function of the public interface under the guard.

    Args:
        function: A function or method. Of a generator, each step runs under the guard; the program of the caller, which runs
            between the steps, does not.

    Returns:
        The guarded function.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded_steps(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            with contextlib.closing(function(*args, **kwargs)) as steps:  # type: ignore[type-var]
                while True:
                    with Guard():
                        try:
                            item = next(steps)
                        except StopIteration:
                            return
                    yield item

        return guarded_steps  # type: ignore[return-value]

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        with Guard():
            return function(*args, **kwargs)

    return guarded


def current_call() -> int | None:
    """Return the number of the outermost call in progress, or None."""
    return _program.number if _program.calls else None


def is_forked() -> bool:
    """Return whether this process was forked from one that may have used threads.

    The threads of OpenMP do not exist in such a process, and a computation that waits for them hangs.
    """
    # A child of multiprocessing that was spawned has run its main module under another name.
    return _forked or (multiprocessing.parent_process() is not None and "__mp_main__" not in sys.modules)


def _explain(error: RuntimeError) -> DinoevalError | None:
    """Turn errors of PyTorch that a user can resolve into user errors."""
    message = str(error)
    if "DataLoader worker" in message and ("killed by signal" in message or "exited unexpectedly" in message):
        return DataError(f"a process that reads images ended unexpectedly: {message.split(' Details')[0]}. {WORKER_ADVICE}")
    if "CUDA in forked subprocess" in message:
        return ConfigError(
            "CUDA cannot be used in a process forked from one that has used it: start the process with the method spawn "
            '(multiprocessing.get_context("spawn")), or pass --device cpu'
        )
    return None


def _reset_thread(stack: contextlib.ExitStack) -> None:
    """Set the modes of this thread to their defaults until the stack is closed."""
    import numpy as np
    import torch

    for device in ("cpu", "cuda", "mps"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    if not torch.is_grad_enabled():
        stack.enter_context(torch.enable_grad())
    if not _default_device_is_cpu():
        stack.enter_context(torch.device("cpu"))
    if np.geterr() != _NUMPY_ERRORS:
        stack.enter_context(np.errstate(**_NUMPY_ERRORS))  # type: ignore[arg-type]
    sklearn = sys.modules.get("sklearn")
    if sklearn is not None and not sklearn.get_config().items() >= _SKLEARN_DEFAULTS.items():
        stack.enter_context(sklearn.config_context(**_SKLEARN_DEFAULTS))


def _default_device_is_cpu() -> bool:
    import torch

    try:
        return torch.get_default_device().type == "cpu"
    except (RuntimeError, AssertionError):  # a default device that this machine does not have
        return False


def _reset_settings(shared: _Shared) -> None:
    for setting in _settings():
        value = setting.get()
        if value != setting.default:
            shared.undo[setting] = functools.partial(setting.set, value)
            setting.set(setting.default)


@functools.cache
def _settings() -> tuple[_Setting, ...]:
    """Return the settings of the process that change numbers. Only those that differ from the default cost time."""
    import torch
    from PIL import ImageFile

    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    settings = [
        _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        _attribute(ImageFile, "LOAD_TRUNCATED_IMAGES", False),
        _precision_setting(),
        _attribute(cudnn, "enabled", True),
        _attribute(cudnn, "benchmark", False),
        _attribute(cudnn, "deterministic", False),
        _attribute(torch.backends.mkldnn, "enabled", True),
        _Setting(_deterministic_mode, torch.set_deterministic_debug_mode, 0),
        _Setting(cuda.flash_sdp_enabled, cuda.enable_flash_sdp, True),
        _Setting(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, True),
        _Setting(cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
        _Setting(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled()),
    ]
    return tuple(settings)


def _attribute(owner: Any, name: str, default: Any) -> _Setting:
    return _Setting(functools.partial(getattr, owner, name), functools.partial(setattr, owner, name), default)


def _deterministic_mode() -> int:
    import torch

    return torch.get_deterministic_debug_mode()


def _precision_setting() -> _Setting:
    """Return the setting that lets float32 computations run in TF32 or bfloat16."""
    import torch

    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # PyTorch 2.8 and older

        def get() -> tuple[str, bool]:
            return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32

        def put(values: tuple[str, bool]) -> None:
            torch.set_float32_matmul_precision(values[0])
            backends.cudnn.allow_tf32 = values[1]

        return _Setting(get, put, ("highest", True))

    places = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]

    def get_all() -> tuple[str, ...]:
        return tuple(place.fp32_precision for place in places)

    def set_all(values: tuple[str, ...]) -> None:
        for place, value in zip(places, values, strict=True):
            if place.fp32_precision != value:  # An operation without a value of its own inherits that of its backend.
                place.fp32_precision = value

    # "tf32" of cuDNN is the default of PyTorch. Forward passes of frozen networks turn it off themselves.
    return _Setting(get_all, set_all, ("none", "none", "none", "none", "tf32", "tf32", "none", "none", "none"))


def _save_program(shared: _Shared) -> None:
    """Save what functions of dinoeval, or the libraries that they call, may change."""
    if not shared.calls:
        shared.undo["warnings"] = _tame_warnings()
        shared.undo["random"] = functools.partial(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            shared.undo["numpy"] = functools.partial(numpy.random.set_state, numpy.random.get_state())
        if undo := _save_signal_handler():
            shared.undo["signal"] = undo
    # A library may have been imported since the first call in progress began.
    if "torch" in sys.modules and "torch" not in shared.undo:
        shared.undo["torch"] = _save_torch()
    if (faiss := sys.modules.get("faiss")) and "faiss" not in shared.undo:
        shared.undo["faiss"] = functools.partial(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
        if is_forked():
            faiss.omp_set_num_threads(1)


def _tame_warnings() -> Callable[[], object]:
    """Keep a filter that turns warnings into errors from rejecting good images; return the function that undoes it."""
    context = warnings.catch_warnings()
    context.__enter__()
    warnings.filters[:] = [("default", *rule[1:]) if rule[0] == "error" else rule for rule in warnings.filters]  # type: ignore[index]
    return lambda: context.__exit__(None, None, None)


def _save_torch() -> Callable[[], object]:
    import torch

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    if is_forked() and threads > 1:
        torch.set_num_threads(1)

    def restore() -> None:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())  # as if the caller had started CUDA
        if mps is not None:
            torch.mps.set_rng_state(mps)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return restore


def _save_signal_handler() -> Callable[[], object] | None:
    """Let PyTorch watch its data-loading processes by SIGCHLD only while functions of dinoeval run."""
    number = getattr(signal, "SIGCHLD", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(number)
    if before is None:  # not installed by Python
        return None

    def restore() -> None:
        if signal.getsignal(number) is not before and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)
            if handling := sys.modules.get("torch.utils.data._utils.signal_handling"):
                handling._SIGCHLD_handler_set = False  # type: ignore[attr-defined]  The next DataLoader installs it again.

    return restore


def _after_fork() -> None:
    """Reset the state in a forked process: no other thread holds a lock or is in a call there."""
    global _forked, _numbers, _program
    _forked, _numbers, _program = True, _Shared(), _Shared()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
