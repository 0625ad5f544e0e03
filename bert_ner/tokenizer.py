"""The tokenizer of the pipeline.

spaCy's registry gets `bert_ner.Tokenizer.v2`. A wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from spacy.lang.char_classes import ALPHA, ALPHA_LOWER, ALPHA_UPPER, CONCAT_QUOTES, LIST_ELLIPSES, LIST_ICONS
from spacy.language import Language
from spacy.tokenizer import Tokenizer  # type: ignore[import-not-found,unused-ignore]
from spacy.tokens import Doc
from spacy.util import compile_infix_regex, compile_prefix_regex, compile_suffix_regex, registry


@registry.tokenizers("bert_ner.Tokenizer.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_tokenizer() -> Callable[[Language], Tokenizer]:
    """The language's own tokenizer, except that it does not split on hyphens, slashes, colons or digits.

    Newswire corpora do not either: `Italian-owned`, `8-6`, `1996-08-22` and `10:30` are single tokens. The special
    cases for emoticons are removed, because they take the bracket off `(12-8)`. The time that a text takes is
    proportional to its length, whatever its punctuation.

    RETURNS (Callable[[Language], Tokenizer]): Creates the tokenizer of a pipeline.
    """
    infixes = [
        *LIST_ELLIPSES,
        *LIST_ICONS,
        rf"(?<=[{ALPHA_LOWER}{CONCAT_QUOTES}])\.(?=[{ALPHA_UPPER}{CONCAT_QUOTES}])",
        rf"(?<=[{ALPHA}]),(?=[{ALPHA}])",
        r"--+",
    ]

    def create(nlp: Language) -> Tokenizer:
        defaults = nlp.Defaults
        rules = {
            text: parts
            for text, parts in defaults.tokenizer_exceptions.items()
            if any(character.isalpha() or character.isspace() or character in "'\u2019" for character in text)
        }
        # All at once, since spaCy adds the special cases again for each search that is set afterwards.
        return _LinearTokenizer(
            nlp.vocab,
            rules,
            compile_prefix_regex(defaults.prefixes or ()).search,
            compile_suffix_regex(defaults.suffixes or ()).search,
            compile_infix_regex(infixes).finditer,
            defaults.token_match,
            defaults.url_match,
        )

    return create


LONGEST_CHUNK = 1000  # characters without white space that are tokenised at once; no word and hardly a URL is longer


LONGEST_SUFFIX = 32  # characters


class _LinearTokenizer(Tokenizer):  # type: ignore[misc,unused-ignore]
    """spaCy's tokenizer, in time proportional to the length of the text.

    spaCy strips affixes one by one, and for each of them it searches all that is left of the chunk, so that 12,000
    equals signs take a minute. Here a search looks no further than an affix can reach, and chunks of more than
    LONGEST_CHUNK characters are cut. A text without such a chunk gets the same tokens as from spaCy.
    """

    def __call__(self, text: str) -> Doc:
        if not re.search(rf"\S{{{LONGEST_CHUNK + 1}}}", text):
            doc: Doc = super().__call__(text)
            return doc
        cuts = [0]
        for chunk in re.finditer(rf"\S{{{LONGEST_CHUNK + 1},}}", text):
            cuts += range(chunk.start() + LONGEST_CHUNK, chunk.end(), LONGEST_CHUNK)
        docs = [super(_LinearTokenizer, self).__call__(text[a:b]) for a, b in itertools.pairwise([*cuts, len(text)])]
        words = [token.text for doc in docs for token in doc]
        return Doc(self.vocab, words=words, spaces=[bool(token.whitespace_) for doc in docs for token in doc])

    def pipe(self, texts: Iterable[str], batch_size: int = 1000) -> Iterator[Doc]:
        """Tokenise texts, one after the other.

        texts (Iterable[str]): The texts.
        batch_size (int): Not used.
        YIELDS (Doc): Their documents, in order.
        """
        yield from map(self, texts)

    def __setattr__(self, name: str, value: Any) -> None:
        """Bound a search by a pattern, also where spaCy sets it: when it makes, copies or loads a tokenizer."""
        pattern = getattr(value, "__self__", None)
        if isinstance(pattern, re.Pattern) and name == "prefix_search":
            value = pattern.match  # all parts of the pattern begin with ^
        if isinstance(pattern, re.Pattern) and name == "suffix_search":
            value = _SuffixSearch(pattern).search
        super().__setattr__(name, value)


class _SuffixSearch:
    """Searches for a suffix in the last characters of a string only, which no suffix exceeds."""

    def __init__(self, compiled: re.Pattern[str]) -> None:
        self.compiled = compiled
        self.pattern = compiled.pattern  # the tokenizer saves this attribute of what `search` belongs to

    def search(self, text: str) -> re.Match[str] | None:
        return self.compiled.search(text[-LONGEST_SUFFIX:])
