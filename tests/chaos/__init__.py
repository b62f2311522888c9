"""`script/chaos`: every part of a whole Fleek is killed at random while clients use it; then it is judged."""
