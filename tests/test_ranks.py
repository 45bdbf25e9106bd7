"""Ranks share their work, and one of them speaks where another is lost. Run with a scenario it is a rank over gloo.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=N python tests/test_ranks.py SCENARIO FOLDER
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sanakit import distributed
from sanakit.errors import SanakitError
from sanakit.ranks import lost, sharing
from sanakit.tracebacks import of_environment


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(scenario, folder, count=2):
    """What every rank says on standard error and how it ends: [(exit code, text), ...]."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, scenario, str(folder), "--resume", "never"],
            env=os.environ | shared | {"RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    return [(process.returncode, text) for process in ranks for text in [process.communicate(timeout=120)[1]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    ends = start("share", folder)
    assert [code for code, _ in ends] == [0, 0], ends
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


@pytest.mark.distributed
def test_what_ranks_share_is_what_one_rank_computes_in_the_same_order(told):
    for number, record in enumerate(told):
        assert record["squares"] == [[place**2 for place in range(count)] for count in range(6)]
        # of five items three are this rank's; the second has two, and repeats the last one so that both work as often
        assert record["mine"] == [[0, 1, 2], [3, 4, 4]][number]
        assert record["inner"] == [0, 1, 2, 3]  # shared work inside shared work is each rank's own
        assert record["not begun"] == [0, 1, 2]  # another program under torchrun
        assert record["agreed"] == [True, False] and record["chosen"] == "by rank 0"


@pytest.mark.distributed
def test_an_error_in_shared_work_ends_it_on_every_rank(told):
    assert told[1]["failed"] == "SK0507: 1 image is not finite"
    assert told[0]["failed"] == "SK0516: rank 1: 1 image is not finite"


@pytest.mark.distributed
def test_a_rank_that_is_killed_is_named_once_with_what_was_saved_and_the_command(tmp_path):
    (tmp_path / "checkpoints" / "step-00000040").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000040" / "manifest.json").write_text("{}")
    begun = time.monotonic()
    (first, text), (killed, silence) = start("kill", tmp_path)
    assert (first, killed, silence) == (3, -signal.SIGKILL, "")
    assert text.count("error[SK0516]") == 1 and "Traceback" not in text
    assert "rank 1 of 2 (process " in text and "last seen at step 41: its process is gone without a message" in text
    assert f"saved: step 40, in {tmp_path / 'checkpoints'}" in text
    command = f"torchrun --standalone --nproc_per_node=2 $(which sanakit) kill {tmp_path} --resume auto"
    assert f"This goes on: {command}" in text
    assert time.monotonic() - begun < 100


@pytest.mark.distributed
def test_an_error_of_one_rank_is_said_once_and_one_of_all_as_by_one_process(tmp_path):
    ends = start("errors", tmp_path)
    assert [code for code, _ in ends] == [3, 2]  # rank 0 ends because the other one did
    assert sum(text.count("error[SK0105]") for _, text in ends) == 1 and "error[SK0105]: both" in ends[0][1]
    spoken = "".join(text for _, text in ends)
    assert spoken.count("error[SK0516]") == 1
    assert "rank 1 of 2 (process " in ends[1][1] and "SK0501: loss nan; saved: no step yet" in ends[1][1]
    assert "fix:   Lower train.learning_rate" in ends[1][1] and "Then this goes on: torchrun" in ends[1][1]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242", True),
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection reset by peer", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_broken_connection_to_a_rank_is_an_error_of_the_environment(text, known):
    error = of_environment(RuntimeError(text))
    assert (error is not None and error.code == "SK0516") is known


def test_one_message_of_several_ranks_in_one_launch(tmp_path):
    assert [lost.claim(tmp_path), lost.claim(tmp_path)] == [True, False]


def test_what_a_folder_holds_of_a_run_that_was_cut_short(tmp_path):
    assert lost.saved(tmp_path) == "saved: no step yet"
    (tmp_path / "race" / "finetune-0.001" / "step-00000025").mkdir(parents=True)
    assert lost.saved(tmp_path) == f"saved: the race, in {tmp_path / 'race'}"


def test_alone_nothing_is_watched_and_all_items_are_given_at_once(tmp_path):
    given = []
    with lost.watched_ranks(tmp_path), sharing.ranks_share():
        assert sharing.shared(range(3), lambda items: given.append(items) or [2 * item for item in items]) == [0, 2, 4]
    assert given == [range(3)] and not (tmp_path / lost.FOLDER).exists()


# what a rank does


def share(folder):
    number = distributed.rank()
    record = {"not begun": [0, 1, 2] if sharing.shared(range(3), list) == [0, 1, 2] else None}
    seen = []

    def squares(items):
        seen.append(list(items))
        return [item**2 for item in items]

    def inner(items):
        return [sharing.shared([item], list)[0] for item in items]

    def broken(items):
        if number == 1:
            raise SanakitError("SK0507", "1 image is not finite")
        return list(items)

    with sharing.ranks_share():
        record["squares"] = [sharing.shared(range(count), squares) for count in range(6)]
        record["mine"], record["inner"] = seen[-1], sharing.shared(range(4), inner)
        record["chosen"] = sharing.of_main(f"by rank {number}")
        record["agreed"] = [sharing.all_ranks(True), sharing.all_ranks(number == 0)]
        try:
            sharing.shared(range(4), broken)
        except SanakitError as error:
            record["failed"] = f"{error.code}: {error.found}"
    (folder / f"{number}.json").write_text(json.dumps(record))


def kill(folder):
    import torch

    with lost.watched_ranks(folder):
        (folder / lost.FOLDER / f"{distributed.rank()}.json").write_text('{"step": 41}')
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.sum_over_ranks(torch.zeros(()), 0)


def errors(folder):
    try:
        with lost.watched_ranks(folder):
            raise SanakitError("SK0105", "both")
    except lost.EndsQuietly:
        pass
    except SanakitError as error:
        print(error, file=sys.stderr)
    with lost.watched_ranks(folder):
        if distributed.rank() == 1:
            raise SanakitError("SK0501", "loss nan")
        distributed.barrier()


if __name__ == "__main__":
    try:
        {"share": share, "kill": kill, "errors": errors}[sys.argv[1]](Path(sys.argv[2]))
    except lost.EndsQuietly as ending:
        os._exit(ending.exit_code)
    except SanakitError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    sys.stderr.flush()
    os._exit(0)
