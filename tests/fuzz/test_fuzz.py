"""A short run over every parser that faces the network or a file; `make fuzz` is the long one."""

from __future__ import annotations

import random
import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutations import mutate
from fuzz.targets import CORPUS, TARGETS, inputs

SECONDS = 5.0
"""Processor time that one input may cost; the slowest takes hundredths."""
MEGABYTES = 400
"""What a whole run may add to the process's memory."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_accepts_a_seed(name: str) -> None:
    target = TARGETS[name]
    accepted = [target.survives(seed) for seed in target.seeds()]
    # What is sealed or signed by others cannot be accepted here.
    assert any(accepted) or name in ("evidence", "pcs", "ias-report", "metadata")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_survived(name: str) -> None:
    for data in inputs(name):
        TARGETS[name].survives(data)


def test_the_corpus_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_errors_in_bounded_time_and_memory(name: str) -> None:
    target = TARGETS[name]
    begin = inputs(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=120, deadline=None, database=None)
    @given(st.integers(0, 2**64 - 1))
    def run(seed: int) -> None:
        data = mutate(random.Random(seed), begin, target.words)
        started = time.thread_time()
        target.survives(data)
        assert time.thread_time() - started < SECONDS

    run()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
