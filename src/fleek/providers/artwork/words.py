"""What the words of a prompt ask for: a scene, a mood, something to see, a colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_WORD = re.compile(r"[a-z]+")


def _table(groups: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({word: name for name, words in groups.items() for word in words.split()})


SCENES = _table(
    {
        "sea": """
        sea ocean beach island whale shark fish wave waves surf surfing harbor harbour bay
        submarine river lake water dolphin octopus coast pirate swimming turtle penguin frog
    """,
        "mountains": """
        mountain mountains alps volcano everest fuji glacier climbing bear goat panda eagle
        valley snow ski skiing kangaroo dragon knight
    """,
        "dunes": """
        desert dune dunes egypt egyptian camel sand mars sphinx cactus giza canyon hieroglyphics
        lion cheetah giraffe elephant dinosaur cowboy
    """,
        "forest": """
        forest wood woods oak fox deer wolf squirrel treehouse jungle raccoon sloth leaves
        hedgehog tiger snake gecko mushroom mushrooms
    """,
        "city": """
        city street skyline skyscraper skyscrapers taxi bus train subway downtown manhattan
        bridge york tokyo london sidewalk building buildings traffic opera laptop computer
        newspaper
    """,
        "space": """
        space moon planet planets earth astronaut galaxy nebula universe saturn alien comet
        cosmos ufo orbit
    """,
        "garden": """
        flower flowers garden plant plants rose roses tulip sunflower sunflowers bouquet fruit
        apple banana salad vegetable lily orchid bowl coffee tea vase pineapple mango pepper
        cake pizza wine bee butterfly
    """,
        "hills": """
        hill hills field grass farm horse cow sheep countryside road dog dogs rabbit pig barn
        corn village meadow park corgi puppy bicycle bench squirrels
    """,
        "tiles": """
        square squares circle cube cubes sphere spheres triangle shape shapes logo symbol sign
        lego chess box cubist flag stripes geometric mosaic poker clock
    """,
        "ribbons": """
        music dream wind dance dancing silk flow hope love song guitar piano saxophone smoke
        scarf
    """,
        "terraces": """
        map cave rock rocks time memory infinity abstract paper maze concentric spiral energy
        inertia
    """,
    }
)
"""Words that choose a scene."""

MOODS = _table(
    {
        "dawn": "dawn sunrise morning daybreak spring",
        "dusk": "dusk sunset evening twilight autumn fall",
        "night": "night midnight moon moonlit stars starry dark owl bat city sleeping dream",
        "mist": """
        storm stormy rain rainy cloudy fog foggy mist misty grey gray tornado smoke ghost
    """,
        "winter": "winter snow snowy ice icy frozen polar penguin glacier christmas ski cold",
        "ember": "fire lava volcano hell dragon burning flame flames explosion mars",
        "verdant": "forest jungle grass leaf leaves frog garden field park meadow",
        "day": "day sunny summer beach noon sky picnic",
        "candy": "candy cartoon cute baby pink toy teddy bubble unicorn cake party smiling",
        "gold": "gold golden egyptian egypt desert sand camel pyramid honey savanna lion sepia",
        "aurora": "aurora northern magic magical alien galaxy neon nebula cyberpunk futuristic",
    }
)
"""Words that choose the colours."""

SUBJECTS = _table(
    {
        "lighthouse": "lighthouse",
        "boat": "boat boats ship ships sail sailboat yacht",
        "balloon": "balloon balloons airship",
        "house": "house home cabin cottage barn hut",
        "castle": "castle palace fortress kremlin kingdom",
        "windmill": "windmill windmills",
        "tree": "tree trees",
        "pine": "pine pines fir",
        "cat": "cat cats kitten kittens",
        "owl": "owl owls",
        "robot": "robot robots android",
        "car": "car cars truck van automobile corvette",
        "pyramid": "pyramid pyramids",
        "tower": "tower eiffel paris",
        "rocket": "rocket rockets spaceship spacecraft shuttle",
    }
)
"""Words that name something which can be drawn into a landscape."""

HOMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lighthouse": ("sea",),
        "boat": ("sea",),
        "balloon": ("hills", "mountains", "dunes", "sea"),
        "house": ("hills", "mountains", "forest"),
        "castle": ("hills", "mountains", "forest"),
        "windmill": ("hills", "hills", "dunes"),
        "tree": ("hills", "dunes", "hills"),
        "pine": ("mountains", "forest"),
        "cat": ("hills", "mountains", "dunes", "forest"),
        "owl": ("forest", "hills"),
        "robot": ("hills", "dunes", "mountains", "city"),
        "car": ("hills", "dunes", "mountains", "city"),
        "pyramid": ("dunes",),
        "tower": ("city", "hills"),
        "rocket": ("space", "mountains"),
    }
)
"""Where each subject can stand."""


def words_of(prompt: str) -> list[str]:
    """The prompt's words in lower case."""
    return _WORD.findall(prompt.lower())


def named(words: Iterable[str], table: Mapping[str, str]) -> list[str]:
    """What the words stand for in a table, in their order, each once."""
    return list(dict.fromkeys(table[word] for word in words if word in table))
