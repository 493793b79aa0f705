import pytest
import torch
from greenlet import greenlet
from transformers.modeling_outputs import BaseModelOutput

from promptmill.pipelines.rendering import text
from promptmill.pipelines.rendering.modules import rows_first
from promptmill.pipelines.rendering.text import TextEncoder

WIDTH, LAYERS = 16, 5


class Encoder(torch.nn.Module):
    """Encodes tokens as their sum; keeps the tokens that it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked, self.sizes = [], []

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        self.sizes.append(len(input_ids))
        self.asked += dict.fromkeys(tuple(row) for row in input_ids.tolist())
        made = input_ids.sum(1, keepdim=True).float().expand(-1, WIDTH).unsqueeze(1)
        layers = tuple(made + layer for layer in range(LAYERS)) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=made, hidden_states=layers)


class Shared:
    """An encoder that several callers ask."""

    def __init__(self, batch=4):
        self.module = Encoder()
        self.encoder = TextEncoder(self.module, batch)

    def asked_by(self, *calls):
        """What callers that ask at the same time are answered."""
        made = {}
        callers = [greenlet(lambda n=n, call=call: made.update({n: call(self.encoder.hold)})) for n, call in enumerate(calls)]
        for caller in callers:
            caller.switch()
        while self.encoder.joined.waiting:
            for caller, answer in self.encoder.joined.run_batch():
                caller.switch(answer)
        return [made[n] for n in range(len(calls))]

    def encoded(self, *texts, **options):
        (made,) = self.asked_by(lambda hold: hold(torch.tensor(texts), **options))
        return made

    def held(self):
        return sum(map(text._bytes, self.encoder._kept.values()))


@pytest.fixture
def shared():
    return Shared()


def test_equal_texts_are_encoded_once_whoever_asks_and_always_in_batches_of_one_size(shared):
    first, second, third = shared.asked_by(
        lambda hold: hold(torch.tensor([[1, 2], [3, 4], [1, 2]])),
        lambda hold: hold(torch.tensor([[5, 6]])),
        lambda hold: hold(torch.tensor([[5, 6]])),
    )
    assert first.last_hidden_state[:, 0, 0].tolist() == [3, 7, 3]
    assert second.last_hidden_state[:, 0, 0].tolist() == third.last_hidden_state[:, 0, 0].tolist() == [11]
    assert shared.encoded([3, 4], [7, 8]).last_hidden_state[:, 0, 0].tolist() == [7, 15]
    assert shared.module.asked == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert set(shared.module.sizes) == {4}


def test_the_same_tokens_under_another_mask_or_other_loras_are_another_text(shared):
    shared.encoded([1, 2], attention_mask=torch.tensor([[1, 1]]))
    shared.encoded([1, 2], attention_mask=torch.tensor([[1, 0]]))
    shared.encoder.adapted = (("style", 0.5),)
    shared.encoded([1, 2], attention_mask=torch.tensor([[1, 0]]))
    assert len(shared.module.asked) == 3


def test_no_more_is_kept_than_so_many_bytes(shared, monkeypatch):
    monkeypatch.setattr(text, "KEPT", 5 * WIDTH * 4)
    for number in range(1, 30):
        assert (shared.encoded([number], [100]).last_hidden_state[:, 0, 0]).tolist() == [number, 100]
        assert shared.held() == shared.encoder._bytes <= 5 * WIDTH * 4
    # The latest are there still, and what every call needs never goes.
    assert shared.module.asked.count((100,)) == 1
    shared.encoded([29])
    assert shared.module.asked.count((29,)) == 1
    shared.encoded([1])
    assert shared.module.asked.count((1,)) == 2


def test_one_call_may_need_more_than_is_kept(shared, monkeypatch):
    monkeypatch.setattr(text, "KEPT", 2 * WIDTH * 4)
    made = shared.encoded(*([number] for number in range(9)))
    assert made.last_hidden_state[:, 0, 0].tolist() == list(range(9))
    assert shared.held() == 2 * WIDTH * 4


def test_of_the_layers_those_are_kept_that_somebody_looks_at(shared):
    for number in range(6):
        made = shared.encoded([number], output_hidden_states=True)
        assert made.hidden_states[-2][0, 0, 0] == number + LAYERS - 2
    # The first was kept before anybody had looked at it.
    assert shared.held() <= (LAYERS + 1 + 5 * 2) * WIDTH * 4
    assert shared.encoded([3], output_hidden_states=True).hidden_states[-2][0, 0, 0] == 3 + LAYERS - 2
    assert len(shared.module.asked) == 6


def test_layers_that_nobody_has_looked_at_before_are_encoded_again(shared):
    for number in (1, 2):
        assert shared.encoded([number], output_hidden_states=True)[1][-2][0, 0, 0] == number + LAYERS - 2
    with pytest.raises(TypeError):
        shared.encoded([2], output_hidden_states=True).hidden_states[0][0, 0, 0]
    assert shared.encoded([2], output_hidden_states=True).hidden_states[0][0, 0, 0] == 2


def test_an_encoder_with_its_rows_second_is_always_given_a_mask_and_its_answer_is_turned():
    # On a GPU, whether there is a mask decides the kernel; plainly there is one only where one of a batch's texts is padded.
    class Encoder:
        def get_masks(self, tokens, past, padding_mask):
            return "made of all rows"

        def forward(self, input_ids, attention_mask, full_attention_mask, use_cache):
            assert full_attention_mask == "made of all rows" and not use_cache
            return BaseModelOutput(hidden_states=(input_ids.T.unsqueeze(-1),))

    tokens = torch.arange(6).reshape(2, 3)
    (layer,) = rows_first(Encoder())(input_ids=tokens, attention_mask=torch.ones(2, 3)).hidden_states
    assert torch.equal(layer, tokens.unsqueeze(-1))
