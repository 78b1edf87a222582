"""The trigger word: whether a text has it, and whether the model knows it already."""

import re

from finetune_queue.datasets.names import display_name

_COMMON = frozenset(
    {
        *("a", "an", "and", "her", "his", "i", "in", "it", "me", "my", "of", "on", "one", "she", "the", "this", "you"),
        *("baby", "boy", "child", "couple", "face", "female", "girl", "guy", "human", "kid", "lady", "male", "man"),
        *("men", "people", "person", "woman", "women", "car", "cat", "dog", "house", "object", "product", "thing"),
        *("character", "image", "model", "photo", "picture", "portrait", "style", "subject"),
    }
)
"""Words that are frequent in captions and prompts, which a model therefore knows well already."""

_SEARCHED = 100_000
"""How many characters of a text are searched: no model reads as far, and a search holds up all other threads (GIL)."""


class Trigger:
    """The trigger word as a whole word, in any case."""

    def __init__(self, word: str) -> None:
        self._word = word.strip()
        self.shown = f'"{display_name(self._word)}"'
        self._pattern = re.compile(rf"(?<!\w){re.escape(self._word)}(?!\w)", re.IGNORECASE)

    def within(self, text: str) -> bool:
        """Tell whether the text has the word."""
        return self._pattern.search(text, 0, _SEARCHED) is not None

    def why_common(self) -> str | None:
        """Return why the word would call up more than the subject; None if it is rare enough."""
        if len(self._word.split()) > 1:
            return "is more than one word"
        return "is a common word" if self._word.casefold() in _COMMON else None
