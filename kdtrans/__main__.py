"""The command line: `kdtrans <stage> ...`. A function's signature is its command; a stage is imported when called."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import select
import sys
import types
import typing
from collections.abc import Callable

# command -> (module, one line of help); the function in the module is called `main`.
COMMANDS = {
    "synth": ("kdtrans.stages.synth", "make the embedded demo corpus"),
    "download": ("kdtrans.stages.download", "fetch LibriSpeech"),
    "prepare": ("kdtrans.stages.prepare", "read a corpus into splits, checking its audio"),
    "tokenizer": ("kdtrans.stages.tokenizer", "train the sentencepiece model"),
    "check": ("kdtrans.stages.check", "check text against the tokenizer and write the manifest shards"),
    "lm": ("kdtrans.stages.lm", "estimate the token n-gram"),
    "lstm-lm": ("kdtrans.stages.lstm_lm", "train the LSTM language model"),
    "train-teacher": ("kdtrans.stages.train_teacher", "fine-tune the pre-trained encoder as a transducer"),
    "gate": ("kdtrans.stages.gate", "stop if the teacher is too weak to teach"),
    "dump": ("kdtrans.stages.dump", "write the teacher's one-best paths and distributions for one shard"),
    "verify": ("kdtrans.stages.verify", "check target shards against their manifests"),
    "train-student": ("kdtrans.stages.train_student", "train one student system"),
    "decode": ("kdtrans.stages.decode", "decode one test set with one system"),
    "rescore": ("kdtrans.stages.rescore", "rank n-best hypotheses by another language model"),
    "tune-lm": ("kdtrans.stages.tune_lm", "choose the language-model weight on dev"),
    "score": ("kdtrans.stages.score", "score hypotheses"),
    "align": ("kdtrans.stages.align", "find the frames on which a model emits a test set's references"),
    "choose": ("kdtrans.stages.choose", "choose the best run of a sweep on dev"),
    "report": ("kdtrans.stages.report", "write the table of systems and the HTML report"),
    "study": ("kdtrans.stages.study", "gather the reports of several results folders into one page"),
    "status": ("kdtrans.stages.status", "list every artifact: present, stale and why, missing, running"),
    "transcribe": ("kdtrans.stages.transcribe", "transcribe audio files, as a stream where the model can"),
    "inspect": ("kdtrans.stages.inspect", "look into a manifest, target shard, checkpoint or hypothesis file"),
    "estimate": ("kdtrans.stages.estimate", "say what a dump will cost: gigabytes, hours, free disk"),
    "target-sizes": ("kdtrans.stages.target_sizes", "measure what choices of the shards' encoding cost and lose"),
    "bench": ("kdtrans.stages.bench", "measure on this machine what the project promises"),
    "schema": ("kdtrans.stages.schema", "print the JSON schema of config.yaml"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; expected errors end in one message on stderr and exit status 1, an interruption in 130.

    A reader of the output that has seen enough, as `| head`, ends it without a message, in 141.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: kdtrans <stage> [--help] ...\n\n" + (__import__("kdtrans").__doc__ or "") + "\n\nstages:")
        print("\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"kdtrans: no stage '{argv[0]}'; the stages are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    for part in argv:
        # A file name is any bytes; what is not UTF-8 in it comes as lone surrogates, which no record could hold.
        if any("\ud800" <= character <= "\udfff" for character in part):
            print(f"kdtrans {argv[0]}: error: {_printable(part)} is not UTF-8: rename the file", file=sys.stderr)
            return 2
    command = importlib.import_module(COMMANDS[argv[0]][0]).main
    arguments = vars(build_parser(argv[0], command).parse_args(argv[1:]))
    parameters = inspect.signature(command).parameters.values()
    positional = [arguments.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    try:
        status = command(*positional, **arguments) or 0
        sys.stdout.flush()
        return status
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still has for it goes nowhere
            return 141  # as of a program that SIGPIPE ends
        print(f"kdtrans {argv[0]}: error: {one_screen(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"kdtrans {argv[0]}: interrupted", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has seen enough, as of `| head`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def one_screen(message: str) -> str:
    """The message for a terminal: no more than a screen of it, and what would not print as an escape sequence.

    Names and values that the message quotes come from files: they may be long, or hold what a terminal obeys.
    """
    lines = message.splitlines() or [""]
    shown = [_printable(line if len(line) <= 500 else f"{line[:350]} ... {line[-150:]}") for line in lines[:20]]
    return "\n".join([*shown, *(["..."] if len(lines) > 20 else [])])


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def build_parser(name: str, command: Callable[..., int | None]) -> argparse.ArgumentParser:
    """An argument parser from a function: `Args:` of its docstring is the help, its annotations are the types.

    A parameter without a default is required; `list[X]` takes one or more values; `bool` is a flag;
    positional-only parameters (before `/`) are positional.
    """
    doc = inspect.getdoc(command) or ""
    parser = argparse.ArgumentParser(
        prog=f"kdtrans {name}",
        description=re.split(r"\n\s*Args:", doc)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    helps = dict(re.findall(r"^\s{4}(\w+): (.+)$", doc, flags=re.MULTILINE))
    hints = typing.get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        hint, default = hints[parameter.name], parameter.default
        required = default is inspect.Parameter.empty
        options: dict[str, typing.Any] = {"help": helps.get(parameter.name, " ")}
        if isinstance(hint, types.UnionType):  # X | None
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        if typing.get_origin(hint) is list:
            options |= {"type": typing.get_args(hint)[0], "nargs": "+"}
        elif hint is bool:
            options |= {"action": "store_true"}
        else:
            options |= {"type": hint}
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            parser.add_argument(parameter.name, **options)
        else:
            flag = f"--{parameter.name.replace('_', '-')}"
            if not required and hint is not bool:
                options["default"] = default
            parser.add_argument(flag, required=required, **options)
    return parser


if __name__ == "__main__":
    sys.exit(main())
