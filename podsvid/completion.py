"""`podsvid completion SHELL`: the script by which a shell completes podsvid's command line."""

import argparse
from collections.abc import Callable, Iterator
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
_USE: Final = """\
to complete from now on, here or, in its start-up file, in every new shell:
  bash  source <(podsvid completion bash)    ~/.bashrc
  zsh   eval "$(podsvid completion zsh)"     ~/.zshrc, after compinit
  fish  podsvid completion fish | source     ~/.config/fish/config.fish
"""
# What an option's value is, by how --help calls it.
_FILES: Final = ("FILE", "SOCKET")
_DIRECTORIES: Final = ("DIR",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shells."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _USE
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell that is to complete")


def run(parsed: argparse.Namespace, whole: Callable[[], argparse.ArgumentParser]) -> int:
    """Print the script for `parsed.shell`. `whole` makes a parser that knows all of every command."""
    import shtab

    parser = whole()
    for action in _actions(parser):
        if action.metavar in _FILES or action.metavar in _DIRECTORIES:
            action.complete = shtab.FILE if action.metavar in _FILES else shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.choices is None and isinstance(action.metavar, str) and "|" in action.metavar:
            # true|false, RS256|...: argparse leaves what is accepted to the setting, which has more to say.
            action.choices = action.metavar.split("|")
        if action.option_strings and isinstance(action.metavar, str):
            # zsh's specifications have colons of their own.
            action.metavar = action.metavar.replace(":", " ")
    print(shtab.complete(parser, parsed.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
        else:
            yield action
