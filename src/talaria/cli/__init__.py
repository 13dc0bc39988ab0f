"""Every command, thin: arguments in, a function of the rooms below, a table or JSON out."""

from talaria.cli import operations, peers, rulebook, running, tokens
from talaria.cli.root import main

__all__ = ["main", "operations", "peers", "rulebook", "running", "tokens"]
