"""One message where a rank ends before the others: which, what was saved, and the command that goes on.

A rank that meets an error says so in a file that all ranks see. A rank that is killed says nothing: ranks on the same
machine see that its process is gone, and the others that their connection is. The rank that comes first speaks; the
others end without a word.
"""

import hashlib
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sanakit.distributed import STOP, barrier, exit_code, gathered_rows, is_main, rank, world_size
from sanakit.errors import ExitCode, SanakitError
from sanakit.files import without_secrets
from sanakit.tracebacks import describe, of_environment, stops
from sanakit.tracebacks import told as told_with_traceback

FOLDER = ".ranks"  # in the run folder
LOOK_EVERY = 0.5  # seconds
PATIENCE = 3.0  # seconds until a rank speaks for another one, or for itself where rank 0 may meet the same error
GRACE = 15.0  # seconds until a rank that hangs in a collective ends; torchrun waits for 30
GONE = "its process is gone without a message: killed, often for want of memory, or its machine failed"
LOST, SIGNAL = "SK0516", "signal"


class EndsQuietly(Exception):
    """This rank ends because another one did, which was said already."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"another rank ended; exit code {exit_code}")


@contextmanager
def watched_ranks(run_dir: Path | None) -> Iterator[None]:
    """Within, a rank that is lost ends all of them with one message. run_dir: seen by all ranks; nothing is watched
    without one, or alone. Raises EndsQuietly on the ranks that do not speak, SK0516 or the error itself on the one that
    does."""
    if world_size() == 1 or run_dir is None:
        yield
        return
    peers = Peers(run_dir)
    try:
        yield
    except BaseException as error:
        ending = peers.ending_of(error)
        if ending is error:
            raise
        raise ending from error
    else:
        peers.leave()
    finally:
        peers.close()


class Peers:
    """The ranks of a run, by number: {host, process}. A thread watches those on this machine."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, run_dir / FOLDER
        barrier()
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (*self.folder.glob("*.left"), *self.folder.glob("told-*")):
                path.unlink(missing_ok=True)
        barrier()
        self.ranks = gathered_rows([{"host": socket.gethostname(), "process": os.getpid()}])
        self._end = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        self._end.set()

    def leave(self, error: str = "", code: str = "") -> None:
        """Say that this rank ends by itself, so that nobody takes it for lost."""
        with suppress(OSError):
            aside = self.folder / f"{rank()}.tmp-left"
            aside.write_text(json.dumps({"error": error, "code": code}), encoding="utf-8")
            aside.replace(self.folder / f"{rank()}.left")

    def ending_of(self, error: BaseException) -> BaseException:
        """What this rank ends with: the error itself where it is the one to say it, or where nobody needs to."""
        refusal = error if isinstance(error, SanakitError) else of_environment(error)
        if stops(error):  # a signal that all ranks were sent, or one that followed a loss
            lost = self.lost()
            if lost is None:
                self.leave(code=SIGNAL)
                return error
            return self._say(*lost)
        if refusal is not None and refusal.code == LOST:
            lost = self._lost_soon()
            if lost is None and any((left := self._left(n)) and left["code"] == SIGNAL for n in range(len(self.ranks))):
                return EndsQuietly(exit_code(STOP.number or signal.SIGTERM))
            return self._say(*(lost or (-1, refusal.found)))
        told = refusal.found if refusal is not None else describe(error)
        self.leave(told, refusal.code if refusal is not None else "SK0999")
        if self._met_by_all():
            return error if is_main() else EndsQuietly(ExitCode.ERROR if refusal is None else refusal.exit_code)
        refusal = refusal or SanakitError("SK0999", told_with_traceback(error))
        return self._say(rank(), f"{refusal.code}: {refusal.found}", refusal)

    def lost(self) -> tuple[int, str] | None:
        """A rank of this machine whose process is gone, or any that left with an error, and what is known of it."""
        for number, one in enumerate(self.ranks):
            left = self._left(number)
            if number != rank() and left and left["error"]:
                return number, f"{left['code']}: {left['error']}"
            if left is None and one["host"] == socket.gethostname() and not _lives(one["process"]):
                return number, GONE
        return None

    def _lost_soon(self) -> tuple[int, str] | None:
        """The same, waited for."""
        end = time.monotonic() + PATIENCE
        while (lost := self.lost()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return lost

    def _met_by_all(self) -> bool:
        """Whether every rank leaves with the same error; rank 0 then says it as one process would."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            left = [self._left(number) for number in range(len(self.ranks))]
            codes = {one["code"] for one in left if one}
            if all(left) or len(codes) > 1:
                return len(codes) == 1 and all(left)
            time.sleep(0.05)
        return False

    def _left(self, number: int) -> dict[str, str] | None:
        try:
            left = json.loads((self.folder / f"{number}.left").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return {"error": str(left["error"]), "code": str(left["code"])}

    def _say(self, number: int, what: str, met: SanakitError | None = None) -> BaseException:
        """SK0516 where nobody has said it yet. met: the error of this rank, whose cause, fix and exit code stay."""
        if met is None:  # else it has said so
            self.leave()
        code = met.exit_code if met is not None else ExitCode.ENVIRONMENT
        if not claim(self.folder):
            return EndsQuietly(code)
        error = self.message(number, what, met)
        error.exit_code = code
        return error

    def message(self, number: int, what: str, met: SanakitError | None = None) -> SanakitError:
        """Which rank, where it stood, what was saved, and the command that goes on."""
        who = "a rank on another machine"
        if number >= 0:
            one = self.ranks[number]
            who = f"rank {number} of {len(self.ranks)} (process {one['process']} on {one['host']})"
        told = f"{who}{self._place_of(number)}: {what}; {saved(self.run_dir)}"
        fix = f"{met.fix} Then this goes on: {goes_on()}" if met is not None else f"This goes on: {goes_on()}"
        return SanakitError(LOST, told, cause=met.cause if met is not None else None, fix=fix)

    def _place_of(self, number: int) -> str:
        """At which step it stood, by the file that it keeps for the others (training/watch.py)."""
        try:
            step = json.loads((self.folder / f"{number}.json").read_text(encoding="utf-8"))["step"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f", last seen at step {step}"

    def _look(self) -> None:
        """Speak for a rank that is gone, and end where the main thread hangs in a collective."""
        while not self._end.wait(LOOK_EVERY):
            gone = [lost for lost in [self.lost()] if lost is not None and lost[1] == GONE]
            if not gone:
                continue
            if claim(self.folder):
                sys.stderr.write(f"{self.message(*gone[0])}\n  more:  sanakit explain {LOST}\n")
                sys.stderr.flush()
            if not self._end.wait(GRACE):
                os._exit(ExitCode.ENVIRONMENT)
            return


def claim(folder: Path) -> bool:
    """Whether this rank is the one that speaks: the first that asks in this launch."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    launch = hashlib.sha256("/".join(os.environ.get(name, "") for name in names).encode()).hexdigest()[:16]
    try:
        os.close(os.open(folder / f"told-{launch}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:  # a message too many is better than none
        return True
    return True


def saved(run_dir: Path) -> str:
    """What a run folder holds of a run that was cut short, in words."""
    steps = sorted(path.parent.name for path in (run_dir / "checkpoints").glob("step-*/manifest.json"))
    if steps:
        return f"saved: step {int(steps[-1].removeprefix('step-'))}, in {run_dir / 'checkpoints'}"
    if any((run_dir / "race").glob("*/*")):
        return f"saved: the race, in {run_dir / 'race'}"
    return "saved: no step yet"


def goes_on() -> str:
    """The command of this process, under torchrun as it was started on one machine."""
    words = [without_secrets(word) for word in sys.argv[1:]]
    for place in range(len(words) - 1):
        if words[place : place + 2] == ["--resume", "never"]:
            words[place + 1] = "auto"
    text = shlex.join(["--resume=auto" if word == "--resume=never" else word for word in words])
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return f"torchrun --standalone --nproc_per_node={world_size()} $(which sanakit) {text}"
    return f"sanakit {text}, by the same launcher on every machine"


def _lives(process: int) -> bool:
    """Whether a process of this machine is there; one that has ended and was not waited for is not."""
    with suppress(OSError, IndexError):  # Linux
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: it is there
        pass
    return True
