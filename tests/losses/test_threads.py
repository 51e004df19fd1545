"""Threads that share blocks: every block once, in the right mode, and nothing else changed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.losses.test_registry import batch
from transferseg.losses import bce_dice_loss, blocks
from transferseg.losses.threads import _TEAMS, MOST, shared_out, threads_for


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


def test_threads_compute_alone_and_without_gradients(threads):
    found = []
    with torch.inference_mode():
        shared_out(lambda own: found.extend(settings() for _ in own), range(20), threads)
    assert set(found) == {(1, False, False)}
    assert settings() == (threads, True, False)
    assert in_a_new_thread(torch.get_num_threads) == threads


def test_torchs_threads_stay_as_many_as_they_were(threads, monkeypatch):
    monkeypatch.setattr(_TEAMS, "_known", {})  # all begin anew
    for sharing in (2, threads, threads + 1):
        shared_out(lambda own: list(own), [1, 2], sharing)
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
    shared_out(lambda own: done.extend(own), [-1, -2], threads)
    assert {-1, -2} <= set(done)


def test_who_gets_threads(threads):
    values = torch.zeros(2)
    assert threads_for(values) == threads
    assert threads_for(torch.zeros(2, device="meta")) == 1
    assert threads_for(values.as_subclass(torch.nn.Parameter)) == 1
    torch.set_num_threads(MOST + 1)
    assert threads_for(values) == 1
    torch.set_num_threads(1)
    assert threads_for(values) == 1


def value_and_gradient(mode, dtype=torch.float32):
    logits, target = batch(mode, size=(24, 40), dtype=dtype)
    logits = logits.detach().requires_grad_()
    loss = bce_dice_loss(logits, target, mode=mode)
    return loss.detach(), *torch.autograd.grad(loss, logits)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(mode, dtype, threads):
    ours = value_and_gradient(mode, dtype)
    torch.set_num_threads(1)
    for one, other in zip(ours, value_and_gradient(mode, dtype), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("small_blocks")
def test_losses_of_many_threads_at_once(threads):
    expected = value_and_gradient("multilabel")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(value_and_gradient, "multilabel") for _ in range(12)]
        for one in asked:
            for mine, alone in zip(one.result(60), expected, strict=True):
                assert torch.equal(mine, alone)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_starts_its_own():
    """Threads do not live on in a child, and whoever waits for them does so for ever."""
    code = """
import os, torch
from transferseg.losses import bce_dice_loss, blocks
torch.set_num_threads(2)
blocks.ON_CPU = 64
logits, target = torch.linspace(-3, 3, 512).reshape(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
before = bce_dice_loss(logits, target, mode="binary")
child = os.fork()
if not child:
    same = torch.equal(before, bce_dice_loss(logits, target, mode="binary"))
    os._exit(0 if same else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
