"""The token schedule: how many tokens merge into others between attention and MLP of which blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from passes.base import PassError

OFF = "off"


@dataclass(frozen=True)
class TokenCounts:
    """What a model has to merge."""

    blocks: int
    tokens: int  #: in the stream before the first block
    protected: int  #: the first ones, which never merge: class, register and distillation tokens


@dataclass(frozen=True)
class TokenSchedule:
    """Fixed numbers of tokens that merge, so that every block's number of tokens is known beforehand."""

    #: (block, tokens that merge there), blocks from 0 and ascending; a block that is not named merges none
    merges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        blocks = [block for block, _ in self.merges]
        if blocks != sorted(set(blocks)) or any(block < 0 for block in blocks):
            raise PassError(f"a token schedule names the blocks {blocks}: give each once, from 0, ascending")
        for block, merged in self.merges:
            if merged < 1:
                raise PassError(
                    f"block {block} of a token schedule merges {merged} tokens: give 1 or more, or leave it out"
                )

    def __bool__(self) -> bool:
        return bool(self.merges)

    @staticmethod
    def parse(text: str, counts: TokenCounts) -> TokenSchedule:
        """text: "3:8,6:8" (block:tokens), "r=2" (in every block, fewer where fewer are left), or "off".

        Raises PassError for other texts, for blocks that the model lacks and for more tokens than can merge."""
        text = text.strip()
        if text == OFF:
            return TokenSchedule()
        if match := re.fullmatch(r"r\s*=\s*([0-9]+)", text):
            return TokenSchedule.constant(int(match[1]), counts)
        pairs = []
        for entry in text.split(","):
            match = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*", entry)
            if match is None:
                raise PassError(
                    f"the token schedule {text!r} has {entry!r}: write block:tokens, such as 3:8,6:8, or r=2 for every "
                    "block, or off"
                )
            pairs.append((int(match[1]), int(match[2])))
        schedule = TokenSchedule(tuple(sorted(pairs)))
        schedule.tokens_left(counts)
        return schedule

    @staticmethod
    def constant(each: int, counts: TokenCounts, first: int = 0) -> TokenSchedule:
        """As many in every block from the `first` on, fewer where fewer can."""
        left, merges = counts.tokens - counts.protected, []
        for block in range(first, counts.blocks):
            merged = min(each, left // 2)
            left -= merged
            merges += [(block, merged)] if merged else []
        return TokenSchedule(tuple(merges))

    def tokens_left(self, counts: TokenCounts) -> tuple[int, ...]:
        """Tokens behind each block, the protected among them.

        Raises PassError where a block is named that the model lacks, or is to merge more than half of the tokens that
        may merge."""
        if self.merges and self.merges[-1][0] >= counts.blocks:
            raise PassError(
                f"the token schedule names block {self.merges[-1][0]}, but the model has {counts.blocks}, counted "
                "from 0"
            )
        merged, tokens, left = dict(self.merges), counts.tokens, []
        for block in range(counts.blocks):
            free = tokens - counts.protected
            if merged.get(block, 0) > free // 2:
                raise PassError(
                    f"block {block} is to merge {merged[block]} tokens, but of the {free} that may merge there at most "
                    f"half can: give {free // 2} or fewer"
                )
            tokens -= merged.get(block, 0)
            left.append(tokens)
        return tuple(left)

    def __str__(self) -> str:
        """As `parse` reads it; "off" where nothing merges."""
        return ",".join(f"{block}:{merged}" for block, merged in self.merges) or OFF
