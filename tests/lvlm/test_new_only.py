"""A query pays only for what is new; its answers are those of whole prompts, decided letter by letter."""

import functools
import itertools

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from benchmarks.drafts import passes as count_passes
from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.drafts import choose_drafts, paths_from, paths_of, usual_count
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.passes import dense_attention
from habitat_vlnr1.lvlm.prefix_cache import PrefixCache
from habitat_vlnr1.lvlm.query import common_beginning
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from tests.lvlm.test_models import build

WORDS = ["go to the red table and stop", "go to the table, then to the red one, and then stop"]
SPACE = ActionSpace()
MEMORY = make_memory("anchored", budget=4, short_window=2, long_stride=3)
N = 4
STOP, FORWARD, LEFT, RIGHT = Action
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 84, 84, 3), dtype=np.uint8)
EVERY_TWO = [list(answer) for answer in itertools.product((FORWARD, LEFT), repeat=N)]


@functools.cache
def model_of(kind):
    # Large weights, so that untrained answers differ between prompts.
    return build_tiny(WORDS * 2, space=SPACE, initializer_range=0.3, seed=3) if kind == "qwen2_vl" else build(kind)


@pytest.fixture(scope="module")
def tiny():
    return model_of("qwen2_vl")


def decoder_of(made, template="compact", **options):
    encoder = PromptEncoder(made[1], get_template(template), N, SPACE)
    return ActionDecoder(made[0], encoder, **options)


def prompt(walk, step, stream="its walk"):
    shown = [*MEMORY.select(step), step]
    frames, keys = [FRAMES[walk, i] for i in shown], [(walk, i) for i in shown]
    return Prompt(WORDS[walk % 2], frames, keys, walk if stream == "its walk" else stream)


# Environments at different steps of theirs; the second begins another walk, the third is away for a while.
BATCHES = [
    [prompt(0, 0), prompt(1, 4, "second"), prompt(2, 0)],
    [prompt(0, 3), prompt(1, 6, "second")],
    [prompt(0, 7), prompt(2, 1, "second")],
    [prompt(0, 9), prompt(2, 2, "second"), prompt(2, 12)],
]


def same(answers, wanted):
    for answer, other in zip(answers, wanted, strict=True):
        assert (answer.actions, answer.ids, answer.decided) == (other.actions, other.ids, other.decided)
        np.testing.assert_allclose(answer.log_probs, other.log_probs, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2_vl", {}),
        ("qwen2_vl", {"stop_is_final": False}),
        ("qwen2_vl", {"temperature": 2.0}),
        ("qwen2_5_vl", {"temperature": 2.0}),
        ("qwen3_vl", {"temperature": 2.0}),
    ],
    ids=str,
)
def test_answers_are_those_of_whole_prompts_letter_by_letter(kind, options):
    made = model_of(kind)
    plain = decoder_of(made, prefix_cache_mb=0, **options)
    fast = decoder_of(made, drafts=[[FORWARD] * N, [LEFT, FORWARD, RIGHT, STOP], [RIGHT] * N, [STOP]], **options)
    said = set()
    for number, prompts in enumerate(BATCHES):
        seeds = [(number, row) for row in range(len(prompts))] if options.get("temperature") else None
        wanted = plain.decode(prompts, seeds=seeds)
        same(fast.decode(prompts, seeds=seeds), wanted)
        said |= {answer.actions for answer in wanted}
    assert len(said) > 3
    assert plain.counts.tokens_reused == 0 and fast.counts.tokens == plain.counts.tokens
    assert 0.2 < fast.counts.tokens_reused / fast.counts.tokens < 0.8
    assert fast.counts.passes_of_answers < plain.counts.passes_of_answers


def test_frames_of_a_walk_that_has_ended_are_kept_nowhere(tiny):
    """Two environments take turns; the second begins another walk while the first goes on."""
    decoder = decoder_of(tiny)
    kept, cut = decoder._features._kept, decoder.encoder.cutter._kept
    decoder.decode([prompt(0, 5, "first"), prompt(1, 3, "second")])
    decoder.decode([prompt(0, 7, "first"), prompt(1, 4, "second")])
    assert {key[0] for key in kept} == {0, 1} and kept.keys() <= cut.keys()
    decoder.decode([prompt(2, 0, "second")])
    assert {key[0] for key in kept} == {0, 2} == {key[0] for key in cut}
    decoder.decode([prompt(0, 9, "first")])
    assert {(0, 0), (0, 9), (2, 0)} <= kept.keys()
    held = sum(part.nbytes for parts in kept.values() for part in parts)
    assert decoder._features._size == held and decoder.encoder.cutter._size == sum(
        p.pixels.nbytes for p in cut.values()
    )


@pytest.mark.parametrize(
    ("kind", "drafts"),
    [("qwen2_vl", []), ("qwen2_vl", [[FORWARD] * N]), ("qwen2_vl", EVERY_TWO), ("qwen3_vl", EVERY_TWO)],
)
def test_samples_of_a_prompt_share_what_is_run(kind, drafts):
    """GRPO's rollouts: 6 answers of each of two prompts, each drawn by its own seed."""
    made = model_of(kind)
    prompts, seeds = [prompt(0, 5, None), prompt(1, 1, None)], list(range(12))
    plain = decoder_of(made, temperature=2.0)
    alone = [plain.decode([prompts[seed // 6]], seeds=[seed])[0] for seed in seeds]
    decoder = decoder_of(made, temperature=2.0, drafts=drafts)
    same(decoder.decode(prompts, 6, seeds), alone)
    assert len({answer.actions for answer in alone}) > 6
    assert (decoder.counts.answers, decoder.counts.tokens * 6) == (12, plain.counts.tokens)
    assert decoder.counts.passes <= N


def test_an_answer_that_was_tried_takes_one_pass(tiny):
    """A decision beyond the drafts takes a pass, with which go those behind it that say FORWARD or the same again."""
    plain = decoder_of(tiny, stop_is_final=False)
    prompts = [prompt(walk, step) for walk in range(3) for step in (0, 4, 8, 12)]
    answers = [plain.decode([p])[0].actions for p in prompts]
    assert plain.counts.passes == plain.counts.passes_of_answers == N * len(prompts)
    for drafts in ([], [[FORWARD] * N], [[LEFT, RIGHT]], answers[:3], answers):
        decoder = decoder_of(tiny, stop_is_final=False, drafts=drafts)
        tried = set(paths_of(drafts, N, stop_is_final=False))
        for p, answer in zip(prompts, answers, strict=True):
            before, made = decoder.counts.passes, 1
            decoder.decode([p])
            passes = 1
            while made < N and answer[:made] in tried:
                made += 1
            while made < N:
                again, passes, made = paths_from(answer[:made], N), passes + 1, made + 1
                while drafts and made < N and answer[:made] in again:
                    made += 1
            assert decoder.counts.passes - before == passes, (drafts, answer)
    assert decoder.counts.passes == len(prompts)


def test_the_benchmark_counts_what_the_decoder_runs(tiny):
    prompts = [prompt(walk, step) for walk in range(3) for step in (0, 4, 8, 12)]
    for drafts in ([], [[FORWARD] * N], EVERY_TWO[:5]):
        decoder = decoder_of(tiny, drafts=drafts, temperature=3.0)
        answers = decoder.decode(prompts, 4, seeds=list(range(48)))
        counted = sum(count_passes(answer.actions, [tuple(draft) for draft in drafts]) for answer in answers)
        assert decoder.counts.passes_of_answers == counted


def test_equal_beginnings_have_equal_positions(tiny):
    decoder = decoder_of(tiny, "vln_ego")
    queries = [decoder._query(prompt(0, step)) for step in range(16)]
    reused = 0
    for last, query in itertools.pairwise(queries):
        tokens, images = common_beginning([query, last])
        assert (query.ids[:tokens] == last.ids[:tokens]).all() and query.keys[:images] == last.keys[:images]
        assert (query.positions[:, :tokens] == last.positions[:, :tokens]).all()
        assert tokens <= query.spans[images][0]  # an image that differs is not begun
        reused += images
    assert reused > 20


def test_only_the_same_frames_of_the_same_stream_are_reused(tiny):
    decoder = decoder_of(tiny, "vln_ego")

    def reused(asked):
        before = decoder.counts.tokens_reused
        decoder.decode([asked])
        return decoder.counts.tokens_reused - before

    query = decoder._query(prompt(0, 5))
    assert reused(prompt(0, 5)) == 0
    assert reused(prompt(0, 5)) == len(query.ids) - 1
    assert reused(prompt(0, 5, "another")) == 0
    other = prompt(0, 5)
    assert (
        reused(Prompt(other.instruction, other.frames, [(9, i) for i in range(len(other.frames))], 0))
        == (
            query.spans[0][0]  # equal words and equal placeholders, other frames
        )
    )
    assert reused(Prompt(other.instruction, other.frames, None, 0)) == query.spans[0][0]
    assert reused(Prompt(other.instruction, other.frames, None, 0)) == query.spans[0][0]  # nobody says which they are
    decoder.decode([prompt(0, 5)])
    decoder.forget()
    assert len(decoder._prefixes) == 0 and reused(prompt(0, 5)) == 0


def test_kept_prompts_are_bounded_in_bytes(tiny):
    decoder = decoder_of(tiny)
    decoder.decode([prompt(0, 5)])
    one = decoder._prefixes.size
    layers, heads, width = 3, 2, 32
    assert one == 2 * layers * heads * width * 4 * decoder.counts.tokens
    bounded = decoder_of(tiny, prefix_cache_mb=2.5 * one / 2**20)
    for stream in "abab":
        bounded.decode([prompt(0, 5, stream)])
    assert (len(bounded._prefixes), bounded._prefixes.size) == (2, 2 * one)
    tokens = bounded.counts.tokens // 4
    assert bounded.counts.tokens_reused == 2 * (tokens - 1)
    bounded.decode([prompt(0, 5, stream) for stream in "cd"])
    assert (len(bounded._prefixes), bounded._prefixes.size) == (2, 2 * one)
    bounded.counts.tokens_reused = 0
    bounded.decode([prompt(0, 5, "a")])
    assert bounded.counts.tokens_reused == 0
    off = decoder_of(tiny, prefix_cache_mb=0)
    off.decode([prompt(0, 5)])
    assert len(off._prefixes) == off._prefixes.size == 0


def test_streams_go_in_the_order_in_which_they_were_last_asked():
    cache = PrefixCache(2 * 4 * 8 / 2**20)
    query = decoder_of(model_of("qwen2_vl"))._query(prompt(0, 0))
    for stream in "abac":
        cache.keep(stream, query, torch.zeros(8))
    assert list(cache._kept) == ["a", "c"]


def takes_no_mask(*args, **kwargs):
    """Stands for flash attention, which is not installed here."""
    raise AssertionError("asked with a mask")


@pytest.mark.parametrize("attention", ["eager", "takes_no_mask"])
def test_any_attention_gives_the_same_answers(tiny, attention):
    """Where it takes no mask of ours, SDPA does the decoder's passes, and the model keeps its own for the rest."""
    AttentionInterface.register("takes_no_mask", takes_no_mask)
    decoder = decoder_of(tiny, drafts=EVERY_TWO)
    wanted = [decoder.decode(prompts) for prompts in BATCHES]
    text = tiny[0].model.language_model
    own = text.config._attn_implementation
    text.set_attn_implementation(attention)
    try:
        decoder.forget()
        for prompts, answers in zip(BATCHES, wanted, strict=True):
            same(decoder.decode(prompts), answers)
        assert text.config._attn_implementation == attention
        with pytest.raises(KeyError), dense_attention(tiny[0].model):
            assert text.config._attn_implementation == ("eager" if attention == "eager" else "sdpa")
            raise KeyError
        assert text.config._attn_implementation == attention
    finally:
        text.set_attn_implementation(own)


def test_drafts_are_cut_where_nothing_is_left_to_decide():
    assert paths_of([], 4, True) == ()
    assert paths_of([[1, 1, 1, 1], [1, 1, 2]], 4, True) == ((1,), (1, 1), (1, 1, 1), (1, 1, 2))
    assert paths_of([[1, 0, 0, 0]], 4, True) == ((1,),)
    assert paths_of([[Action(1), Action(0), Action(0), Action(0)]], 4, False) == ((1,), (1, 0), (1, 0, 0))
    assert paths_of([[1, 2, 3, 1, 1, 1]], 3, True) == ((1,), (1, 2))
    assert choose_drafts([], 8, 3) == ((FORWARD,) * 3,)
    assert choose_drafts([], 0, 3) == ()
    assert (usual_count("cpu"), usual_count("cuda")) == (4, 8)
    known = [(1, 1, 1), (1, 1, 2), (1, 0, 0), (0, 0, 0), (2, 2, 2), (3, 3, 3)]
    assert choose_drafts(known, 2, 3) == ((1, 1, 1), (2, 2, 2))  # three that need nothing more are passed over
    assert [*map(type, choose_drafts(known, 1, 3)[0])] == [Action] * 3


def test_what_is_tried_behind_an_answer_that_left_the_drafts():
    assert paths_from((LEFT,), 4) == ((2,), (2, 1), (2, 1, 1), (2, 2), (2, 2, 2))
    assert paths_from((LEFT, FORWARD), 4) == ((2, 1), (2, 1, 1))
    assert paths_from((LEFT, RIGHT, LEFT), 4) == ((2, 3, 2),)
