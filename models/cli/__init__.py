"""The command line: ``semples <command>``. The only room that prints results."""

from models.cli.app import main

__all__ = ["main"]
