"""Texts of the synthetic corpora with labels: requests with slots, home commands with intents.

Mandarin sentences are here as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from speechft_ray.speech.synthesis.sentences import split_phrases

FILLERS = {
    "artist": split_phrases(
        "miles davis | nina simone | johnny cash | the beatles | queen | bob marley | "
        "maria callas | elvis | daft punk | enya"
    ),
    "track": split_phrases(
        "yellow river | summer rain | let it be | blue moon | the long road | silent night | "
        "paper boat | golden hour"
    ),
    "playlist": split_phrases(
        "morning run | dinner party | road trip | sleepy sunday | deep focus | happy songs"
    ),
    "service": split_phrases("spotify | youtube | deezer | pandora | itunes"),
    "genre": split_phrases("jazz | classical | rock | folk | techno | reggae | country"),
    "city": split_phrases(
        "london | paris | new york | berlin | madrid | san francisco | tokyo | chicago | dublin | "
        "oslo | boston | lisbon"
    ),
    "time_range": split_phrases(
        "today | tomorrow | tonight | next week | this weekend | on friday | in five hours | "
        "at noon | next month"
    ),
    "condition": split_phrases("snow | rain | fog | wind | thunder | sunshine | hail"),
    "restaurant_type": split_phrases(
        "pub | cafe | steakhouse | bakery | pizza place | tea house | food truck"
    ),
    "cuisine": split_phrases(
        "italian | indian | french | mexican | thai | greek | japanese | turkish"
    ),
    "party_size": split_phrases("two | three | four | five | six | seven | eight | nine | ten"),
    "object_name": split_phrases(
        "the silent sea | red harvest | winter light | the glass garden | a quiet life | "
        "the tall ships"
    ),
    "rating_value": split_phrases("one | two | three | four | five"),
    "movie_name": split_phrases(
        "the third man | casablanca | metropolis | king kong | dark water | the gold rush"
    ),
}
"""Values of each slot, after SNIPS (the corpus of SUPERB's slot filling)."""

REQUESTS = {
    "PlayMusic": split_phrases(
        "play {track} by {artist} | play some {genre} on {service} | "
        "i want to hear {artist} on {service} | put on {track} | play the playlist {playlist} | "
        "start {genre} music by {artist}"
    ),
    "AddToPlaylist": split_phrases(
        "add {track} to {playlist} | put {artist} on my {playlist} list | "
        "add this song by {artist} to {playlist}"
    ),
    "GetWeather": split_phrases(
        "what is the weather in {city} {time_range} | will there be {condition} in {city} | "
        "is {condition} expected {time_range} | tell me the forecast for {city} {time_range}"
    ),
    "BookRestaurant": split_phrases(
        "book a table for {party_size} in {city} | find a {cuisine} {restaurant_type} in {city} | "
        "reserve a {restaurant_type} for {party_size} people {time_range} | "
        "i need {cuisine} food for {party_size} {time_range}"
    ),
    "RateBook": split_phrases(
        "give {object_name} {rating_value} stars | rate {object_name} {rating_value} out of six"
    ),
    "SearchScreeningEvent": split_phrases(
        "where can i see {movie_name} {time_range} | show {movie_name} in {city} | "
        "is {movie_name} playing in {city}"
    ),
}
"""Sentence templates by intent, with the intents of SNIPS."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request: its words, one slot or ``O`` per word, and its intent."""

    text: str
    slots: str
    intent: str


def draw_request(draw: random.Random) -> Request:
    """Returns a request with its slots.

    All words of one slot value have the same label, without B- and I- prefixes.
    """
    intent = draw.choice(sorted(REQUESTS))
    words: list[str] = []
    slots: list[str] = []
    for token in draw.choice(REQUESTS[intent]).split():
        slot = token.strip("{}") if token.startswith("{") else "O"
        fillers = draw.choice(FILLERS[slot]).split() if token.startswith("{") else [token]
        words += fillers
        slots += [slot] * len(fillers)
    return Request(text=" ".join(words), slots=" ".join(slots), intent=intent)


HOME_COMMANDS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "activate",
        "lights",
        "none",
        split_phrases("turn on the lights | switch the lights on | lights on please"),
    ),
    (
        "activate",
        "lights",
        "kitchen",
        split_phrases("turn on the kitchen lights | lights on in the kitchen | kitchen lights on"),
    ),
    (
        "activate",
        "lights",
        "bedroom",
        split_phrases("turn on the bedroom lights | lights on in the bedroom | bedroom lights on"),
    ),
    (
        "activate",
        "lights",
        "washroom",
        split_phrases(
            "turn on the washroom lights | washroom lights on | lights on in the bathroom"
        ),
    ),
    (
        "activate",
        "music",
        "none",
        split_phrases("play some music | start the music | turn the music on"),
    ),
    ("activate", "lamp", "none", split_phrases("turn on the lamp | lamp on | switch on the lamp")),
    (
        "deactivate",
        "lights",
        "none",
        split_phrases("turn off the lights | switch the lights off | lights off please"),
    ),
    (
        "deactivate",
        "lights",
        "kitchen",
        split_phrases(
            "turn off the kitchen lights | lights off in the kitchen | kitchen lights off"
        ),
    ),
    (
        "deactivate",
        "lights",
        "bedroom",
        split_phrases(
            "turn off the bedroom lights | lights off in the bedroom | bedroom lights off"
        ),
    ),
    (
        "deactivate",
        "lights",
        "washroom",
        split_phrases(
            "turn off the washroom lights | washroom lights off | lights off in the bathroom"
        ),
    ),
    (
        "deactivate",
        "music",
        "none",
        split_phrases("stop the music | pause the music | turn the music off"),
    ),
    (
        "deactivate",
        "lamp",
        "none",
        split_phrases("turn off the lamp | lamp off | switch off the lamp"),
    ),
    (
        "increase",
        "volume",
        "none",
        split_phrases("turn up the volume | make it louder | i cannot hear that"),
    ),
    (
        "increase",
        "heat",
        "none",
        split_phrases("turn up the heat | make it warmer | it is too cold"),
    ),
    (
        "increase",
        "heat",
        "kitchen",
        split_phrases(
            "turn up the heat in the kitchen | make the kitchen warmer | kitchen heat up"
        ),
    ),
    (
        "increase",
        "heat",
        "bedroom",
        split_phrases(
            "turn up the heat in the bedroom | make the bedroom warmer | bedroom heat up"
        ),
    ),
    (
        "decrease",
        "volume",
        "none",
        split_phrases("turn down the volume | make it quieter | that is too loud"),
    ),
    (
        "decrease",
        "heat",
        "none",
        split_phrases("turn down the heat | make it cooler | it is too hot"),
    ),
    (
        "decrease",
        "heat",
        "kitchen",
        split_phrases(
            "turn down the heat in the kitchen | make the kitchen cooler | kitchen heat down"
        ),
    ),
    (
        "decrease",
        "heat",
        "bedroom",
        split_phrases(
            "turn down the heat in the bedroom | make the bedroom cooler | bedroom heat down"
        ),
    ),
    (
        "bring",
        "newspaper",
        "none",
        split_phrases("bring me the newspaper | fetch my newspaper | get the newspaper"),
    ),
    (
        "bring",
        "juice",
        "none",
        split_phrases("bring me some juice | get me some juice | i want juice"),
    ),
    ("bring", "shoes", "none", split_phrases("bring me my shoes | get my shoes | fetch the shoes")),
    (
        "change language",
        "none",
        "none",
        split_phrases("change the language | switch languages | use another language"),
    ),
)
"""``(action, object, location, phrasings)``, after Fluent Speech Commands (the corpus of SUPERB's
intent classification)."""

_MANDARIN_TIMES = split_phrases("今天 | 明天 | 昨天 | 早上 | 晚上 | 现在 | 星期一 | 去年")
_MANDARIN_PEOPLE = split_phrases("我 | 你 | 他们 | 我们 | 老师 | 妈妈 | 朋友 | 医生 | 学生 | 哥哥")
_MANDARIN_ACTS = split_phrases(
    "去公园 | 喝绿茶 | 看电影 | 学习中文 | 买水果 | 写信 | 吃饭 | 坐火车 | 打电话 | "
    "听音乐 | 回家 | 做作业 | 游泳 | 唱歌 | 开车 | 睡觉 | 洗衣服 | 找工作"
)


def draw_mandarin_sentence(draw: random.Random) -> str:
    """Returns a Mandarin sentence of one to two seconds."""
    parts = [
        draw.choice(_MANDARIN_TIMES),
        draw.choice(_MANDARIN_PEOPLE),
        draw.choice(_MANDARIN_ACTS),
    ]
    if draw.random() < 0.3:
        parts += ["和", draw.choice(_MANDARIN_ACTS)]
    return "".join(parts)
