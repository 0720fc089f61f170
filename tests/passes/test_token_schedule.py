import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.base import PassError
from passes.token_schedule import TokenCounts, TokenSchedule

COUNTS = TokenCounts(4, 65, 1)


@pytest.mark.parametrize(
    ("text", "printed", "left"),
    [
        ("3:8,1:4", "1:4,3:8", (65, 61, 61, 53)),
        (" 0 : 32 ", "0:32", (33, 33, 33, 33)),
        ("r=2", "0:2,1:2,2:2,3:2", (63, 61, 59, 57)),
        ("r = 30", "0:30,1:17,2:8,3:4", (35, 18, 10, 6)),
        ("r=0", "off", (65, 65, 65, 65)),
        ("off", "off", (65, 65, 65, 65)),
    ],
)
def test_text_gives_the_tokens_left_behind_each_block(text, printed, left):
    schedule = TokenSchedule.parse(text, COUNTS)
    assert str(schedule) == printed
    assert schedule.tokens_left(COUNTS) == left
    assert bool(schedule) == (printed != "off")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write block:tokens"),
        ("3:8,", "write block:tokens"),
        ("1:-2", "write block:tokens"),
        ("2", "or r=2 for every block"),
        ("many", "write block:tokens"),
        ("1:2,1:3", "each once"),
        ("1:0", "1 or more"),
        ("4:2", "names block 4, but the model has 4"),
        ("0:33", "at most half can: give 32 or fewer"),
        ("0:32,1:17", "of the 32 that may merge there at most half can: give 16 or fewer"),
    ],
)
def test_other_texts_are_refused(text, reason):
    with pytest.raises(PassError, match=reason):
        TokenSchedule.parse(text, COUNTS)


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 9)))
def test_text_brings_back_the_schedule(merges):
    schedule = TokenSchedule(tuple(sorted(merges.items())))
    assert TokenSchedule.parse(str(schedule), TokenCounts(31, 1000, 0)) == schedule


def test_as_many_in_every_block_from_one_on():
    assert TokenSchedule.constant(3, COUNTS, first=2) == TokenSchedule(((2, 3), (3, 3)))
    assert TokenSchedule.constant(3, COUNTS, first=4) == TokenSchedule()
