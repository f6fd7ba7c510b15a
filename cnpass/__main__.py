"""The command ``cnpass``: one line and a documented exit code for whatever goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import cast

INTERNAL = 70
INTERRUPTED = 130
TERMINATED = 143
PIPE_CLOSED = 141
_SOON, _PATIENCE = 0.01, 5.0  # seconds


def main() -> None:
    """Run the command line and exit."""
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = interrupt.dropped
    try:
        try:
            code = _run()
        finally:  # what is left are the last words
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        code = _say("interrupted", INTERRUPTED)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        place = f"{error.filename}: " if error.filename else ""
        code = _say("error: " + place + ("the disk is full" if full else str(error.strerror or error)), 2)
    except MemoryError:
        code = _say("error: out of memory", INTERNAL)
    except Exception as error:  # noqa: BLE001 (the last resort: one line, and the trace for who asks)
        code = _say("interrupted", INTERRUPTED) if _is_interrupt(error) else _internal(error)
    if code == PIPE_CLOSED:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # A Ctrl-C that left an `eval`, as typer has them, would end `python -m` by the signal; this forgets it.
    exec("")  # noqa: S102
    sys.exit(code)


def _run() -> int:
    import typer

    from cnpass.cli.app import app
    from cnpass.cli.verbs import Stopped
    from cnpass.errors import CnpassError

    for argument in sys.argv[1:]:
        if not argument.isascii() and argument != os.fsencode(argument).decode("utf-8", "replace"):
            return _say(f"error: {argument!a}: names must be valid UTF-8, since records hold them", 2)
    # The base of all errors in arguments; where it lives differs between versions of typer.
    usage = cast("type[Exception]", typer.BadParameter.__mro__[2])
    try:
        code = int(app(standalone_mode=False) or 0)
        # Typer makes this code of a Ctrl-C that comes while no verb runs yet.
        return _say("interrupted", INTERRUPTED) if code == INTERRUPTED else code
    except Stopped as stopped:
        return PIPE_CLOSED if stopped.pipe else _say("interrupted", INTERRUPTED)
    except typer.Abort:
        return _say("interrupted", INTERRUPTED)
    except CnpassError as error:
        return _say(f"error: {error}", error.exit_code)
    except usage as error:
        return _say(f"error: {getattr(error, 'format_message', error.__str__)()}", 2)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error was made of a Ctrl-C, as by native modules that are being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _internal(error: Exception) -> int:
    if {"-v", "--verbose"}.intersection(sys.argv):
        traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119 (no more imports down here)
    return _say(f"internal error: {type(error).__name__}: {error} ({place}; -v shows the trace)", INTERNAL)


def _say(text: str, code: int) -> int:
    print(f"cnpass: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201 (the last word)
    return code


class _Interrupt:
    """Raises a Ctrl-C, but while modules are imported, as soon as they are.

    Python drops exceptions in the callbacks of its import locks, and some native modules crash if one comes
    while they are initialised. An import that takes longer than `_PATIENCE` is interrupted all the same.
    Where Python drops one elsewhere, as in a finalizer, it comes again.
    """

    def __init__(self) -> None:
        self.since: float | None = None

    def __call__(self, _signal: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if _importing(frame) and now < self.since + _PATIENCE:
            _interrupt_soon()
            return
        self.since = None
        raise KeyboardInterrupt

    def dropped(self, what: sys.UnraisableHookArgs) -> None:
        """Told of an exception that Python drops."""
        if issubclass(what.exc_type, KeyboardInterrupt):
            _interrupt_soon()
        else:
            sys.__unraisablehook__(what)


def _interrupt_soon() -> None:
    threading.Timer(_SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
