"""Every command, thin: arguments in, a function of the rooms below, a table or JSON out."""

from talaria.cli import importing, operations, peers, rulebook, running, studies, tokens, upkeep
from talaria.cli.root import main

__all__ = ["importing", "main", "operations", "peers", "rulebook", "running", "studies", "tokens", "upkeep"]
