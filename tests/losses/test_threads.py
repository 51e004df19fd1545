"""Threads that share blocks: every block once, in the right mode, and nothing else changed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.losses.test_registry import batch
from transferseg.losses import bce_dice_loss, blocks
from transferseg.losses import threads as module
from transferseg.losses.threads import MOST, shared_out, threads_for

MODES = ["binary", "multiclass", "multilabel"]


@pytest.fixture(params=[2, 3, MOST])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ON_CPU", 64)
    monkeypatch.setattr(blocks, "WHOLE_ON_CPU", 64)


@pytest.fixture
def new_team(monkeypatch):
    """As in a process that has started none."""
    monkeypatch.setattr(module, "_TEAM", module._Team())


def settings():
    return torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def in_a_new_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_every_item_is_taken_once_and_by_all(threads):
    taken = {}
    all_here = threading.Barrier(threads)

    def work(own):
        all_here.wait(10)  # fails unless as many are at work at once
        taken[threading.get_ident()] = list(own)

    shared_out(work, range(1000), threads)
    assert len(taken) == threads
    assert threading.get_ident() not in taken
    assert sorted(number for own in taken.values() for number in own) == list(range(1000))


@pytest.mark.usefixtures("new_team")
@pytest.mark.parametrize("inference", [False, True])
def test_each_computes_alone_and_without_gradients(threads, inference):
    found = []
    all_here = threading.Barrier(MOST)

    def work(own):
        all_here.wait(10)
        found.append(settings())

    with torch.inference_mode(inference):
        shared_out(work, range(MOST), MOST)
    assert found == [(1, False, inference)] * MOST
    assert settings() == (threads, True, False)
    assert in_a_new_thread(torch.get_num_threads) == threads


@pytest.mark.usefixtures("new_team")
def test_a_thread_with_its_own_number_leaves_that_of_others(threads):
    with ThreadPoolExecutor(1) as one:
        one.submit(torch.get_num_threads).result()  # before it, a number would not stay
        one.submit(torch.set_num_threads, 5).result()
        torch.set_num_threads(threads)  # of this thread, and of new ones
        one.submit(shared_out, list, [1, 2], 2).result()
        assert one.submit(torch.get_num_threads).result() == 5
    assert torch.get_num_threads() == threads
    assert in_a_new_thread(torch.get_num_threads) == threads


@pytest.mark.parametrize(("items", "threads"), [(1, 4), (5, 1), (0, 2)])
def test_the_callers_thread_where_there_is_nothing_to_share(items, threads):
    found = []
    shared_out(lambda own: found.append((threading.get_ident(), list(own))), range(items), threads)
    assert found == [(threading.get_ident(), list(range(items)))]


def test_an_error_is_raised_and_the_rest_is_left(threads):
    done = []

    def work(own):
        for number in own:
            if number == 3:
                raise ValueError("item 3")
            time.sleep(0.001)
            done.append(number)

    with pytest.raises(ValueError, match="item 3"):
        shared_out(work, range(10_000), threads)
    assert len(done) < 5_000
    ended = len(done)
    time.sleep(0.02)
    assert len(done) == ended
    shared_out(done.extend, [-1, -2], threads)
    assert {-1, -2} <= set(done)


def test_an_error_holds_no_memory(threads):
    def fail(own):
        held = torch.zeros(8)
        gone.append(weakref.ref(held))
        raise ValueError(held.sum().item())

    gone = []
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="0"):
                shared_out(fail, range(20), threads)
        assert len(gone) >= 3
        assert [one() for one in gone if one() is not None] == []
    finally:
        gc.enable()


@pytest.mark.usefixtures("new_team")
def test_where_no_thread_can_be_started_the_caller_computes(threads, monkeypatch):
    start, started = threading.Thread.start, []

    def refuse(self):
        started.append(self)
        if 3 <= len(started) <= 6:
            raise RuntimeError("can't start new thread")
        start(self)

    found = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    shared_out(lambda own: found.extend((threading.get_ident(), one) for one in own), "abc", 2)
    monkeypatch.undo()
    assert found == [(threading.get_ident(), letter) for letter in "abc"]
    assert torch.get_num_threads() == threads
    assert in_a_new_thread(torch.get_num_threads) == threads


class Follower(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_who_gets_threads(threads, monkeypatch):
    values = torch.zeros(2)
    assert threads_for(values) == threads
    assert threads_for(torch.zeros(2, device="meta")) == 1
    assert threads_for(torch.nn.Parameter(values)) == 1
    with Follower():
        assert threads_for(values) == 1
    torch.set_num_threads(MOST + 1)
    assert threads_for(values) == 1
    torch.set_num_threads(1)
    assert threads_for(values) == 1
    torch.set_num_threads(threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert threads_for(values) == 1


def value_and_gradient(mode, dtype=torch.float32):
    logits, target = batch(mode, size=(24, 40), dtype=dtype)
    logits = logits.detach().requires_grad_()
    loss = bce_dice_loss(logits, target, mode=mode)
    return loss.detach(), *torch.autograd.grad(loss, logits)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", MODES)
def test_losses_use_them(mode, threads, monkeypatch):
    calls = []

    def seen(work, items, threads):
        calls.append((threads, len(items) > threads))
        shared_out(work, items, threads)

    monkeypatch.setattr(blocks, "shared_out", seen)
    value_and_gradient(mode)
    assert calls == [(threads, True)] * 2  # forward and backward


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(mode, dtype, threads):
    ours = value_and_gradient(mode, dtype)
    torch.set_num_threads(1)
    for one, other in zip(ours, value_and_gradient(mode, dtype), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("small_blocks", "threads")
@pytest.mark.parametrize("mode", MODES)
def test_backward_in_inference_mode(mode):
    logits, target = batch(mode, size=(24, 40), dtype=torch.float32)
    logits = logits.detach().requires_grad_()
    loss = bce_dice_loss(logits, target, mode=mode)
    with torch.inference_mode():
        loss.backward()
    assert torch.equal(logits.grad, value_and_gradient(mode)[1])


@pytest.mark.usefixtures("small_blocks", "threads")
def test_losses_of_many_threads_at_once():
    expected = value_and_gradient("multilabel")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(value_and_gradient, "multilabel") for _ in range(12)]
        for one in asked:
            for mine, alone in zip(one.result(60), expected, strict=True):
                assert torch.equal(mine, alone)


BEGIN = """
import atexit, os, signal, torch
from transferseg.losses import bce_dice_loss, blocks
torch.set_num_threads(2)
blocks.ON_CPU = 64
logits, target = torch.linspace(-3, 3, 512).reshape(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
def loss():
    return bce_dice_loss(logits, target, mode="binary")
before = loss()
"""
FORK = """
child = os.fork()
if not child:
    signal.alarm(30)  # or it would outlive this test
    os._exit(0 if torch.equal(before, loss()) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
AT_EXIT = """
def last():
    print("the same" if torch.allclose(before, loss()) else "another")
atexit.register(last)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_starts_its_own():
    """Threads do not live on in a child, and whoever waits for them does so for ever."""
    subprocess.run([sys.executable, "-c", BEGIN + FORK], check=True, timeout=60)


def test_a_loss_while_the_process_ends():
    """No thread can be given work then."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + AT_EXIT], check=True, timeout=60, capture_output=True
    )
    assert done.stdout.split() == [b"the", b"same"]
