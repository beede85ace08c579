"""The untrained base: Qwen2's architecture, started so that copying is easy to learn.

From a random start a model this small sits on a plateau for longer than we want to train.
So layer 0 begins with heads that look a fixed number of tokens back, and layer 1 with heads
that use what those found: they look for an earlier occurrence of the current token or pair
and for the requirement whose id was just written, and copy what stands there.
"""

from __future__ import annotations

import math

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

HEAD = 32
HEADS = 6
KV_HEADS = 3
ROPE_THETA = 1e6

CODE = 16
"""Coordinates of an embedding that stand for the whole token when tokens are compared."""
ROOM = {1: 176, 2: 160, 4: 144, 6: 128, 9: 112}
"""Where a token finds the code of the token so many places before it.

In an answer's `FR001:` the colon comes 1 token after the last digit and 4 after `FR`. In the
requirements a description's first word comes 6 and 9 tokens after those of its id.
"""
PART = 10
"""Coordinates of a code that are compared where two tokens are."""


def new_model(vocabulary: int, end: int, alike: list[tuple[int, int]]) -> Qwen2ForCausalLM:
    """A model of about 1.9 million parameters, ready for training.

    The tokens of each pair in `alike` start with one code, so they count as the same.
    """
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=HEAD * HEADS,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        initializer_range=0.05,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.15)
            layer.mlp.down_proj.weight.mul_(0.15)
        _start_induction(model)
        codes = model.model.embed_tokens.weight[:, :CODE]
        for one, other in alike:
            codes[other] = codes[one]
    return model


def _start_induction(model: Qwen2ForCausalLM) -> None:
    model.model.embed_tokens.weight[:, min(ROOM.values()) :] = 0
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for query_head, (steps, room) in enumerate(ROOM.items()):
        _look_back(first, query_head=query_head, steps=steps, room=room)
    _match(second, 0, [(0, ROOM[1], CODE)])
    _match(second, 1, [(0, ROOM[1], PART), (ROOM[1], ROOM[2], PART)])
    _match(second, 2, [(ROOM[1], ROOM[6], PART), (ROOM[4], ROOM[9], PART)])
    for head in range(KV_HEADS):  # what is copied: another part of the embedding for each head
        _copy(second, kv_head=head, query_head=2 * head, source=HEAD * head, gain=0.1)


def _look_back(attention: torch.nn.Module, *, query_head: int, steps: int, room: int) -> None:
    """Attend to the token `steps` before, by position alone, and note its code in `room`."""
    query, key = _rows(query_head), _rows(query_head // 2)
    attention.q_proj.weight[query] = 0
    attention.k_proj.weight[key] = 0
    for frequency in range(4):  # the fast ones tell neighbours apart
        angle = steps * ROPE_THETA ** (-frequency / (HEAD // 2))
        attention.q_proj.bias[query.start + frequency] = 9 * math.cos(angle)
        attention.q_proj.bias[query.start + frequency + HEAD // 2] = -9 * math.sin(angle)
        attention.k_proj.bias[key.start + frequency] = 9
    attention.v_proj.weight[key] = 0
    attention.o_proj.weight[:, query] = 0
    for place in range(CODE):
        attention.v_proj.weight[key.start + place, place] = 1
        attention.o_proj.weight[room + place, query.start + place] = 0.1


def _match(attention: torch.nn.Module, kv_head: int, parts: list[tuple[int, int, int]]) -> None:
    """Attend where the `parts` (query coordinate, key coordinate, length) agree."""
    query, key = _rows(2 * kv_head), _rows(kv_head)
    attention.q_proj.weight[query] = 0
    attention.k_proj.weight[key] = 0
    # Slow rotations only: over a whole sequence they hardly turn, so distance does not matter.
    slow = [pair + side for pair in range(6, 16) for side in (0, HEAD // 2)]
    for query_from, key_from, length in parts:
        for place in range(length):
            row = slow.pop(0)
            attention.q_proj.weight[query.start + row, query_from + place] = 1.7
            attention.k_proj.weight[key.start + row, key_from + place] = 1.7


def _copy(
    attention: torch.nn.Module, *, kv_head: int, query_head: int, source: int, gain: float
) -> None:
    value, query = _rows(kv_head), _rows(query_head)
    attention.v_proj.weight[value] = 0
    attention.o_proj.weight[:, query] = 0
    for place in range(HEAD):
        attention.v_proj.weight[value.start + place, source + place] = 1
        attention.o_proj.weight[source + place, query.start + place] = gain


def _rows(head: int) -> slice:
    return slice(head * HEAD, (head + 1) * HEAD)
