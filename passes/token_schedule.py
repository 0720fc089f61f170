"""The token schedule: how many tokens merge into others between attention and MLP of which blocks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from passes.base import PassError


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

    @staticmethod
    def parse(text: str, blocks: int) -> TokenSchedule:
        """text: "3:8,6:8" (block:tokens), "2" (in each of the model's blocks), or "off".

        Raises PassError for other texts and for blocks that the model lacks."""
        entries = [] if text.strip() == "off" else [entry.strip() for entry in text.split(",")]
        if len(entries) == 1 and re.fullmatch("[0-9]+", entries[0]):
            each = int(entries[0])
            return TokenSchedule(tuple((block, each) for block in range(blocks)) if each else ())
        pairs = []
        for entry in entries:
            match = re.fullmatch(r"([0-9]+)\s*:\s*([0-9]+)", entry)
            if match is None:
                raise PassError(
                    f"the token schedule {text!r} has {entry!r}: write block:tokens, such as 3:8,6:8, or 2, or off"
                )
            pairs.append((int(match[1]), int(match[2])))
        schedule = TokenSchedule(tuple(sorted(pairs)))
        schedule.check_blocks(blocks)
        return schedule

    def check_blocks(self, blocks: int) -> None:
        """Raises PassError where a block is named that a model of so many blocks lacks."""
        if self.merges and self.merges[-1][0] >= blocks:
            raise PassError(
                f"the token schedule names block {self.merges[-1][0]}, but the model has {blocks}, counted from 0"
            )

    def tokens_left(self, tokens: int, protected: int, blocks: int) -> tuple[int, ...]:
        """Tokens behind each block, of as many before the first, the protected (class, register, ...) among them.

        Raises PassError where a block is to merge more than half of the tokens that may merge."""
        self.check_blocks(blocks)
        merged, left = dict(self.merges), []
        for block in range(blocks):
            most = (tokens - protected) // 2
            if merged.get(block, 0) > most:
                raise PassError(
                    f"block {block} is to merge {merged[block]} tokens, but of the {tokens - protected} that may merge "
                    f"there at most half can: give {most} or fewer"
                )
            tokens -= merged.get(block, 0)
            left.append(tokens)
        return tuple(left)

    def to_json(self) -> str:
        return json.dumps([list(entry) for entry in self.merges])

    @staticmethod
    def from_json(text: str) -> TokenSchedule:
        """Raises PassError where the text is no schedule."""
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise PassError(f"a token schedule is no JSON: {error}") from error
        if not isinstance(entries, list) or not all(
            isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)
            for entry in entries
        ):
            raise PassError(f"a token schedule's JSON is {text[:80]}: give a list of [block, tokens]")
        return TokenSchedule(tuple((block, merged) for block, merged in entries))

    def __str__(self) -> str:
        """As `parse` reads it; "off" where nothing merges."""
        return ",".join(f"{block}:{merged}" for block, merged in self.merges) or "off"
