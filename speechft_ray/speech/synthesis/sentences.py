"""Texts of the synthetic corpora: everyday English sentences, keywords and pseudowords.

Every function draws from the generator that it gets and from nothing else. Words are lower case
here; transcripts have them in upper case.
"""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def split_phrases(text: str) -> tuple[str, ...]:
    """Returns the phrases of a text that separates them by ``|``."""
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


NOUNS = _words(
    """
    apple bird boat book bottle bread bridge brother candle car castle chair child city cloud
    coat corner cow cup daughter doctor dog door dream driver engine evening eye farmer father
    field finger fire fish floor flower forest friend garden ghost glass gold grandmother grass
    guitar hand hat heart hill horse hour house husband island jacket judge key king kitchen
    lady lamp leaf letter lion machine market measure milk mirror money monkey moon morning
    mother mountain mouse neighbour newspaper night nurse ocean orange oven page painting paper
    path peace pencil people phone picture pilot pleasure pocket poet prince queen question
    rabbit rain river road rope salt school shadow sheep shirt shoe sister snow soldier song
    spoon star stone story street student sugar summer table teacher thief thing thumb town toy
    train tree uncle valley village voice wagon wall watch water weather wheel window winter
    wolf woman wood word year zebra
    """
)
VERBS = _words(
    """
    asked found watched followed brought carried caught chose cleaned closed covered crossed
    drew enjoyed fetched finished forgot gathered gave hated heard helped judged kept knew left
    liked lost loved measured missed moved needed noticed opened painted passed pulled pushed
    put reached remembered saw sent shook showed sold stole thanked threw took touched treasured
    turned used visited wanted washed wrote
    """
)
ADJECTIVES = _words(
    """
    angry beautiful big black blue brave bright broken brown cheap clever cold cool curious dark
    deep dry early easy empty famous fast foolish fresh funny gentle golden good great green
    grey happy heavy honest huge hungry kind large lazy little lonely long loud lucky narrow new
    noisy old pale poor pretty proud quick quiet red rich rough sad sharp short shy silent small
    smooth soft sour strange strong sweet tall thick thin tiny tired ugly usual warm weak white
    wide wild wise wonderful wrong yellow young
    """
)
PLACES = split_phrases(
    """
    in the garden | near the river | behind the old house | under the bridge | on the roof | at
    the station | by the sea | across the street | over the hill | through the forest | beside
    the church | around the corner | between the trees | above the valley | inside the museum |
    from the village
    """
)
TIMES = split_phrases(
    """
    today | yesterday | last night | this morning | every evening | on monday | on thursday | in
    january | in july | after lunch | before dawn | at noon | two years ago | three weeks later
    | once again | for a while | as usual
    """
)
NAMES = _words(
    """
    alice arthur bella charles chloe daniel edith felix george hannah isaac joyce julia kevin
    laura louis martha nathan olivia oscar paula quentin rachel roger sophia thomas ursula
    victor wendy zachary
    """
)
LINKS = ("and", "but", "because", "while", "so", "although", "until", "when")
SHORT = split_phrases(
    """
    come over here | i know you | we are ready | what is this | you did it | look at that | i
    want it now | they went home | that is all | leave it there | she is here | it was you |
    tell me why | give it back | he told me | this is mine | stay with me | where were you | we
    have time | do it again | take your coat | open the door | i heard that | let me see | you
    can go | he never came | it is over | who are they | read this page | hold my hand | we
    found them | wait for us
    """
)
TAGS = ("", "", "please", "now", "today", "again", "my friend", "then")
"""Emotionally neutral, so that the words say nothing about the emotion."""

KEYWORDS = _words(
    """
    yes no up down left right on off stop go zero one two three four five six seven eight nine
    """
)
"""The ten command words and the ten digits of Speech Commands."""

QUERY_NOUNS = _words(
    """
    bottle brother candle castle daughter flower garden jacket kitchen market mirror
    monkey newspaper orange pencil rabbit shadow spoon teacher village window winter zebra
    """
)
"""Spoken queries. A document has two of them, so that a query is in one document of twelve."""

_ONSETS = _words(
    """
    b bl br ch d dr f fl fr g gl gr h j k kl kr l m n p pl pr r s sh sk sl sm sn sp st t th tr v w y
    z
    """
)
_NUCLEI = _words("a e i o u ee oo ai oy ow ar or er")
_CODAS = ("", "", "", *_words("b ck d f g l m n nd ng nt p r sh ss st t th v x z"))


def draw_sentence(draw: random.Random, clauses: int = 1) -> str:
    """Returns an English sentence of ``clauses`` clauses, each of 3 to 15 words.

    About one noun in eight is a pseudoword.
    """
    parts = [_clause(draw)]
    for _ in range(clauses - 1):
        parts += [draw.choice(LINKS), _clause(draw)]
    return " ".join(parts)


def draw_brief_sentence(draw: random.Random) -> str:
    """Returns an English sentence of 3 to 7 words, about two seconds."""
    return " ".join([_noun_phrase(draw), draw.choice(VERBS), _noun_phrase(draw)])


def draw_document(draw: random.Random) -> str:
    """Returns an English sentence of 7 words with two of ``QUERY_NOUNS``."""
    nouns = draw.sample(QUERY_NOUNS, 2)
    one, other = (f"the {draw.choice(ADJECTIVES)} {noun}" for noun in nouns)
    return f"{one} {draw.choice(VERBS)} {other}"


def draw_short_sentence(draw: random.Random) -> str:
    """Returns an English sentence of about one second."""
    return f"{draw.choice(SHORT)} {draw.choice(TAGS)}".rstrip()


def draw_pseudoword(draw: random.Random) -> str:
    """Returns a pronounceable word that is in no dictionary.

    With pseudowords in the text, phones do not follow from a list of words.
    """
    syllables = draw.choice((1, 2, 2, 3))
    return "".join(
        draw.choice(_ONSETS) + draw.choice(_NUCLEI) + draw.choice(_CODAS) for _ in range(syllables)
    )


def _noun_phrase(draw: random.Random) -> str:
    if draw.random() < 0.15:
        return draw.choice(NAMES)
    noun = draw_pseudoword(draw) if draw.random() < 0.15 else draw.choice(NOUNS)
    article = draw.choice(("the", "the", "my", "your", "this", "that", "our", "every"))
    return (
        f"{article} {draw.choice(ADJECTIVES)} {noun}"
        if draw.random() < 0.5
        else f"{article} {noun}"
    )


def _clause(draw: random.Random) -> str:
    words = [_noun_phrase(draw), draw.choice(VERBS), _noun_phrase(draw)]
    if draw.random() < 0.5:
        words.append(draw.choice(PLACES))
    if draw.random() < 0.35:
        words = (
            [draw.choice(TIMES), *words] if draw.random() < 0.5 else [*words, draw.choice(TIMES)]
        )
    return " ".join(words)
