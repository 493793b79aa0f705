"""Which calls a batch takes: those that are alike, the oldest first, but for kinds that fill a batch."""

import torch
from greenlet import greenlet

from promptmill.pipelines.rendering.batching import PATIENCE, Joined
from promptmill.pipelines.rendering.rows import spread


def joined(shape):
    """Joins a function, and returns a way to call it and the widths of the batches that ran."""
    widths = []

    def run(x):
        widths.append(x.shape[1])
        return x + 1

    one = Joined.of(run, shape)
    answers = []

    def ask(rows, width):
        greenlet(lambda: answers.append(one.hold(x=torch.zeros(rows, width)))).switch()

    return one, ask, widths, answers


def drain(one, most=1000):
    for _ in range(most):
        if not one.waiting:
            return
        for caller, answer in one.run_batch():
            caller.switch(answer)


def test_a_kind_that_fills_a_batch_goes_before_an_older_one_that_does_not():
    one, ask, widths, answers = joined(4)
    ask(1, 8)
    for _ in range(2):
        ask(2, 16)
    assert one.most_alike == 4
    drain(one)
    assert widths == [16, 8]
    assert sorted((*answer.shape, float(answer.sum())) for answer in answers) == [(1, 8, 8.0), (2, 16, 32.0), (2, 16, 32.0)]


def test_of_kinds_that_fill_no_batch_the_oldest_goes_first():
    one, ask, widths, _ = joined(4)
    ask(1, 8)
    ask(3, 16)
    ask(2, 8)
    drain(one)
    assert widths == [8, 16]


def test_no_call_waits_for_more_full_batches_of_others_than_patience_has():
    one, ask, widths, _ = joined(2)
    ask(1, 8)
    for _ in range(3 * PATIENCE):
        ask(2, 16)
    drain(one)
    assert widths.index(8) == PATIENCE


def test_calls_whose_batch_raises_are_those_that_were_in_it():
    one, ask, _, _ = joined(2)
    ask(1, 8)
    ask(2, 16)
    one.run = lambda x: 1 / 0
    callers = [call.caller for call in one.waiting]
    try:
        one.run_batch()
    except ZeroDivisionError:
        assert one.give_up_batch() == callers[1:]
    assert [call.caller for call in one.waiting] == callers[:1]


def test_rows_are_joined_in_one_memory_format_also_where_torch_takes_theirs_for_either():
    # A picture of one channel, as numpy has it: torch would go on as if its channels lay innermost.
    grey = torch.zeros(2, 64, 64, 1).permute(0, 3, 1, 2)
    assert grey.is_contiguous() and grey.is_contiguous(memory_format=torch.channels_last)
    alone, together = spread([grey], 2), spread([grey[:1], grey[1:]], 2)
    assert alone.stride() == together.stride() == (4096, 4096, 64, 1)


def test_a_call_of_larger_tensors_goes_in_smaller_batches_of_one_shape():
    seen = []

    def run(sample):
        seen.append(tuple(sample.shape))
        return sample * 2

    one = Joined.of(run, 4, fitting=lambda given: max(1, 16 // given["sample"].shape[-1]))
    answers = {}

    def call(name, rows, width):
        answers[name] = one.hold(torch.full((rows, width), float(rows)))

    for name, rows, width in (("small", 3, 2), ("large", 3, 8), ("huge", 1, 64)):
        greenlet(lambda name=name, rows=rows, width=width: call(name, rows, width)).switch()
    while one.waiting:
        for caller, answer in one.run_batch():
            caller.switch(answer)
    assert sorted(seen) == [(1, 64), (2, 8), (2, 8), (4, 2)]
    assert {name: answer.shape for name, answer in answers.items()} == {"small": (3, 2), "large": (3, 8), "huge": (1, 64)}
