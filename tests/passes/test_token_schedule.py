import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.base import PassError
from passes.token_schedule import TokenSchedule


@pytest.mark.parametrize(
    ("text", "printed", "left"),
    [
        ("3:8,1:4", "1:4,3:8", (65, 61, 61, 53)),
        (" 0 : 32 ", "0:32", (33, 33, 33, 33)),
        ("2", "0:2,1:2,2:2,3:2", (63, 61, 59, 57)),
        ("0", "off", (65, 65, 65, 65)),
        ("off", "off", (65, 65, 65, 65)),
    ],
)
def test_text_gives_the_tokens_left_behind_each_block(text, printed, left):
    schedule = TokenSchedule.parse(text, 4)
    assert str(schedule) == printed
    assert schedule.tokens_left(65, 1, 4) == left


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write block:tokens"),
        ("3:8,", "write block:tokens"),
        ("1:-2", "write block:tokens"),
        ("many", "write block:tokens"),
        ("1:2,1:3", "each once"),
        ("1:0", "1 or more"),
        ("4:2", "names block 4, but the model has 4"),
    ],
)
def test_other_texts_are_refused(text, reason):
    with pytest.raises(PassError, match=reason):
        TokenSchedule.parse(text, 4)


@pytest.mark.parametrize(("tokens", "protected", "most"), [(65, 1, 32), (64, 0, 32), (16, 5, 5)])
def test_half_of_what_may_merge_is_the_most(tokens, protected, most):
    assert TokenSchedule(((0, most),)).tokens_left(tokens, protected, 1) == (tokens - most,)
    with pytest.raises(PassError, match=f"at most half can: give {most} or fewer"):
        TokenSchedule(((0, most + 1),)).tokens_left(tokens, protected, 1)


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 200)))
def test_text_and_json_bring_back_the_schedule(merges):
    schedule = TokenSchedule(tuple(sorted(merges.items())))
    assert TokenSchedule.parse(str(schedule), 31) == schedule
    assert TokenSchedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("text", ["", "{}", "[[1]]", '[["1", 2]]', "[[true, 2]]", "[[1, 0]]"])
def test_json_that_is_no_schedule_is_refused(text):
    with pytest.raises(PassError):
        TokenSchedule.from_json(text)
