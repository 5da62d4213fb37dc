"""The checker that jaxtyping's import hook wraps around every function of bertgpt during tests."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is asked for
